package main

// Servers beside the one for admission calls: probes and metrics. In: a handler that reads no body. Out: it is served, within
// limits. Errors: the address cannot be listened on.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/tracehook/tracehook/webhook/limit"
)

const (
	// A kubelet and a few Prometheus need one connection each.
	sideConnections = 100
	// A ServiceAccount's token is 1 to 2 KB.
	sideHeaderBytes   = 16 << 10
	sideHeaderTimeout = 5 * time.Second
	sideBodyTimeout   = time.Second
	sideWriteTimeout  = 30 * time.Second
	// Prometheus scrapes once a minute or more often.
	sideIdleTimeout = 2 * time.Minute
)

type sideServer struct {
	address string
	server  *http.Server
	refused func(reason string)

	tls             *tls.Config // nil: plain HTTP
	handshakeFailed func(remote net.Addr, err error)
}

// newSideServer returns nil for the address "0". name is the port's in the metrics.
func newSideServer(name, address string, handler http.Handler, provider metric.MeterProvider) (*sideServer, error) {
	if address == "0" {
		return nil, nil
	}
	refused, err := provider.Meter(meterName).Int64Counter("tracehook.diagnostics.connections.refused",
		metric.WithUnit("{connection}"),
		metric.WithDescription("Connections to the ports of probes and metrics that a limit ended, by port and reason."))
	if err != nil {
		return nil, fmt.Errorf("create the counter of refused connections: %w", err)
	}
	count := func(reason string, n int64) {
		refused.Add(context.Background(), n, metric.WithAttributes(attribute.String("tracehook.port.name", name), semconv.ErrorTypeKey.String(reason)))
	}
	for _, reason := range limit.Reasons {
		count(reason, 0) // so that the first one is seen to rise
	}
	s := &sideServer{
		address: address,
		server: &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				// For a body, which nobody here reads but net/http.
				_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(sideBodyTimeout))
				handler.ServeHTTP(w, r)
			}),
			MaxHeaderBytes: sideHeaderBytes, ReadHeaderTimeout: sideHeaderTimeout, ReadTimeout: sideHeaderTimeout + sideBodyTimeout,
			WriteTimeout: sideWriteTimeout, IdleTimeout: sideIdleTimeout,
			Protocols: new(http.Protocols),
		},
		refused: func(reason string) { count(reason, 1) },
	}
	s.server.Protocols.SetHTTP1(true)
	return s, nil
}

// until answers until answering ends, and returns when done ends.
func (s *sideServer) until(done, answering context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- s.Start(answering) }()
	select {
	case err := <-ended:
		return err
	case <-done.Done():
		return nil
	}
}

// Start answers until ctx ends. What is under way then is of no value.
func (s *sideServer) Start(ctx context.Context) error {
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		return err
	}
	connections := limit.NewConnections(limit.ConnectionsOptions{
		Most: sideConnections, MaxHeaderBytes: sideHeaderBytes, HeaderTimeout: sideHeaderTimeout,
		Refused: s.refused, HandshakeFailed: s.handshakeFailed,
	})
	connections.Guard(s.server)
	stop := context.AfterFunc(ctx, func() {
		connections.Cut()
		_ = s.server.Close()
	})
	defer stop()
	err = s.server.Serve(connections.Listen(listener, s.tls))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
