package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	authenticationv1 "k8s.io/api/authentication/v1"
)

// startMetrics serves /metrics and returns its address and its log.
func startMetrics(t *testing.T, config processConfig) (address string, log *lockedBuffer) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config.MetricsAddress = listener.Addr().String()
	_ = listener.Close()
	log = &lockedBuffer{}
	server, err := newMetricsServer(config, nil, noop.NewMeterProvider(), slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		connection, err := net.Dial("tcp", config.MetricsAddress)
		if err == nil {
			_ = connection.Close()
			return config.MetricsAddress, log
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestMetricsHoldFewConnectionsAndAnswerAllTheSame(t *testing.T) {
	address, _ := startMetrics(t, processConfig{})
	var idle []net.Conn
	for range 3 * sideConnections {
		connection, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		idle = append(idle, connection)
	}
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("got %s", response.Status)
	}
	open := 0
	for _, connection := range idle {
		_ = connection.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := connection.Read(make([]byte, 1)); os.IsTimeout(err) {
			open++
		}
	}
	if open > sideConnections {
		t.Errorf("%d connections are open, want no more than %d", open, sideConnections)
	}
}

// The API server is not asked, nor the log written, as often as somebody likes.
func TestForgedTokensCostFewTokenReviewsAndFewLogRecords(t *testing.T) {
	var reviews atomic.Int64
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/tokenreviews") {
			t.Errorf("asked for %s", r.URL.Path)
		}
		reviews.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(authenticationv1.TokenReview{Status: authenticationv1.TokenReviewStatus{Error: "invalid bearer token"}})
	}))
	defer api.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: %q}}]\n", api.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", kubeconfig)
	address, log := startMetrics(t, processConfig{MetricsAuth: true})

	const tokens = 2 * mostReviewsAtOnce
	began := time.Now()
	var callers sync.WaitGroup
	for caller := range 8 {
		callers.Go(func() {
			for i := caller; i < tokens; i += 8 {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
				if err != nil {
					t.Error(err)
					return
				}
				request.Header.Set("Authorization", fmt.Sprintf("Bearer forged-%d", i))
				response, err := http.DefaultClient.Do(request)
				if err != nil {
					t.Error(err)
					return
				}
				page, _ := io.ReadAll(response.Body)
				response.Body.Close()
				if response.StatusCode == http.StatusOK || bytes.Contains(page, []byte("go_goroutines")) {
					t.Errorf("a forged token got %s", response.Status)
				}
			}
		})
	}
	callers.Wait()
	if most := mostReviewsAtOnce + mostReviews*time.Since(began).Seconds() + 1; float64(reviews.Load()) > most {
		t.Errorf("%d TokenReviews in %s, want no more than %.0f", reviews.Load(), time.Since(began), most)
	}
	if records := strings.Count(log.String(), "\n"); records != 1 {
		t.Errorf("%d log records, want 1:\n%s", records, log)
	}
}
