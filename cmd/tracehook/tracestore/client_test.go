package tracestore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

func TestWaitAsksUntilTheTraceIsComplete(t *testing.T) {
	whole, err := os.ReadFile("testdata/configmap.json")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	jaeger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/traces/0af7651916cd43dd8448eb211c80319c" {
			http.NotFound(w, r)
			return
		}
		switch asked.Add(1) {
		case 1: // Jaeger knows nothing yet
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"data": null, "errors": [{"code": 404, "msg": "trace not found"}]}`)
		case 2: // … stumbles
			http.Error(w, "busy", http.StatusServiceUnavailable)
		case 3: // … has the first batch
			fmt.Fprint(w, `{"data": [{"traceID": "0af7651916cd43dd8448eb211c80319c", "spans": [], "processes": {}}]}`)
		default:
			_, _ = w.Write(whole)
		}
	}))
	defer jaeger.Close()

	client := &tracestore.Client{BaseURL: jaeger.URL, Every: time.Millisecond}
	trace, err := client.Wait(t.Context(), "0af7651916cd43dd8448eb211c80319c", func(trace tracestore.Trace) error {
		if len(trace.Spans) != 22 {
			return fmt.Errorf("%d of 22 spans", len(trace.Spans))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(trace.Spans) != 22 || asked.Load() != 4 {
		t.Errorf("%d spans after %d questions, want 22 after 4", len(trace.Spans), asked.Load())
	}
}

func TestWaitReturnsWhatArrivedAndTheLastReason(t *testing.T) {
	incomplete := errors.New("the etcd span is missing")
	asked := make(chan struct{}, 1)
	jaeger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
			http.ServeFile(w, r, "testdata/configmap.json")
		default: // the second question hangs until it is given up
			<-r.Context().Done()
		}
	}))
	defer jaeger.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	client := &tracestore.Client{BaseURL: jaeger.URL, Every: time.Millisecond}
	trace, err := client.Wait(ctx, "0af7651916cd43dd8448eb211c80319c", func(tracestore.Trace) error { return incomplete })
	if !errors.Is(err, incomplete) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want one that wraps %q and the deadline", err, incomplete)
	}
	if len(trace.Spans) != 22 {
		t.Errorf("%d spans returned, want the 22 that arrived", len(trace.Spans))
	}
}

func TestTraceTellsAnUnknownTraceFromAnUnknownServer(t *testing.T) {
	noJaeger := httptest.NewServer(http.NotFoundHandler())
	defer noJaeger.Close()
	_, err := (&tracestore.Client{BaseURL: noJaeger.URL}).Trace(t.Context(), "1")
	if err == nil || errors.Is(err, tracestore.ErrNotFound) || !strings.Contains(err.Error(), "no query API") {
		t.Errorf("a web server that is no Jaeger gives %v, want an error that says so", err)
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	if _, err := (&tracestore.Client{BaseURL: gone.URL}).Trace(t.Context(), "1"); err == nil || errors.Is(err, tracestore.ErrNotFound) {
		t.Errorf("a server that is gone gives %v, want the network's error", err)
	}
}
