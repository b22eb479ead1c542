package limit

// Turns: who wants a processor for long in, when it may have one out. Handshakes and large requests get
// half of the processors at most. While all are busy Go looks every 10 ms only whether bytes have
// arrived, and a small call would wait for that. Errors: why somebody no longer waits.

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"sync"
)

// Large is the size in bytes from which on a request's bytes are worked at in turns. Usual calls are
// smaller, and never wait for a turn.
const Large = 64 << 10

// turns are given to one address after the other, so that nobody waits for all that another one asks for.
type turns struct {
	mu      sync.Mutex
	free    int
	waiting []*line // one for each address, in the order in which they are served
}

// line is who waits of one address.
type line struct {
	address netip.Addr
	next    []chan struct{}
}

// newTurns are as many as half of the processors, and one at least.
func newTurns() *turns { return &turns{free: max(1, runtime.GOMAXPROCS(0)/2)} }

// take returns true when it is the caller's turn, and false when gone or done is closed before; each may be nil.
// Whoever has a turn must neither wait for a peer nor take another.
func (t *turns) take(address netip.Addr, gone, done <-chan struct{}) bool {
	select {
	case <-gone:
		return false
	default:
	}
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return true
	}
	mine := make(chan struct{})
	l := t.line(address)
	l.next = append(l.next, mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return true
	case <-gone:
	case <-done:
	}
	t.leave(address, mine)
	return false
}

// leave takes somebody out of its line, or gives on the turn that it got meanwhile.
func (t *turns) leave(address netip.Addr, mine chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, l := range t.waiting {
		if at := slices.Index(l.next, mine); l.address == address && at >= 0 {
			if l.next = slices.Delete(l.next, at, at+1); len(l.next) == 0 {
				t.waiting = slices.Delete(t.waiting, i, i+1)
			}
			return
		}
	}
	t.pass()
}

// line is that of an address. It is called with the lock held.
func (t *turns) line(address netip.Addr) *line {
	for _, l := range t.waiting {
		if l.address == address {
			return l
		}
	}
	l := &line{address: address}
	t.waiting = append(t.waiting, l)
	return l
}

// give passes the turn on.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pass()
}

// pass is called with the lock held.
func (t *turns) pass() {
	if len(t.waiting) == 0 {
		t.free++
		return
	}
	first := t.waiting[0]
	t.waiting = t.waiting[1:]
	close(first.next[0])
	if first.next = first.next[1:]; len(first.next) > 0 {
		t.waiting = append(t.waiting, first)
	}
}

// Turn waits until a request may use a processor for long, and returns what ends that. Handlers call it to parse a
// body of more than Large bytes that they have read. Until the end they must wait for nobody. It
// returns at once where ctx is no request's that came by a Connections. With an error, and without an end, it returns
// when ctx ends before the turn comes, so give it the deadline of the call; and when the request was given
// up for others.
func Turn(ctx context.Context) (end func(), err error) {
	known, _ := ctx.Value(connectionKey{}).(*conn)
	switch {
	case known == nil:
		return func() {}, nil
	case known.of.turns.take(known.address, known.gone, ctx.Done()):
		return known.of.turns.give, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, ErrOverloaded
}
