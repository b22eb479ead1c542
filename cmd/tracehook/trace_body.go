package main

// Request bodies that can be sent again. In: the body as the command sends it. Out: the
// same bytes, and http.Request.GetBody. Errors: a body too large to be kept cannot be sent
// again.
//
// A command sends its body from memory and can repeat it: that is how client-go survives
// an API server's GOAWAY. The proxy sees a stream. It passes the stream on as it comes and
// keeps what has passed, until the API server has answered.

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

const (
	// keptBytesPerBody is more than the 3 MiB that an API server accepts.
	keptBytesPerBody = 4 << 20
	// keptBytesTotal is for all calls together. Beyond it bodies are streamed only.
	keptBytesTotal = 64 << 20
)

var errBodyNotKept = errors.New("the request's body is too large to be sent again")

// bodyBudget is the memory left for bodies.
type bodyBudget struct{ left atomic.Int64 }

func newBodyBudget(bytes int64) *bodyBudget {
	b := new(bodyBudget)
	b.left.Store(bytes)
	return b
}

func (b *bodyBudget) take(n int) bool {
	if b.left.Add(-int64(n)) >= 0 {
		return true
	}
	b.left.Add(int64(n))
	return false
}

// keep makes r's body one that can be sent again. The result must be told when the API
// server has answered (answered) and when the call is over (forget).
func (b *bodyBudget) keep(r *http.Request) *keptBody {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength > keptBytesPerBody {
		return nil
	}
	k := &keptBody{source: r.Body, budget: b, keeping: true}
	k.readEnded.L = &k.mu
	first, _ := k.again()
	r.Body, r.GetBody = first, k.again
	return k
}

// keptBody is one body, read by one attempt to send it after the other.
type keptBody struct {
	source io.Reader
	budget *bodyBudget

	mu        sync.Mutex
	readEnded sync.Cond
	reading   bool // an attempt is in source.Read
	keeping   bool // what is read is kept, and another attempt may begin
	kept      []byte
	taken     int   // of the budget
	end       error // what source ended with
	current   *bodyAttempt
}

// bodyAttempt reads the body from its begin.
type bodyAttempt struct {
	body   *keptBody
	offset int // in kept
}

// again is http.Request.GetBody. The attempt before gets no more bytes.
func (k *keptBody) again() (io.ReadCloser, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.keeping {
		return nil, errBodyNotKept
	}
	k.current = &bodyAttempt{body: k}
	k.readEnded.Broadcast()
	return k.current, nil
}

// answered ends the keeping: no attempt follows. What the present one has yet to read stays.
func (k *keptBody) answered() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keeping = false
	if k.current == nil || k.current.offset == len(k.kept) {
		k.release()
	}
}

// forget gives the memory back.
func (k *keptBody) forget() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keeping = false
	k.current = nil
	k.readEnded.Broadcast()
	k.release()
}

func (k *keptBody) release() {
	k.budget.left.Add(int64(k.taken))
	k.kept, k.taken = nil, 0
	if k.current != nil {
		k.current.offset = 0
	}
}

func (a *bodyAttempt) Read(into []byte) (int, error) {
	k := a.body
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		switch {
		case k.current != a:
			return 0, http.ErrBodyReadAfterClose
		case a.offset < len(k.kept):
			n := copy(into, k.kept[a.offset:])
			a.offset += n
			if a.offset == len(k.kept) && !k.keeping {
				k.release()
			}
			return n, nil
		case k.end != nil:
			return 0, k.end
		case !k.reading:
			return k.readSource(a, into)
		}
		k.readEnded.Wait() // the attempt before is still in a read, and its bytes are kept
	}
}

// readSource reads for a, outside the lock.
func (k *keptBody) readSource(a *bodyAttempt, into []byte) (int, error) {
	k.reading = true
	k.mu.Unlock()
	n, err := k.source.Read(into)
	k.mu.Lock()
	k.reading = false
	k.readEnded.Broadcast()
	k.end = err
	if k.current != a {
		// Another attempt began meanwhile. These bytes are its next ones, whatever they cost.
		k.kept = append(k.kept, into[:n]...)
		return 0, http.ErrBodyReadAfterClose
	}
	if k.keeping {
		if len(k.kept)+n <= keptBytesPerBody && k.budget.take(n) {
			k.kept = append(k.kept, into[:n]...)
			k.taken += n
			a.offset = len(k.kept)
		} else {
			k.keeping = false
			k.release()
		}
	}
	return n, err
}

// Close ends the attempt. The command's body is the server's to close, at the end of the call.
func (a *bodyAttempt) Close() error {
	a.body.mu.Lock()
	defer a.body.mu.Unlock()
	if a.body.current == a {
		a.body.current = nil
	}
	return nil
}
