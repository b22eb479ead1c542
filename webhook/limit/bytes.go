package limit

// Bytes: what requests under way have made the server hold. In: bytes as they arrive.
// Out: may they stay? Errors: ErrOverloaded.

import (
	"cmp"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultBytes is how many bytes of requests are held at most. A buffer that grows is there twice,
// and 128 MiB are for everything.
const DefaultBytes = 16 << 20

const (
	// small requests have a quarter of the bytes for themselves, so that a few large
	// ones do not keep them out.
	small = 64 << 10
	// slow is how long a request may take to arrive before it is given up for others.
	slow = time.Second
)

// ErrOverloaded is returned where more bytes would be held than the limit allows. It is a
// timeout to whoever asks (net.Error), as the caller is not to blame.
var ErrOverloaded error = overloaded{}

type overloaded struct{}

func (overloaded) Error() string   { return "too many bytes of requests are held at once" }
func (overloaded) Timeout() bool   { return true }
func (overloaded) Temporary() bool { return true }

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// Bytes is a limit of bytes that requests hold. They are taken as they arrive: an
// announced length takes nothing.
type Bytes struct {
	mu     sync.Mutex
	most   int64
	used   int64
	oldest *Hold // of those that hold something
	newest *Hold
	now    func() time.Duration // since some moment
}

// NewBytes makes a limit. Zero: DefaultBytes.
func NewBytes(most int64) *Bytes {
	started := time.Now()
	return &Bytes{most: cmp.Or(most, DefaultBytes), now: func() time.Duration { return time.Since(started) }}
}

// Used is how many bytes are held now.
func (b *Bytes) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Room says whether n bytes, which are announced, would get in now. It takes nothing.
func (b *Bytes) Room(n int64) bool {
	if n <= small {
		return true // they have a share of their own, and are not worth a lock
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return n <= b.share(n)-b.used || b.reclaimable(nil, n-(b.share(n)-b.used))
}

// share is what a request of n bytes may have of the limit.
func (b *Bytes) share(n int64) int64 {
	if n <= small {
		return b.most
	}
	return b.most - b.most/4
}

// Hold is what one request holds.
type Hold struct {
	bytes      *Bytes
	n          atomic.Int64
	since      time.Duration // by Bytes.now
	prev, next *Hold
	interrupt  func()
}

// init is for a Hold that is part of something else. interrupt is called, with the lock of b held, when the request
// is given up for others.
func (h *Hold) init(b *Bytes, interrupt func()) { h.bytes, h.interrupt = b, interrupt }

func (h *Hold) taken() int64 { return h.n.Load() }

// Take takes n bytes more, or returns ErrOverloaded. If there is no room, the requests are given
// up that are slowest to arrive.
func (h *Hold) Take(n int64) error {
	b := h.bytes
	b.mu.Lock()
	defer b.mu.Unlock()
	if missing := b.used + n - b.share(h.n.Load()+n); missing > 0 {
		if !b.reclaimable(h, missing) {
			return ErrOverloaded
		}
		b.reclaim(h, missing)
	}
	b.used += n
	if h.n.Add(n) == n {
		h.since = b.now()
		h.prev, b.newest = b.newest, h
		if h.prev == nil {
			b.oldest = h
		} else {
			h.prev.next = h
		}
	}
	return nil
}

// reclaimable says whether the slow requests hold so much.
func (b *Bytes) reclaimable(except *Hold, missing int64) bool {
	now := b.now()
	for h := b.oldest; h != nil && missing > 0 && now-h.since >= slow; h = h.next {
		if h != except {
			missing -= h.n.Load()
		}
	}
	return missing <= 0
}

func (b *Bytes) reclaim(except *Hold, missing int64) {
	for h := b.oldest; h != nil && missing > 0; {
		next := h.next
		if h != except {
			missing -= h.n.Load()
			b.release(h)
			h.interrupt()
		}
		h = next
	}
}

// Release gives everything back.
func (h *Hold) Release() {
	if h.n.Load() == 0 {
		return
	}
	h.bytes.mu.Lock()
	defer h.bytes.mu.Unlock()
	h.bytes.release(h)
}

func (b *Bytes) release(h *Hold) {
	n := h.n.Swap(0)
	if n == 0 {
		return
	}
	b.used -= n
	if h.prev == nil {
		b.oldest = h.next
	} else {
		h.prev.next = h.next
	}
	if h.next == nil {
		b.newest = h.prev
	} else {
		h.next.prev = h.prev
	}
	h.prev, h.next = nil, nil
}

// Body is a request's body whose bytes are counted as they are read, for requests that share a connection (HTTP/2). Close does not
// give them back: Release does, when the request is answered. interrupt makes a Read that
// waits return.
type Body struct {
	io.ReadCloser
	hold    Hold
	read    int64
	givenUp atomic.Bool
}

// NewBody counts what is read of body, beside the n bytes that the request holds already.
func (b *Bytes) NewBody(body io.ReadCloser, n int64, interrupt func()) (*Body, error) {
	counted := &Body{ReadCloser: body, read: n}
	counted.hold.init(b, func() {
		counted.givenUp.Store(true)
		go interrupt() // the lock is held
	})
	return counted, counted.hold.Take(max(n, 1))
}

func (b *Body) Read(p []byte) (int, error) {
	if b.givenUp.Load() {
		return 0, ErrOverloaded
	}
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	if b.givenUp.Load() {
		return n, ErrOverloaded
	}
	if more := b.read - b.hold.taken(); more > 0 {
		if err := b.hold.Take(max(more, step)); err != nil {
			b.givenUp.Store(true)
			b.hold.Release()
			return n, err
		}
		if b.givenUp.Load() { // meanwhile: nobody else gives back what was just taken
			b.hold.Release()
			return n, ErrOverloaded
		}
	}
	return n, err
}

// Release gives the bytes back. A handler that was left behind, as http.TimeoutHandler does, may
// go on reading, and takes nothing any more.
func (b *Body) Release() {
	b.givenUp.Store(true)
	b.hold.Release()
}
