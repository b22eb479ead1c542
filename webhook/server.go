package webhook

// The TLS server around handlers. It is a webhook.Server of controller-runtime, with what that
// one cannot be told: limits, deadlines, a drain that callers notice before the listener closes.

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/tracehook/tracehook/webhook/limit"
)

const (
	// DefaultIdleTimeout is longer than the 90 s for which API servers keep an idle connection.
	// With 90 s both ends close at once, and a call that is being sent gets an EOF.
	DefaultIdleTimeout = 2 * time.Minute
	// DefaultShutdownTimeout is for calls that are under way when the server stops. The
	// default of the delay before it (5 s), and 5 s for the last spans, leave some of a grace period of 40 s.
	DefaultShutdownTimeout = 20 * time.Second
	// MaxHeaderBytes of a request; net/http takes 4 KiB more. An API server's own header is less than
	// 1 KiB. Without a tracing configuration it passes a user's context on: up to 16 KiB of
	// tracestate and 8 KiB of baggage, which must cost nobody a call.
	MaxHeaderBytes = 32 << 10
	// HeaderTimeout is for a request's header from its first byte on, and for the TLS handshake.
	HeaderTimeout = 10 * time.Second
	// writeTimeout is for handler and answer together.
	writeTimeout = longestTimeout + 5*time.Second
	// lingering is how long the rest of a body is awaited that the handler did not read:
	// it may be under way, and the connection can then be kept.
	lingering = 500 * time.Millisecond
)

// HTTP/2: a stream costs as much as a connection does, so there are few, with small windows.
// A review of 7 MiB is 110 windows; on a local network that is no delay.
const (
	maxStreams     = 100
	receiveBuffer  = 64 << 10
	maxFrameLength = 16 << 10
)

// ServerOptions of a Server. Address and GetCertificate are needed.
type ServerOptions struct {
	// Address to listen on, as HOST:PORT; an empty host means all addresses.
	Address string
	// Handler answers all calls for which nothing is registered; an http.ServeMux for
	// more than one path. Nil: 404.
	Handler http.Handler
	// GetCertificate is asked at every handshake, so a certificate can be rotated
	// without a restart. This is where package certs, a certwatcher, or anything
	// else with a certificate comes in.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// HTTP2 allows HTTP/2. The API server speaks HTTP/1.1 to a webhook behind a
	// Service, so that false costs nothing and removes a protocol to attack.
	HTTP2 bool
	// TLS changes the rest of the TLS configuration, as ClientAuth.Ask does. Nil: nothing.
	TLS func(*tls.Config)
	// ShutdownDelay is how long the server goes on serving, not ready, after its
	// context has ended: the time that endpoints need to be taken out everywhere.
	ShutdownDelay time.Duration
	// ShutdownTimeout is how long calls may take after the delay before their connections
	// are cut. Zero: DefaultShutdownTimeout.
	ShutdownTimeout time.Duration
	// IdleTimeout is how long a connection is kept without a request. Zero: DefaultIdleTimeout.
	IdleTimeout time.Duration
	// MaxConnections are open at once; for one more, the one of least use is closed. With HTTP/2 it
	// is also the most requests at once. Zero: limit.DefaultConnections.
	MaxConnections int
	// MaxBytesInFlight are held of requests under way, headers and bodies. One more request that
	// needs bytes is answered 503, and those that are slow to arrive are given up. Zero: limit.DefaultBytes.
	MaxBytesInFlight int64
	// HandshakeFailed is told of each TLS handshake that fails: with whom, and why. Nil: nobody is.
	HandshakeFailed func(remote net.Addr, err error)
	// Logger is told when connections had to be cut. Nil: silence.
	Logger *slog.Logger
	// MeterProvider counts connections and bytes. Nil: nobody does.
	MeterProvider metric.MeterProvider
}

// Server serves admission calls over TLS until its context ends. It is a
// webhook.Server of controller-runtime, for the WebhookServer of a manager's options.
type Server struct {
	options     ServerOptions
	registry    ctrlwebhook.Server // for the metrics that its Register adds; never started
	mux         *http.ServeMux
	tls         *tls.Config
	connections *limit.Connections
	bytes       *limit.Bytes
	requests    atomic.Int64 // over HTTP/2
	refused     metric.Int64Counter
	started     atomic.Bool
	draining    atomic.Bool
}

var _ ctrlwebhook.Server = (*Server)(nil)

// NewServer checks the options; nothing listens before Start.
func NewServer(o ServerOptions) (*Server, error) {
	_, portName, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("parse the address to serve on: %w", err)
	}
	if port, err := strconv.ParseUint(portName, 10, 16); err != nil || port == 0 {
		return nil, fmt.Errorf("parse the address to serve on: %q is no port from 1 to 65535", portName)
	}
	if o.MaxConnections < 0 || o.MaxBytesInFlight < 0 || o.IdleTimeout < 0 || o.ShutdownTimeout < 0 || o.ShutdownDelay < 0 {
		return nil, errors.New("a limit or a duration of the server is negative")
	}
	o.ShutdownTimeout = cmp.Or(o.ShutdownTimeout, DefaultShutdownTimeout)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, DefaultIdleTimeout)
	o.MaxConnections = cmp.Or(o.MaxConnections, limit.DefaultConnections)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{options: o, mux: http.NewServeMux(), bytes: limit.NewBytes(o.MaxBytesInFlight)}
	s.registry = ctrlwebhook.NewServer(ctrlwebhook.Options{WebhookMux: s.mux})
	if o.Handler != nil {
		s.mux.Handle("/", o.Handler)
	}
	s.tls = &tls.Config{GetCertificate: o.GetCertificate, MinVersion: tls.VersionTLS12}
	if o.TLS != nil {
		o.TLS(s.tls)
	}
	s.tls.NextProtos = []string{"http/1.1"}
	if o.HTTP2 {
		s.tls.NextProtos = []string{"h2", "http/1.1"}
	}
	if s.tls.GetCertificate == nil && s.tls.GetConfigForClient == nil && len(s.tls.Certificates) == 0 {
		return nil, errors.New("the server has no GetCertificate")
	}
	if err := s.measure(o.MeterProvider); err != nil {
		return nil, err
	}
	s.connections = limit.NewConnections(limit.ConnectionsOptions{
		Most: o.MaxConnections, Bytes: s.bytes, HandshakeFailed: o.HandshakeFailed,
		FirstRequest: o.IdleTimeout, HeaderTimeout: HeaderTimeout, MaxHeaderBytes: MaxHeaderBytes,
		Refused: s.refuse,
	})
	return s, nil
}

// measure makes the metrics.
func (s *Server) measure(provider metric.MeterProvider) error {
	if provider == nil {
		provider = metricnoop.NewMeterProvider()
	}
	meter := provider.Meter(scopeName, metric.WithSchemaURL(semconv.SchemaURL))
	var err error
	s.refused, err = meter.Int64Counter("tracehook.admission.connections.refused",
		metric.WithUnit("{connection}"),
		metric.WithDescription("Connections that a limit of the server ended, by reason; calls that it answered are in tracehook.admission.duration."))
	if err != nil {
		return fmt.Errorf("create the counter of refused connections: %w", err)
	}
	for _, reason := range append(limit.Reasons[:], reasonShutdown) {
		s.refused.Add(context.Background(), 0, refusedFor(reason)) // so that the first one is seen to rise
	}
	_, err = meter.Int64ObservableGauge("tracehook.admission.connections.open",
		metric.WithUnit("{connection}"), metric.WithDescription("Open connections."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(s.connections.Open()))
			return nil
		}))
	if err != nil {
		return fmt.Errorf("create the gauge of connections: %w", err)
	}
	_, err = meter.Int64ObservableGauge("tracehook.admission.in_flight",
		metric.WithUnit("By"), metric.WithDescription("Bytes that are held of requests under way, beyond the first 16 KiB of each connection."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(s.bytes.Used())
			return nil
		}))
	if err != nil {
		return fmt.Errorf("create the gauge of bytes in flight: %w", err)
	}
	return nil
}

// reasonShutdown: the server stopped before the request was answered.
const reasonShutdown = "shutdown"

func refusedFor(reason string) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(semconv.ErrorTypeKey.String(reason)))
}

func (s *Server) refuse(reason string) {
	s.refused.Add(context.Background(), 1, refusedFor(reason))
}

// Register serves hook at path, with controller-runtime's metrics. It panics if
// there is a hook at that path already.
func (s *Server) Register(path string, hook http.Handler) { s.registry.Register(path, hook) }

// WebhookMux is where hooks are registered.
func (s *Server) WebhookMux() *http.ServeMux { return s.mux }

// NeedLeaderElection tells a manager to start the server in every replica.
func (*Server) NeedLeaderElection() bool { return false }

// StartedChecker is Ready.
func (s *Server) StartedChecker() healthz.Checker { return s.Ready }

// bounded is around every handler: no path is without a deadline, and no body without a limit.
func (s *Server) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Now().Add(timeout(r.URL) - answerMargin))
		if s.draining.Load() {
			// Callers with a kept connection are let go, one answer at a time, so that none of them
			// sends a request into a connection that is about to close.
			w.Header().Set("Connection", "close")
		}
		if r.ProtoMajor == 2 {
			s.shared(w, r, next)
			return
		}
		body := r.Body
		if !s.bytes.Room(r.ContentLength) {
			refused := *r // net/http looks at r, and so may what a handler leaves behind
			refused.Body = refusedBody{body}
			r = &refused // so that the handler says so in its own way
		}
		next.ServeHTTP(w, r)
		if body == http.NoBody {
			return
		}
		if _, err := w.Write(nil); errors.Is(err, http.ErrHijacked) {
			return // the connection is another's
		}
		// What the handler has not read net/http reads, to go on with the connection.
		_ = control.SetReadDeadline(time.Now().Add(lingering))
	})
}

// refusedBody is a body for which there is no room.
type refusedBody struct{ io.Closer }

func (refusedBody) Read([]byte) (int, error) { return 0, limit.ErrOverloaded }

// shared serves a request that shares its connection with others: what it holds is its own, and so is
// its place among all requests.
func (s *Server) shared(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if s.requests.Add(1) > int64(s.options.MaxConnections) {
		s.requests.Add(-1)
		s.refuse(limit.ReasonConnections)
		http.Error(w, "too many requests at once", http.StatusServiceUnavailable)
		return
	}
	defer s.requests.Add(-1)
	control := http.NewResponseController(w)
	ctx, cancel := context.WithCancelCause(r.Context()) // as net/http does over HTTP/1.1
	defer cancel(nil)
	body, err := s.bytes.NewBody(r.Body, headerBytes(r.Header), func() {
		cancel(limit.ErrOverloaded)
		_ = control.SetReadDeadline(time.Unix(1, 0))
		_ = control.SetWriteDeadline(time.Now().Add(lingering))
	})
	if err != nil {
		s.refuse(limit.ReasonBytes)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer body.Release()
	*r = *r.WithContext(ctx) // net/http goes on with r
	r.Body = body
	next.ServeHTTP(w, r)
}

// headerCost is what a line of a header costs beside its text.
const headerCost = 130

func headerBytes(h http.Header) (n int64) {
	for name, values := range h {
		for _, value := range values {
			n += int64(len(name)+len(value)) + headerCost
		}
	}
	return n
}

// Serve is Start.
func (s *Server) Serve(ctx context.Context) error { return s.Start(ctx) }

// Start listens and answers until ctx ends. Then: not ready, the delay, no new
// connections, and back when the calls under way are answered, or after the timeout. It returns nil
// after that, else why the server could not listen or go on.
func (s *Server) Start(ctx context.Context) error {
	listener, err := net.Listen("tcp", s.options.Address)
	if err != nil {
		return fmt.Errorf("serve admission calls on %s: %w", s.options.Address, err)
	}
	server := &http.Server{
		Handler:           s.bounded(s.mux),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		MaxHeaderBytes:    MaxHeaderBytes,
		ReadHeaderTimeout: HeaderTimeout,
		ReadTimeout:       longestTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       s.options.IdleTimeout,
		TLSConfig:         s.tls,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrameLength,
			MaxReceiveBufferPerConnection: receiveBuffer, MaxReceiveBufferPerStream: receiveBuffer,
			SendPingTimeout: time.Minute, WriteByteTimeout: writeTimeout,
		},
	}
	s.connections.Guard(server)
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(s.options.HTTP2)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(s.connections.Listen(listener, s.tls)) }()
	s.started.Store(true)

	select {
	case err := <-ended:
		return fmt.Errorf("serve admission calls on %s: %w", s.options.Address, err)
	case <-ctx.Done():
	}
	s.draining.Store(true)
	select {
	case err := <-ended:
		return fmt.Errorf("serve admission calls on %s: %w", s.options.Address, err)
	case <-time.After(s.options.ShutdownDelay):
	}
	_ = listener.Close()
	select {
	case err := <-ended: // what shook hands is served
		if !errors.Is(err, net.ErrClosed) {
			s.options.Logger.Warn("the listener ended with an error", "error", err)
		}
	case <-time.After(time.Second):
	}
	s.stop(server)
	return nil
}

// stop lets calls under way end, and cuts those that do not.
func (s *Server) stop(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), s.options.ShutdownTimeout)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- server.Shutdown(ctx) }()
	select {
	case err := <-drained:
		if err == nil {
			return
		}
	case <-ctx.Done(): // Shutdown says goodbye to one connection after the other, and may hang in one
	}
	n := s.connections.Cut()
	_ = server.Close()
	s.refused.Add(context.Background(), int64(n), refusedFor(reasonShutdown))
	s.options.Logger.Warn("connections cut: their requests did not end in time",
		"connections", n, "timeout", s.options.ShutdownTimeout.String())
}

// Ready is a readiness check in controller-runtime's form: the server answers a
// handshake and is not draining.
func (s *Server) Ready(*http.Request) error {
	if s.draining.Load() {
		return errors.New("draining: the server is about to stop")
	}
	if !s.started.Load() {
		return errors.New("the server has not been started yet")
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}
	c, err := dialer.Dial("tcp", s.options.Address)
	if err != nil {
		return fmt.Errorf("shake hands with the server: %w", err)
	}
	return c.Close()
}
