// Package limit bounds what callers can make a server hold: connections, bytes that
// were received for requests, and lines of its log. It knows net/http and nothing of
// admission.
package limit

// Connections: accepted ones in, those that may stay out. When there is no room, the
// connection goes that is of least use; Victim says which. Errors: those of the listener.

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultConnections is how many connections are open at most. An API server keeps 25 to
// a webhook, and opens more for a moment when it has more calls at once.
const DefaultConnections = 500

// Reasons for which a limit ends a connection.
const (
	ReasonConnections    = "connection_limit" // there were too many
	ReasonBytes          = "bytes_limit"      // it held too many of too many bytes
	ReasonHeaderTooLarge = "header_too_large" // larger than http.Server.MaxHeaderBytes
	ReasonHeaderTimeout  = "header_timeout"   // the header did not come in time
	ReasonNoRequest      = "no_request"       // what came is no HTTP request
)

// Reasons are all of them.
var Reasons = [...]string{ReasonConnections, ReasonBytes, ReasonHeaderTooLarge, ReasonHeaderTimeout, ReasonNoRequest}

const (
	// settled is for how long a call under way is not given up for one more connection
	// of the same caller: usual calls take milliseconds.
	settled = time.Second
	// free bytes of each connection are not counted in Bytes: usual calls need no more,
	// and the limit of connections bounds them.
	free = 16 << 10
	// step is how many bytes are taken of Bytes at once.
	step = 32 << 10
	// receiveBuffer is what the kernel holds of a connection. That is memory of the container, too, and
	// when all of the machine's is used up everybody's packets are dropped.
	receiveBuffer = 128 << 10
	// refusal is how long a connection that was given up stays half open, so that its
	// caller can read the answer. net/http waits as long.
	refusal = 500 * time.Millisecond
)

// Connections bounds how many connections a server has open, and what they hold. Make
// one for each server:
//
//	connections.Guard(server)
//	server.Serve(connections.Listen(listener, config))
type Connections struct {
	o     ConnectionsOptions
	start time.Time
	turns *turns

	mu        sync.Mutex
	open      map[*conn]struct{}
	byAddress map[netip.Addr]int
}

// ConnectionsOptions of Connections. The zero value is a limit of DefaultConnections.
type ConnectionsOptions struct {
	// Most connections are open at once. Zero: DefaultConnections.
	Most int
	// Bytes bounds what all connections have received for the requests under way, headers
	// included. Nil: not counted.
	Bytes *Bytes
	// HandshakeFailed is told of each TLS handshake that fails: with whom, and why. Nil: nobody is.
	HandshakeFailed func(remote net.Addr, err error)
	// FirstRequest is how long a new connection may be without a request. An HTTP client opens
	// connections ahead and uses them later, so this should be as long as http.Server.IdleTimeout.
	// HeaderTimeout is how long the header may take from its first byte; it should be
	// http.Server.ReadHeaderTimeout. Zero: http.Server.ReadHeaderTimeout is for both together.
	FirstRequest, HeaderTimeout time.Duration
	// MaxHeaderBytes is http.Server.MaxHeaderBytes, to tell the reason of a refusal.
	MaxHeaderBytes int
	// Refused is told the reason for each connection that is ended by a limit. Nil: nobody is.
	Refused func(reason string)
}

// NewConnections makes the limit.
func NewConnections(o ConnectionsOptions) *Connections {
	o.Most = cmp.Or(o.Most, DefaultConnections)
	if o.Refused == nil {
		o.Refused = func(string) {}
	}
	if o.HandshakeFailed == nil {
		o.HandshakeFailed = func(net.Addr, error) {}
	}
	return &Connections{o: o, start: time.Now(), turns: newTurns(), open: map[*conn]struct{}{}, byAddress: map[netip.Addr]int{}}
}

// Open is how many connections are open now.
func (c *Connections) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// Cut closes all connections at once, without a word to their callers, and says how many they were.
func (c *Connections) Cut() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for known := range c.open {
		known.refused.Store(true) // this is no limit's doing
		_ = known.Conn.Close()
	}
	return len(c.open)
}

// connectionKey finds a connection in a request's context.
type connectionKey struct{}

// Guard sets the hooks of a server by which Connections learns what its connections do. Call it when Handler is set.
func (c *Connections) Guard(server *http.Server) {
	server.ConnState = c.state
	server.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, connOf(nc))
	}
	next := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if headerLines(r.Header) > mostLines { // of HTTP/2
			clear(r.Header)
			c.o.Refused(ReasonHeaderTooLarge)
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(refusal))
			http.Error(w, tooManyLines, http.StatusRequestHeaderFieldsTooLarge)
			return
		}
		if known, _ := r.Context().Value(connectionKey{}).(*conn); known != nil {
			known.handle(w, r)
		}
		next.ServeHTTP(w, r)
	})
}

const tooManyLines = "the request's header has too many lines"

func (c *Connections) state(nc net.Conn, state http.ConnState) {
	known := connOf(nc)
	if known == nil {
		return
	}
	switch state {
	case http.StateActive:
		known.enter(phaseActive)
	case http.StateIdle:
		known.hold.Release()
		known.received.Store(0)
		known.ended = !known.header.next(known.length)
		known.handled.Store(false)
		known.enter(phaseIdle)
	case http.StateClosed, http.StateHijacked:
		if state == http.StateHijacked {
			known.paced = paceNone // it goes on, without limits. Nobody reads at the moment
		}
		known.tellWhy()
		c.remove(known)
	}
}

// handle says that a request has reached a handler: what ends its connection from here on is the handler's to
// tell. For HTTP/2 it also ends the count of the connection's bytes: they are of many requests,
// and Bytes.NewBody counts each of those.
func (c *conn) handle(w http.ResponseWriter, r *http.Request) {
	c.handled.Store(true)
	if r.ProtoMajor == 2 {
		if !c.http2.Swap(true) {
			c.hold.Release()
		}
		return
	}
	if c.length = r.ContentLength; c.length < 0 { // nobody knows where the next request begins
		w.Header().Set("Connection", "close")
	}
	if c.tls != nil {
		r.TLS = c.tls
	}
}

func headerLines(h http.Header) (n int) {
	for _, values := range h {
		n += len(values)
	}
	return n
}

// add makes room for one more connection if it must, and is not ok if it cannot.
func (c *Connections) add(raw net.Conn) (*conn, bool) {
	added := &conn{Conn: raw, of: c, address: addressOf(raw), gone: make(chan struct{})}
	added.hold.init(c.o.Bytes, added.giveUp)
	added.enter(phaseNew)
	if tcp, ok := raw.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(receiveBuffer) // else it may grow to megabytes
	}

	c.mu.Lock()
	var victim *conn
	var untold bool
	if len(c.open) >= c.o.Most {
		if victim = c.victim(added.address); victim == nil {
			c.mu.Unlock()
			c.o.Refused(ReasonConnections)
			return nil, false
		}
		untold = victim.refused.CompareAndSwap(false, true) // before it sees that it is gone
		c.forget(victim)
	}
	c.open[added] = struct{}{}
	c.byAddress[added.address]++
	c.mu.Unlock()

	if untold {
		c.o.Refused(ReasonConnections)
		_ = victim.Conn.Close() // its goroutine sees that and goes
	}
	return added, true
}

// victim is the connection to give up for a new one from that address: of the address that
// has most, a connection that was never used, then the one whose request takes longest, then the one
// that is idle for longest. So nobody gets in by taking the place of a caller who has
// fewer connections, nor by opening connections without a use, nor by requests that do not end.
func (c *Connections) victim(newcomer netip.Addr) *conn {
	most := c.byAddress[newcomer] + 1
	for _, n := range c.byAddress {
		most = max(most, n)
	}
	now := time.Since(c.start)
	var victim *conn
	var use, since int64
	for candidate := range c.open {
		n := c.byAddress[candidate.address]
		if candidate.address == newcomer {
			n++
		}
		if n < most {
			continue
		}
		u, s := candidate.state()
		if u == phaseActive && now-time.Duration(s) < settled {
			if candidate.address == newcomer {
				continue
			}
			u = phaseBusy
		}
		if victim == nil || u < use || u == use && s < since {
			victim, use, since = candidate, u, s
		}
	}
	return victim
}

func (c *Connections) remove(known *conn) {
	known.hold.Release()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(known)
}

// forget is called with the lock held.
func (c *Connections) forget(known *conn) {
	if _, ok := c.open[known]; !ok {
		return
	}
	delete(c.open, known)
	known.end()
	if c.byAddress[known.address]--; c.byAddress[known.address] == 0 {
		delete(c.byAddress, known.address)
	}
}

// addressOf is who is at the other end. A host has many IPv6 addresses, and one /64.
func addressOf(c net.Conn) netip.Addr {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	address := tcp.AddrPort().Addr().Unmap()
	if address.Is6() {
		if prefix, err := address.WithZone("").Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return address
}

// Phases of a connection, in the order in which they are given up.
const (
	phaseNew    int64 = iota
	phaseActive       // with a request
	phaseIdle
	phaseBusy // with a request that is not settled yet
)

// What net/http sets read deadlines for, in this order. See SetReadDeadline.
const (
	deadlinesHandshake int32 = iota
	deadlinesFirst           // for the first header next
	deadlinesWaiting         // for the first byte of it
	deadlinesUsual
)

// conn is one connection.
type conn struct {
	net.Conn
	of      *Connections
	address netip.Addr

	phase atomic.Int64 // since when, in ns from the start of Connections, times 4, plus the phase

	gone chan struct{} // closed when the connection is forgotten or given up: it waits for no turn any more
	ends sync.Once

	hold      Hold
	received  atomic.Int64 // bytes since the connection was last idle
	deadlines atomic.Int32
	http2     atomic.Bool
	handled   atomic.Bool // a handler has the request
	late      atomic.Bool // a deadline has passed before one had it
	givenUp   atomic.Bool // Bytes gave it up
	answered  atomic.Bool // a limit has answered in the handler's place
	refused   atomic.Bool // the reason is told
	turn      atomic.Bool // it has one
	writing   atomic.Int32

	// Of handshakes and HTTP/1.1, where one goroutine after the other reads.
	paced  pace
	tls    *tls.ConnectionState // nil: none
	header headerReader
	length int64 // of the body
	ended  bool  // no further request
}

func (c *conn) enter(phase int64) { c.phase.Store(int64(time.Since(c.of.start))<<2 | phase) }

func (c *conn) state() (phase, since int64) {
	packed := c.phase.Load()
	return packed & 3, packed >> 2
}

// rest gives the connection's turn to others, if it has one.
func (c *conn) rest() {
	if c.turn.Swap(false) {
		c.of.turns.give()
	}
}

// end makes whoever waits for a turn of the connection leave its line.
func (c *conn) end() { c.ends.Do(func() { close(c.gone) }) }

// pace is which bytes of a connection are worked at in turns.
type pace int8

const (
	paceNone  pace = iota
	paceLarge      // of large requests
	paceAll
)

// Read counts what comes, and takes a turn for what is costly. Nobody has one while waiting for a peer.
func (c *conn) Read(p []byte) (int, error) {
	c.rest()
	n, err := c.read(p)
	if n > 0 && err == nil && (c.paced == paceAll || c.paced == paceLarge && c.received.Load() > Large) {
		if !c.of.turns.take(c.address, c.gone, nil) {
			if c.givenUp.Load() {
				return 0, ErrOverloaded
			}
			return 0, net.ErrClosed
		}
		c.turn.Store(true)
		if c.writing.Load() > 0 { // TLS may have to answer what came, and would wait behind that
			c.rest()
		}
	}
	return n, err
}

// Write gives the turn back first: TLS answers within Read, and the peer may not read that.
func (c *conn) Write(p []byte) (int, error) {
	c.writing.Add(1)
	defer c.writing.Add(-1)
	c.rest()
	return c.Conn.Write(p)
}

func (c *conn) read(p []byte) (int, error) {
	if c.givenUp.Load() {
		return 0, ErrOverloaded
	}
	n, err := c.Conn.Read(p)
	if n > 0 && c.deadlines.CompareAndSwap(deadlinesWaiting, deadlinesUsual) {
		_ = c.Conn.SetReadDeadline(time.Now().Add(c.of.o.HeaderTimeout))
	}
	if err != nil {
		if c.givenUp.Load() {
			return n, ErrOverloaded
		}
		if !c.handled.Load() && isTimeout(err) {
			c.late.Store(true)
		}
		return n, err
	}
	received := c.received.Add(int64(n))
	if received > free && c.of.o.Bytes != nil && !c.http2.Load() {
		if more := received - free - c.hold.taken(); more > 0 {
			if err := c.hold.Take(max(more, step)); err != nil {
				c.givenUp.Store(true)
				c.hold.Release() // its bytes are as good as gone, and others wait for them
				return n, err
			}
		}
	}
	return n, nil
}

// SetReadDeadline gives a new connection FirstRequest for its first byte, and HeaderTimeout
// from there. net/http has one deadline for both before the first request, and two before
// all others.
func (c *conn) SetReadDeadline(t time.Time) error {
	if c.givenUp.Load() {
		return nil // it has one, and that has passed
	}
	if c.of.o.FirstRequest > 0 {
		switch c.deadlines.Load() {
		case deadlinesHandshake:
			if t.IsZero() { // the handshake is done
				c.deadlines.Store(deadlinesFirst)
			}
		case deadlinesFirst:
			if !t.IsZero() {
				t = time.Now().Add(c.of.o.FirstRequest)
				c.deadlines.Store(deadlinesWaiting)
			}
		case deadlinesWaiting: // whatever it is, the first header is there or the end is near
			c.deadlines.Store(deadlinesUsual)
		}
	}
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline sets both.
func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// giveUp makes a Read that waits return, and soon a Write: who does not read an answer holds
// its request as well.
func (c *conn) giveUp() {
	c.givenUp.Store(true)
	c.end()
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0))
	_ = c.SetWriteDeadline(time.Now().Add(refusal))
}

// Close lets the caller read why, if the connection is ended while it is sending: at once
// there would be a reset, which can overtake the answer.
func (c *conn) Close() error {
	answered := c.answered.Load() || c.givenUp.Load() && c.handled.Load()
	if tcp, ok := c.Conn.(*net.TCPConn); ok && answered {
		time.AfterFunc(refusal, func() { _ = tcp.Close() })
		return tcp.CloseWrite()
	}
	return c.Conn.Close()
}

// tellWhy counts a connection that ends without its request having reached a handler.
func (c *conn) tellWhy() {
	phase, _ := c.state()
	switch {
	case c.givenUp.Load():
		c.tell(ReasonBytes)
	case c.handled.Load() || c.http2.Load():
	case c.of.o.MaxHeaderBytes > 0 && c.received.Load() > int64(c.of.o.MaxHeaderBytes):
		c.tell(ReasonHeaderTooLarge)
	case phase == phaseActive && c.late.Load():
		c.tell(ReasonHeaderTimeout)
	case phase == phaseActive:
		c.tell(ReasonNoRequest)
	}
}

func (c *conn) tell(reason string) {
	if c.refused.CompareAndSwap(false, true) {
		c.of.o.Refused(reason)
	}
}
