package webhook

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel/sdk/metric"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// testCertificate borrows the certificate that net/http/httptest carries.
func testCertificate(t *testing.T) *tls.Certificate {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	return &s.TLS.Certificates[0]
}

func startServer(t *testing.T, o ServerOptions) (s *Server, stop context.CancelFunc, ended chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Address = l.Addr().String()
	l.Close()
	certificate := testCertificate(t)
	o.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil }
	s, err = NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	for deadline := time.Now().Add(10 * time.Second); s.Ready(nil) != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not ready after 10s: %v", s.Ready(nil))
		}
	}
	return s, cancel, ended
}

func dial(t *testing.T, s *Server, protocols ...string) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", s.options.Address, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDrainingAnswersWhatIsUnderWayAndSendsKeptConnectionsAway(t *testing.T) {
	const delay = 3 * time.Second // a new connection is made in it
	entered, release := make(chan bool), make(chan bool)
	s, stop, ended := startServer(t, ServerOptions{
		ShutdownDelay: delay,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "slow" {
				entered <- true
				<-release
			}
			_, _ = io.WriteString(w, "answer")
		}),
	})

	kept := dial(t, s)
	if got := roundTrip(t, kept, "/mutate"); !strings.HasPrefix(got, "200") || strings.Contains(got, "close") {
		t.Fatalf("before the drain: %s", got)
	}
	slow := dial(t, s)
	answered := make(chan string, 1)
	go func() { answered <- roundTrip(t, slow, "/mutate?slow") }()
	<-entered

	stop()
	for s.Ready(nil) == nil {
		time.Sleep(time.Millisecond)
	}
	if got := roundTrip(t, kept, "/mutate"); got != "200 close answer" {
		t.Errorf("on a kept connection while draining: %q, want an answer and Connection: close", got)
	}
	if got := roundTrip(t, dial(t, s), "/mutate"); got != "200 close answer" {
		t.Errorf("on a new connection during the delay: %q, want an answer", got)
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with %v while a call was under way", err)
	case <-time.After(delay + 300*time.Millisecond):
	}
	close(release)
	if got := <-answered; !strings.HasSuffix(got, "answer") {
		t.Errorf("the call under way got %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
	if _, err := net.Dial("tcp", s.options.Address); err == nil {
		t.Error("still listening")
	}
}

func roundTrip(t *testing.T, c *tls.Conn, path string) string {
	t.Helper()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Errorf("POST %s: %v", path, err)
		return ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.Close {
		return fmt.Sprintf("%d close %s", resp.StatusCode, body)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

func TestHTTP2IsServedOnlyWhenAskedFor(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		s, stop, ended := startServer(t, ServerOptions{Handler: http.NotFoundHandler(), HTTP2: enabled})
		want := "http/1.1"
		if enabled {
			want = "h2"
		}
		if got := dial(t, s, "h2", "http/1.1").ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("HTTP2 %t: negotiated %q, want %q", enabled, got, want)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestAnAddressThatCannotBeServedIsAnError(t *testing.T) {
	for _, address := range []string{"", "9443", ":0", ":http", ":99999"} {
		if _, err := NewServer(ServerOptions{Address: address}); err == nil {
			t.Errorf("%q: no error", address)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := NewServer(ServerOptions{Address: l.Addr().String(), Handler: http.NotFoundHandler(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("port in use: got %v, want an error that names the address", err)
	}
}

// A body that comes drop by drop is cut off at the deadline that the caller gave, whatever the path and the answer.
func TestSlowBodiesAreAnsweredOnEveryPathByTheDeadline(t *testing.T) {
	handler, err := New(Options{MaxBodyBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/mutate", handler)
	mux.HandleFunc("/denied", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	for _, http2 := range []bool{false, true} {
		s, stop, ended := startServer(t, ServerOptions{Handler: mux, HTTP2: http2, ShutdownTimeout: 100 * time.Millisecond})
		var group sync.WaitGroup
		for _, c := range []struct {
			name, method, path, header string
			length                     int64
			want                       int
		}{
			{"in time for a review", "POST", "/mutate?timeout=1s", "application/json", 100_000, 400},
			{"chunked", "POST", "/mutate?timeout=1s", "application/json", -1, 400},
			{"of the wrong type", "POST", "/mutate?timeout=20s", "text/plain", 100_000, 415},
			{"chunked, of the wrong type", "POST", "/mutate?timeout=20s", "text/plain", -1, 415},
			{"with the wrong method", "PUT", "/mutate?timeout=20s", "application/json", 100_000, 405},
			{"too large", "POST", "/mutate?timeout=20s", "application/json", 2 << 20, 413},
			{"nowhere", "POST", "/nowhere?timeout=20s", "application/json", 100_000, 404},
			{"denied", "POST", "/denied", "application/json", 100_000, 403},
		} {
			group.Go(func() {
				slow, drip := io.Pipe()
				done := make(chan struct{})
				go func() {
					for {
						select {
						case <-done:
							drip.Close()
							return
						case <-time.After(50 * time.Millisecond):
							if _, err := drip.Write([]byte(" ")); err != nil {
								return
							}
						}
					}
				}()
				defer close(done)
				client := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: http2, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
				r, err := http.NewRequestWithContext(t.Context(), c.method, "https://"+s.options.Address+c.path, slow)
				if err != nil {
					t.Error(err)
					return
				}
				r.ContentLength = c.length
				r.Header.Set("Content-Type", c.header)
				start := time.Now()
				resp, err := client.Do(r)
				if err != nil {
					t.Errorf("HTTP/2 %t, %s: %v after %s", http2, c.name, err, time.Since(start))
					return
				}
				resp.Body.Close()
				if took := time.Since(start); resp.StatusCode != c.want || took > 10*time.Second {
					t.Errorf("HTTP/2 %t, %s: %d after %s, want %d", http2, c.name, resp.StatusCode, took, c.want)
				}
			})
		}
		group.Wait()
		// The connections are gone, too, or at least nothing of them is awaited.
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestAWellBehavedConnectionIsKeptAfterARefusal(t *testing.T) {
	handler, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, _, _ := startServer(t, ServerOptions{Handler: handler})
	c := dial(t, s)
	in := bufio.NewReader(c)
	for i := range 3 {
		fmt.Fprintf(c, "POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n%100000s", "")
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnsupportedMediaType || resp.Close {
			t.Errorf("call %d: %s, closed %t", i, resp.Status, resp.Close)
		}
		time.Sleep(2 * lingering) // the deadline for the rest of a body is none for the next request
	}
}

func TestConnectionsAreKeptLongerThanAnAPIServerKeepsThem(t *testing.T) {
	if DefaultIdleTimeout < 100*time.Second {
		t.Errorf("idle connections are kept for %s; an API server keeps them for 90 s", DefaultIdleTimeout)
	}
	// The same with short times: neither the header's timeout nor any other ends an idle connection.
	s, _, _ := startServer(t, ServerOptions{Handler: http.NotFoundHandler(), IdleTimeout: 6 * time.Second})
	used, unused := dial(t, s), dial(t, s)
	roundTrip(t, used, "/mutate")
	time.Sleep(2 * time.Second)
	if got := roundTrip(t, used, "/mutate"); !strings.HasPrefix(got, "404") {
		t.Errorf("a used connection: %q", got)
	}
	if got := roundTrip(t, unused, "/mutate"); !strings.HasPrefix(got, "404") {
		t.Errorf("an unused connection: %q", got)
	}
	_ = used.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := used.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the timeout: %v, want EOF", err)
	}
}

func TestTheEndDoesNotWaitForCallersThatDoNotEnd(t *testing.T) {
	var log bytes.Buffer
	var entered atomic.Int32
	reader := metric.NewManualReader()
	s, stop, ended := startServer(t, ServerOptions{
		ShutdownTimeout: 500 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		MeterProvider: metric.NewMeterProvider(metric.WithReader(reader)),
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			entered.Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
		}),
	})
	const slow = 20
	for range slow {
		fmt.Fprint(dial(t, s), "POST /mutate?timeout=30s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
	}
	for deadline := time.Now().Add(time.Minute); entered.Load() < slow && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	start := time.Now()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 20*time.Second { // the calls may take 30 s
		t.Errorf("the end took %s", took)
	}
	if text := log.String(); !strings.Contains(text, "connections cut") || !strings.Contains(text, fmt.Sprintf("connections=%d", slow)) {
		t.Errorf("log: %s", text)
	}
}

func TestAManagerTakesTheServerForItsOwn(t *testing.T) {
	for name, wrap := range map[string]func(*Server) ctrlwebhook.Server{
		"plain":        func(s *Server) ctrlwebhook.Server { return s },
		"instrumented": func(s *Server) ctrlwebhook.Server { return InstrumentServer(s, InstrumentOptions{}) },
	} {
		t.Run(name, func(t *testing.T) {
			certificate := testCertificate(t)
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address := listener.Addr().String()
			listener.Close()
			server, err := NewServer(ServerOptions{Address: address, IdleTimeout: time.Minute,
				GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil }})
			if err != nil {
				t.Fatal(err)
			}
			manager, err := ctrl.NewManager(&rest.Config{Host: "https://127.0.0.1:1"}, ctrl.Options{
				WebhookServer: wrap(server), Metrics: metricsserver.Options{BindAddress: "0"}, Logger: logr.Discard(),
				MapperProvider: func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return meta.MultiRESTMapper{}, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			manager.GetWebhookServer().Register("/validate", &admission.Webhook{Handler: admission.HandlerFunc(
				func(context.Context, admission.Request) admission.Response { return admission.Allowed("because") })})
			check := manager.GetWebhookServer().StartedChecker()
			if check(nil) == nil {
				t.Error("started before it was")
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- manager.Start(ctx) }()
			for deadline := time.Now().Add(20 * time.Second); check(nil) != nil; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("not started: %v", check(nil))
				}
			}
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			resp, err := client.Post("https://"+address+"/validate?timeout=5s", "application/json", strings.NewReader(testReview))
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !strings.Contains(string(body), `"allowed":true`) || !strings.Contains(string(body), testUID) {
				t.Errorf("the registered hook answered %s %s", resp.Status, body)
			}
			stop()
			if err := <-ended; err != nil {
				t.Errorf("the manager ended with %v", err)
			}
		})
	}
}
