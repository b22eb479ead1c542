package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestAStartupProbeReturnsAtTheFirstReady(t *testing.T) {
	for attempt := 1; !returnsAtTheFirstReady(t); attempt++ {
		if attempt == 20 {
			t.Fatal("another process has taken the port, 20 times")
		}
	}
}

// returnsAtTheFirstReady is false if another process took the port before the server did.
func returnsAtTheFirstReady(t *testing.T) bool {
	t.Helper()
	var asked atomic.Int32
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close() // a port that nobody listens on yet
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	var out bytes.Buffer
	go func() { done <- probe(ctx, address, &out) }()
	early := false
	select {
	case err = <-done:
		early = true
	case <-time.After(5 * probeEvery):
	}
	listener, taken := net.Listen("tcp", address)
	if taken != nil {
		return false
	}
	if early {
		listener.Close()
		t.Fatalf("it returns before anybody listens: %v", err)
	}
	go func() { _ = server.Serve(listener) }()
	select {
	case err = <-done:
	case <-time.After(time.Minute):
		t.Fatal("it still waits")
	}
	if err != nil || asked.Load() != 3 || out.Len() > 0 {
		t.Errorf("after %d questions: %v, %q; want none after 3", asked.Load(), err, &out)
	}
	return true
}

func TestAStartupProbeThatEndsBeforeSaysWhatTheServerWaitsFor(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 2 { // the first answer has arrived
			cancel()
		}
		http.Error(w, "not ready: certificate:\x1b none", http.StatusServiceUnavailable)
	}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	var out bytes.Buffer
	if err := probe(ctx, address, &out); err != nil || !strings.HasPrefix(out.String(), "not ready: certificate:") || strings.Contains(out.String(), "\x1b") {
		t.Errorf("a server that answers has started: %v, %q", err, &out)
	}
	server.Close()
	soon, cancel := context.WithTimeout(t.Context(), 5*probeEvery)
	defer cancel()
	if err := probe(soon, address, &out); err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("nobody answers on %s: %v", address, err)
	}
	for _, flags := range [][]string{{"--patience=0s"}, {"--health-probe-bind-address=0"}, {"more"}} {
		var exit *exitError
		if err := run(t.Context(), append([]string{"tracehook", "probe"}, flags...), nil, &out, &out); !errors.As(err, &exit) || exit.code != exitUsage {
			t.Errorf("probe %v: %v, want exit code %d", flags, err, exitUsage)
		}
	}
}
