package tracestore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

func TestWaitAsksUntilTheTraceIsComplete(t *testing.T) {
	whole, err := os.ReadFile("recorded/configmap.json")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	jaeger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v3/traces/0af7651916cd43dd8448eb211c80319c" {
			http.NotFound(w, r)
			return
		}
		switch asked.Add(1) {
		case 1: // Jaeger knows nothing yet
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"error": {"httpCode": 404, "message": "No traces found"}}`)
		case 2: // … stumbles
			http.Error(w, "busy", http.StatusServiceUnavailable)
		case 3: // … has the first batch
			fmt.Fprint(w, `{"result": {"resourceSpans": []}}`)
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
			http.ServeFile(w, r, "recorded/configmap.json")
		default: // the second question hangs until it is given up
			<-r.Context().Done()
		}
	}))
	defer jaeger.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
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
	for name, c := range map[string]struct {
		kind     tracestore.Kind
		answer   http.HandlerFunc
		notFound bool
		want     string
	}{
		"no Jaeger": {answer: http.NotFound, want: "has no query API of Jaeger 2"},
		"a Jaeger 1": {answer: func(w http.ResponseWriter, _ *http.Request) { // its web interface answers whatever it does not know
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprint(w, "<html>")
		}, want: "page for people"},
		"Jaeger, no such trace": {answer: func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"error":{"httpCode":404,"message":"No traces found"}}`, http.StatusNotFound)
		}, notFound: true},
		"Tempo, no such trace": {kind: tracestore.Tempo, answer: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
		}, notFound: true},
		"no Tempo": {kind: tracestore.Tempo, answer: http.NotFound, want: "has no query API of Tempo"},
		"a login":  {answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, want: "wants a header"},
		"a broken one": {answer: func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "busy\nstack", http.StatusServiceUnavailable)
		}, want: "503 Service Unavailable: busy"},
		"another trace": {answer: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, everyField) }, want: "answered with trace"},
		"a login elsewhere": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://login.invalid/?token=1", http.StatusFound)
		}, want: "it sends on to login.invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(c.answer)
			defer server.Close()
			client := &tracestore.Client{Kind: c.kind, BaseURL: server.URL, Header: http.Header{"Authorization": {"Basic c2VjcmV0"}}}
			_, err := client.Trace(t.Context(), "0af7651916cd43dd8448eb211c80319c")
			if errors.Is(err, tracestore.ErrNotFound) != c.notFound {
				t.Errorf("%v, want ErrNotFound: %t", err, c.notFound)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("%v, want an error that contains %q", err, c.want)
			}
		})
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	if _, err := (&tracestore.Client{BaseURL: gone.URL}).Trace(t.Context(), "1"); err == nil || errors.Is(err, tracestore.ErrNotFound) {
		t.Errorf("a server that is gone gives %v, want the network's error", err)
	}
}

func TestHeadersGoWithEveryQuestion(t *testing.T) {
	var got http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		got.Set("path", r.URL.String())
		w.WriteHeader(http.StatusNotFound)
	}))
	defer server.Close()
	client, err := tracestore.Open("tempo="+server.URL+"/tempo/", http.Header{"X-Scope-Orgid": {"team"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Trace(t.Context(), "0af7651916cd43dd8448eb211c80319c"); !errors.Is(err, tracestore.ErrNotFound) {
		t.Error(err)
	}
	if got.Get("X-Scope-OrgID") != "team" || got.Get("path") != "/tempo/api/v2/traces/0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("asked for %s with %v", got.Get("path"), got)
	}
}

func TestFindAsksEachStoreInItsOwnWords(t *testing.T) {
	search := tracestore.Search{
		Service: "kubelet", Attributes: map[string]string{"k8s.pod.uid": `a"b`},
		Start: time.Unix(1700000000, 0), End: time.Unix(1700000060, 0), Limit: 2,
	}
	for kind, c := range map[tracestore.Kind]struct{ query, answer string }{
		tracestore.Jaeger: {
			`/api/traces?end=1700000060000000&limit=2&service=kubelet&start=1700000000000000&tags={"k8s.pod.uid":"a\"b"}`,
			`{"data": [{"traceID": "0000000000000000000000000000000a"}, {"traceID": "b"}, {"traceID": "c"}]}`,
		},
		tracestore.Tempo: {
			`/api/search?end=1700000061&limit=2&q={ resource.service.name = "kubelet" && span."k8s.pod.uid" = "a\"b" }&start=1700000000`,
			`{"traces": [{"traceID": "a"}, {"traceID": "b"}], "metrics": {}}`,
		},
	} {
		t.Run(string(kind), func(t *testing.T) {
			var asked string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked, _ = url.QueryUnescape(r.URL.String())
				fmt.Fprint(w, c.answer)
			}))
			defer server.Close()
			ids, err := (&tracestore.Client{Kind: kind, BaseURL: server.URL}).Find(t.Context(), search)
			if err != nil {
				t.Fatal(err)
			}
			if want := []string{"0000000000000000000000000000000a", "0000000000000000000000000000000b"}; !slices.Equal(ids, want) {
				t.Errorf("found %v, want %v", ids, want)
			}
			if asked != c.query {
				t.Errorf("asked\n%s, want\n%s", asked, c.query)
			}
		})
	}
}

func TestOpenSaysHowToNameAStore(t *testing.T) {
	for spec, want := range map[string]string{
		"":                                 "want",
		"http://localhost:16686":           `want "jaeger=URL" or "tempo=URL"`,
		"zipkin=http://localhost":          `want "jaeger=URL"`,
		"jaeger=localhost:16686":           "with http:// or https://",
		"jaeger=":                          "with http:// or https://",
		"jaeger=ftp://localhost":           "with http:// or https://",
		"tempo=https://me:hunter2@tempo":   "a password does not belong into a URL",
		"tempo=https:// me:hunter2@tempo":  "want",
		"https://me:hunter2@tempo.example": "want",
		"jaeger=http://localhost/?x=1":     "without ? and #",
	} {
		_, err := tracestore.Open(spec, nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q gives %v, want an error with %q and no password", spec, err, want)
		}
	}
	for spec, page := range map[string]string{
		"jaeger=http://localhost:16686/": "http://localhost:16686/trace/a",
		"jaeger=https://x/jaeger":        "https://x/jaeger/trace/a",
		"tempo=https://x/tempo":          "",
	} {
		client, err := tracestore.Open(spec, nil)
		if err != nil {
			t.Errorf("%s: %v", spec, err)
		} else if got := client.Page("a"); got != page {
			t.Errorf("%s has the page %q, want %q", spec, got, page)
		}
	}
}
