package limit

// Turns: who wants a processor for long in, when it may have one out. Handshakes and large requests get
// half of the processors at most. While all are busy Go looks every 10 ms only whether bytes have
// arrived, and a small call would wait for that. Errors: none.

import (
	"context"
	"net/netip"
	"runtime"
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

// take returns when it is the caller's turn. Whoever has it must neither wait for a peer nor take another.
func (t *turns) take(address netip.Addr) {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return
	}
	mine := make(chan struct{})
	l := t.line(address)
	l.next = append(l.next, mine)
	t.mu.Unlock()
	<-mine
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
// returns at once where ctx is no request's that came by a Connections.
func Turn(ctx context.Context) (end func()) {
	known, _ := ctx.Value(connectionKey{}).(*conn)
	if known == nil {
		return func() {}
	}
	known.of.turns.take(known.address)
	return known.of.turns.give
}
