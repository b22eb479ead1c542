package webhook

// The TLS server around a handler: controller-runtime's, with what it lacks added:
// a drain that callers notice before the listener closes.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
)

// ServerOptions of a Server. Handler and GetCertificate are needed.
type ServerOptions struct {
	// Address to listen on, as HOST:PORT; an empty host means all addresses.
	Address string
	// Handler answers all calls; an http.ServeMux for more than one path.
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
}

// Server serves admission calls over TLS until its context ends.
type Server struct {
	server   ctrlwebhook.Server
	delay    time.Duration
	draining atomic.Bool
	address  string
}

// NewServer checks the options; nothing listens before Serve.
func NewServer(o ServerOptions) (*Server, error) {
	host, portName, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("parse the address to serve on: %w", err)
	}
	port, err := strconv.ParseUint(portName, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("parse the address to serve on: %q is no port from 1 to 65535", portName)
	}
	s := &Server{delay: o.ShutdownDelay, address: o.Address}
	mux := http.NewServeMux()
	mux.Handle("/", s.closeWhenDraining(o.Handler))
	s.server = ctrlwebhook.NewServer(ctrlwebhook.Options{
		Host: host,
		Port: int(port),
		// Our own mux and not Register: that would wrap the handler in a second set
		// of metrics.
		WebhookMux: mux,
		TLSOpts: []func(*tls.Config){func(c *tls.Config) {
			c.GetCertificate = o.GetCertificate
			c.MinVersion = tls.VersionTLS12
			c.NextProtos = []string{"http/1.1"}
			if o.HTTP2 {
				c.NextProtos = []string{"h2", "http/1.1"}
			}
			if o.TLS != nil {
				o.TLS(c)
			}
		}},
	})
	return s, nil
}

// closeWhenDraining lets callers with a kept connection go, one answer at a time,
// so that none of them sends a request into a connection that is about to close.
func (s *Server) closeWhenDraining(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// Serve listens and answers until ctx ends. Then: not ready, the delay, no new
// connections, and back when the calls under way are answered. It returns nil
// after a drain, else why the server could not listen or go on.
func (s *Server) Serve(ctx context.Context) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.server.Start(serving) }()

	select {
	case err := <-ended:
		return fmt.Errorf("serve admission calls on %s: %w", s.address, err)
	case <-ctx.Done():
	}
	s.draining.Store(true)
	select {
	case err := <-ended:
		return fmt.Errorf("serve admission calls on %s: %w", s.address, err)
	case <-time.After(s.delay):
	}
	stop()
	return <-ended
}

// Ready is a readiness check in controller-runtime's form: the server answers a
// handshake and is not draining.
func (s *Server) Ready(r *http.Request) error {
	if s.draining.Load() {
		return errors.New("draining: the server is about to stop")
	}
	return s.server.StartedChecker()(r)
}
