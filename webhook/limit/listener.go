package limit

// Accepted connections in, those out that a server may read requests from: within the limits, after the TLS
// handshake, and with a header of few lines. net/http would shake hands itself, tell of a
// failure in a line of its log alone, and bound no lines.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// defaultHandshakeTimeout is for a handshake, if HeaderTimeout is not set.
const defaultHandshakeTimeout = 10 * time.Second

// Listen returns a listener whose connections are counted. With a TLS configuration it shakes hands with them
// within HeaderTimeout, so that the server is told to Serve and not to ServeTLS; HTTP/2 has to
// be in config.NextProtos, and in http.Server.TLSConfig. Nil: no TLS.
//
// When l is closed, Accept returns the connections under way before it ends. Close of the returned listener ends them.
func (c *Connections) Listen(l net.Listener, config *tls.Config) net.Listener {
	counted := &listener{Listener: l, connections: c}
	if config == nil {
		return counted
	}
	shaking := &tlsListener{listener: counted, config: config, accepted: make(chan accepted)}
	shaking.ctx, shaking.cancel = context.WithCancel(context.Background())
	go shaking.run()
	return shaking
}

// listener accepts what there is room for.
type listener struct {
	net.Listener
	connections *Connections
}

func (l *listener) accept() (*conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c, ok := l.connections.add(raw); ok {
			return c, nil
		}
		_ = raw.Close()
	}
}

// Accept is for a listener without TLS.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.accept()
	if err != nil {
		return nil, err
	}
	return c.ready(c, nil), nil
}

// tlsListener shakes hands in a goroutine for each connection: as many as the limit allows, and none for longer than its timeout.
type tlsListener struct {
	*listener
	config   *tls.Config
	ctx      context.Context
	cancel   context.CancelFunc
	accepted chan accepted
}

type accepted struct {
	conn net.Conn
	err  error
}

func (l *tlsListener) Accept() (net.Conn, error) {
	a, ok := <-l.accepted
	if !ok {
		return nil, net.ErrClosed
	}
	return a.conn, a.err
}

func (l *tlsListener) Close() error {
	l.cancel()
	return l.Listener.Close()
}

func (l *tlsListener) run() {
	var handshakes sync.WaitGroup
	defer func() {
		handshakes.Wait()
		close(l.accepted)
	}()
	for {
		c, err := l.accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the server waits a moment after it; too many open files, for example
			if !l.deliver(accepted{err: err}) {
				return
			}
			continue
		}
		handshakes.Go(func() {
			ready, err := c.shake(l.ctx, l.config)
			if err == nil && l.deliver(accepted{conn: ready}) {
				return
			}
			if err != nil && l.ctx.Err() == nil && !c.refused.Load() {
				l.connections.o.HandshakeFailed(c.RemoteAddr(), err)
			}
			_ = c.Close()
			l.connections.remove(c)
		})
	}
}

func (l *tlsListener) deliver(a accepted) bool {
	select {
	case l.accepted <- a:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// shake returns the connection that a server may read from. It recovers from what callbacks of config panic with.
func (c *conn) shake(ctx context.Context, config *tls.Config) (ready net.Conn, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in the TLS handshake: %v", p)
		}
	}()
	_ = c.Conn.SetDeadline(time.Now().Add(cmp.Or(c.of.o.HeaderTimeout, defaultHandshakeTimeout)))
	server := tls.Server(c, config)
	c.paced = paceAll
	defer c.rest()
	if err := server.HandshakeContext(ctx); err != nil {
		if notTLS, ok := errors.AsType[tls.RecordHeaderError](err); ok && notTLS.Conn != nil && slices.Contains(methods, string(notTLS.RecordHeader[:])) {
			_, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\nthis port is for HTTPS; the request was plain HTTP\n")
			c.answered.Store(true)
		}
		return nil, err
	}
	_ = c.Conn.SetDeadline(time.Time{})
	c.paced = paceNone
	state := server.ConnectionState()
	return c.ready(server, &state), nil
}

// methods are how plain HTTP requests begin.
var methods = []string{"GET /", "HEAD ", "POST ", "PUT /", "PATCH", "DELET", "OPTIO"}

// ready is what is handed to a server: over is c, or TLS over it. net/http serves HTTP/2 to a *tls.Conn
// alone; HTTP/1.1 is served to anything.
func (c *conn) ready(over net.Conn, state *tls.ConnectionState) net.Conn {
	if state != nil && state.NegotiatedProtocol == "h2" {
		return over
	}
	c.tls, c.paced = state, paceLarge
	c.deadlines.Store(deadlinesFirst)
	return &http1{Conn: over, of: c}
}

// http1 is a connection whose header lines are counted while they arrive.
type http1 struct {
	net.Conn
	of *conn
}

// Read answers 431 and ends the connection when a header gets too many lines.
func (h *http1) Read(p []byte) (int, error) {
	if h.of.ended {
		return 0, io.EOF
	}
	n, err := h.Conn.Read(p)
	h.of.rest()
	if h.of.header.read(p[:n]) {
		return n, err
	}
	h.of.ended = true
	h.of.tell(ReasonHeaderTooLarge)
	_ = h.SetWriteDeadline(time.Now().Add(refusal))
	var answer bytes.Buffer
	refused := http.Response{
		StatusCode: http.StatusRequestHeaderFieldsTooLarge, ProtoMajor: 1, ProtoMinor: 1, Close: true,
		ContentLength: int64(len(tooManyLines)), Body: io.NopCloser(bytes.NewReader([]byte(tooManyLines))),
	}
	if err := refused.Write(&answer); err != nil {
		return 0, io.EOF
	}
	_, _ = h.Write(answer.Bytes())
	h.of.answered.Store(true)
	return 0, io.EOF // net/http says nothing to that
}

// CloseWrite is what net/http ends an answer with, while the caller still sends.
func (h *http1) CloseWrite() error {
	if half, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// connOf is the counted connection below what a server serves.
func connOf(nc net.Conn) *conn {
	switch nc := nc.(type) {
	case *http1:
		return nc.of
	case *tls.Conn:
		c, _ := nc.NetConn().(*conn)
		return c
	}
	return nil
}
