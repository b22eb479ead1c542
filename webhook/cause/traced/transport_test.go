package traced_test

import (
	"bufio"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/webhook/cause/traced"
)

// inSpan is a context as a reconciler's.
func inSpan(t *testing.T, provider trace.TracerProvider) context.Context {
	t.Helper()
	ctx, span := provider.Tracer("test").Start(t.Context(), "reconcile")
	t.Cleanup(func() { span.End() })
	return ctx
}

func get(ctx context.Context, rt http.RoundTripper, url string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return (&http.Client{Transport: rt}).Do(r)
}

func TestClientGoReachesTheTransportBelow(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	config := &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), ServerName: "example.com"}}
	plain, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	config.Wrap(traced.Transport(nil))
	wrapped, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	want, err := utilnet.TLSClientConfig(plain)
	if err != nil {
		t.Fatal(err)
	}
	got, err := utilnet.TLSClientConfig(wrapped)
	if err != nil || got == nil || got.ServerName != want.ServerName {
		t.Errorf("got TLS configuration %v, %v, want that of the transport below", got, err)
	}
	if dial, err := utilnet.DialerFor(wrapped); err != nil || dial == nil {
		t.Errorf("got no dialer: %v", err)
	}
}

func TestIdleConnectionsAreClosedThroughIt(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	closed := make(chan struct{}, 1)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	server.Start()
	defer server.Close()
	for name, below := range map[string]http.RoundTripper{"a transport": &http.Transport{}, "a wrapped one": utilWrapped{&http.Transport{}}} {
		t.Run(name, func(t *testing.T) {
			client := http.Client{Transport: traced.Transport(nil)(below)}
			resp, err := client.Get(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			client.CloseIdleConnections()
			<-closed // or the test's deadline
		})
	}
	// And of what has none it asks for nothing.
	(&http.Client{Transport: traced.Transport(nil)(roundTripper(nil))}).CloseIdleConnections()
}

// utilWrapped is a wrapper as client-go's are: it says what is in it, and no more.
type utilWrapped struct{ next http.RoundTripper }

func (w utilWrapped) RoundTrip(r *http.Request) (*http.Response, error) { return w.next.RoundTrip(r) }
func (w utilWrapped) WrappedRoundTripper() http.RoundTripper            { return w.next }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestARequestIsCancelledThroughItAndNotChanged(t *testing.T) {
	recorder, provider := record()
	arrived := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a server sees that the caller has gone only after that
		close(arrived)
		<-r.Context().Done()
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(inSpan(t, provider))
	go func() { <-arrived; cancel() }()
	r, _ := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, strings.NewReader("body"))
	resp, err := traced.Transport(provider)(http.DefaultTransport).RoundTrip(r)
	if err == nil {
		resp.Body.Close()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	if len(r.Header) != 0 || r.GetBody == nil {
		t.Errorf("the caller's request was changed: %v", r.Header)
	}
	if spans := recorder.Ended(); len(spans) != 1 || spans[0].Status().Code != codes.Error {
		t.Errorf("got spans %v, want one with an error", spans)
	}
}

// A protocol that is switched to (exec, port-forward): the body is the connection.
func TestAConnectionThatIsTakenOverCanBeWrittenTo(t *testing.T) {
	_, provider := record()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := both.ReadString('\n')
		_, _ = io.WriteString(conn, line)
	}))
	defer server.Close()
	ctx := inSpan(t, provider)
	r, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "echo")
	resp, err := traced.Transport(provider)(http.DefaultTransport).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		t.Fatalf("the body is a %T, which cannot be written", resp.Body)
	}
	_, _ = io.WriteString(conn, "hello\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestATransportThatBreaksTheRulesIsAnError(t *testing.T) {
	recorder, provider := record()
	ctx := inSpan(t, provider)
	for name, below := range map[string]roundTripper{
		"neither an answer nor an error": func(*http.Request) (*http.Response, error) { return nil, nil },
		"an error":                       func(*http.Request) (*http.Response, error) { return nil, errors.New("out of luck") },
	} {
		if resp, err := get(ctx, traced.Transport(provider)(below), "http://example.com"); err == nil {
			resp.Body.Close()
			t.Errorf("%s: no error", name)
		}
	}
	// An answer without a body, as fakes in unit tests make it.
	resp, err := get(ctx, traced.Transport(provider)(roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK}, nil
	})), "http://example.com")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if spans := recorder.Ended(); len(spans) != 3 {
		t.Errorf("got spans %v, want three", spans)
	}
}

func TestWithoutATransportTheDefaultIsWrapped(t *testing.T) {
	wrapped := traced.Transport(sdktrace.NewTracerProvider())(nil)
	if below := wrapped.(utilnet.RoundTripperWrapper).WrappedRoundTripper(); below != http.DefaultTransport {
		t.Errorf("below is %v", below)
	}
}
