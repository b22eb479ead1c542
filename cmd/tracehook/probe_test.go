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
	var asked atomic.Int32
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close() // a port that nobody listens on yet
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	defer server.Close()
	done := make(chan error, 1)
	var out bytes.Buffer
	go func() { done <- probe(t.Context(), address, &out) }()
	select {
	case err := <-done:
		t.Fatalf("it returns before anybody listens: %v", err)
	case <-time.After(5 * probeEvery):
	}
	if listener, err = net.Listen("tcp", address); err != nil {
		t.Skip("another process has taken the port: ", err)
	}
	go func() { _ = server.Serve(listener) }()
	select {
	case err = <-done:
	case <-time.After(20 * time.Second):
		err = errors.New("it still waits")
	}
	if err != nil || asked.Load() != 3 || out.Len() > 0 {
		t.Errorf("after %d questions: %v, %q; want none after 3", asked.Load(), err, &out)
	}
}

func TestAStartupProbeThatEndsBeforeSaysWhatTheServerWaitsFor(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "not ready: certificate:\x1b none", http.StatusServiceUnavailable)
	}))
	defer server.Close()
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 5*probeEvery)
		t.Cleanup(cancel)
		return ctx
	}
	address := strings.TrimPrefix(server.URL, "http://")
	var out bytes.Buffer
	if err := probe(soon(), address, &out); err != nil || !strings.HasPrefix(out.String(), "not ready: certificate:") || strings.Contains(out.String(), "\x1b") {
		t.Errorf("a server that answers has started: %v, %q", err, &out)
	}
	server.Close()
	if err := probe(soon(), address, &out); err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("nobody answers on %s: %v", address, err)
	}
	for _, flags := range [][]string{{"--patience=0s"}, {"--health-probe-bind-address=0"}, {"more"}} {
		var exit *exitError
		if err := run(t.Context(), append([]string{"tracehook", "probe"}, flags...), nil, &out, &out); !errors.As(err, &exit) || exit.code != exitUsage {
			t.Errorf("probe %v: %v, want exit code %d", flags, err, exitUsage)
		}
	}
}
