package main

// The proxy between the command and the API server. In: requests that carry the
// one-time token. Out: the same requests with the user's real credentials, each under
// a CLIENT span and with its trace context. Errors: a request without the token is
// answered 401 and goes nowhere; where the API server cannot be reached, 502.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const (
	// tracerName is the instrumentation scope of the command's own span; the calls'
	// is otelhttp.
	tracerName = "github.com/tracehook/tracehook/cmd/tracehook"

	tokenBytes = 32
	// certificateLifetime outlasts any `kubectl get --watch`; the key never leaves memory.
	certificateLifetime = 365 * 24 * time.Hour

	// A command that has ended has closed its connections, and what it had open ends
	// by itself within drainTime. closeTime is for what had to be cut.
	drainTime = 500 * time.Millisecond
	closeTime = 2 * time.Second
)

type traceProxyOptions struct {
	Config         *rest.Config // the API server and the real credentials
	TracerProvider trace.TracerProvider
	FirstAnswer    func()    // runs once, after the API server's first answer; nil: nothing
	Random         io.Reader // the token's source
	Now            time.Time // the certificate's begin
}

// traceProxy serves one command on the loopback interface.
type traceProxy struct {
	url         string // https://127.0.0.1:PORT
	certificate []byte // PEM, self-signed
	token       string

	calls   atomic.Int64 // requests with the token
	refused atomic.Int64 // requests without

	target      *url.URL
	reverse     *httputil.ReverseProxy
	traced      http.RoundTripper
	firstAnswer sync.Once
	onAnswer    func()
	open        openCalls
	server      *http.Server
	cancel      context.CancelFunc
}

// startTraceProxy listens and serves until close. ctx holds the span that the calls'
// spans become children of.
func startTraceProxy(ctx context.Context, o traceProxyOptions) (*traceProxy, error) {
	target, _, err := rest.DefaultServerUrlFor(o.Config)
	if err != nil {
		return nil, fmt.Errorf("read the API server's address: %w", err)
	}
	upstream, err := newUpstream(o.Config)
	if err != nil {
		return nil, fmt.Errorf("take up the kubeconfig's credentials: %w", err)
	}
	token := make([]byte, tokenBytes)
	if _, err := io.ReadFull(o.Random, token); err != nil {
		return nil, fmt.Errorf("make the one-time token: %w", err)
	}
	certificate, err := newLoopbackCertificate(o.Now)
	if err != nil {
		return nil, fmt.Errorf("make the proxy's certificate: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the command: %w", err)
	}

	p := &traceProxy{
		url:         "https://" + listener.Addr().String(),
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}),
		token:       base64.RawURLEncoding.EncodeToString(token),
		target:      target,
		onAnswer:    o.FirstAnswer,
	}
	p.traced = otelhttp.NewTransport(upstream,
		otelhttp.WithTracerProvider(o.TracerProvider),
		otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()),
		otelhttp.WithPropagators(propagation.TraceContext{}),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return callOf(r).spanName }),
	)
	p.reverse = &httputil.ReverseProxy{
		Rewrite:       p.rewrite,
		Transport:     roundTripper(p.roundTrip),
		FlushInterval: -1, // watches and logs: each piece as it comes
		ErrorHandler:  unreachable,
		ErrorLog:      silent, // the command says itself what it could not read
	}
	ctx, p.cancel = context.WithCancel(ctx)
	p.server = &http.Server{
		Handler:           p,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          silent, // strangers that fail the handshake
	}
	go func() { _ = p.server.ServeTLS(listener, "", "") }() // ends with close
	return p, nil
}

var silent = log.New(io.Discard, "", 0)

// close refuses new calls, gives those under way a moment to end, and ends the rest,
// so that every span has ended when it returns.
func (p *traceProxy) close() {
	p.open.wait(drainTime)
	_ = p.server.Close() // its error would be the listener's, which is closed in any case
	p.cancel()           // upgraded connections are no longer the server's
	p.open.wait(closeTime)
}

func (p *traceProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+p.token)) != 1 {
		p.refused.Add(1)
		answerStatus(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized,
			"this proxy of `tracehook trace` serves only the command that it was started for")
		return
	}
	p.calls.Add(1)
	p.reverse.ServeHTTP(w, r)
}

// rewrite aims a request at the API server and takes the token and any trace context
// off: the real credentials and the call's own context are put on by the transports.
func (p *traceProxy) rewrite(r *httputil.ProxyRequest) {
	r.SetURL(p.target)
	r.Out.URL.RawQuery = r.In.URL.RawQuery // as it came, also where net/url cannot read it
	for _, name := range []string{"Authorization", "Traceparent", "Tracestate", "Baggage"} {
		r.Out.Header.Del(name)
	}
}

// call is what the transports on both sides of otelhttp know of a request.
type call struct {
	spanName string
	template string   // path with placeholders, "" where the path is not the API's
	url      *url.URL // where the request really goes
}

type callKey struct{}

func callOf(r *http.Request) call {
	c, _ := r.Context().Value(callKey{}).(call)
	return c
}

// roundTrip shows otelhttp, which records a request's URL, nothing but what a span
// may hold. The query of an exec is the command line to execute, and a proxied path is
// a stranger's. newUpstream puts the real URL back.
func (p *traceProxy) roundTrip(r *http.Request) (*http.Response, error) {
	prefix := strings.TrimSuffix(p.target.EscapedPath(), "/")
	template, visible := apiRoute(strings.TrimPrefix(r.URL.EscapedPath(), prefix))
	c := call{spanName: methodName(r.Method), template: template, url: r.URL}
	if template != "" {
		c.spanName += " " + template
	}
	shown := r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	// Opaque, because the path is escaped already.
	shown.URL = &url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Opaque: "//" + r.URL.Host + prefix + visible}

	p.open.add()
	response, err := p.traced.RoundTrip(shown)
	if err != nil {
		p.open.done()
		return nil, err
	}
	if p.onAnswer != nil {
		p.firstAnswer.Do(p.onAnswer)
	}
	response.Body = onClose(response.Body, p.open.done)
	return response, nil
}

// newUpstream is the way to the API server with the user's credentials.
func newUpstream(config *rest.Config) (http.RoundTripper, error) {
	config = rest.CopyConfig(config)
	config.DisableCompression = true // what the command asks for goes through as it is
	ordinary, err := rest.TransportFor(config)
	if err != nil {
		return nil, err
	}
	// exec, attach and port-forward take the connection over (SPDY, WebSocket), which
	// HTTP/2 does not offer.
	config.NextProtos = []string{"http/1.1"}
	upgrading, err := rest.TransportFor(config)
	if err != nil {
		return nil, err
	}
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		c := callOf(r)
		if c.template != "" {
			trace.SpanFromContext(r.Context()).SetAttributes(semconv.URLTemplate(c.template))
		}
		r = r.WithContext(r.Context())
		r.URL = c.url
		if r.Header.Get("Upgrade") != "" {
			return upgrading.RoundTrip(r)
		}
		response, err := ordinary.RoundTrip(r)
		if err == nil {
			response.Body = &hungUpBody{ReadCloser: response.Body, ctx: r.Context()}
		}
		return response, err
	}), nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// hungUpBody ends plainly when the command has hung up. That is how every watch ends,
// and otelhttp would take it for an error.
type hungUpBody struct {
	io.ReadCloser
	ctx context.Context
}

func (b *hungUpBody) Read(into []byte) (int, error) {
	n, err := b.ReadCloser.Read(into)
	if err != nil && b.ctx.Err() != nil {
		err = io.EOF
	}
	return n, err
}

// onClose runs done once body has been closed. The body of an upgraded connection can
// be written to, and stays so.
func onClose(body io.ReadCloser, done func()) io.ReadCloser {
	closing := &closingBody{ReadCloser: body, done: done}
	if writer, ok := body.(io.Writer); ok {
		return struct {
			io.ReadCloser
			io.Writer
		}{closing, writer}
	}
	return closing
}

type closingBody struct {
	io.ReadCloser
	done func()
	once sync.Once
}

func (b *closingBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.done)
	return err
}

// openCalls counts the calls whose spans have not ended. The zero value is ready.
type openCalls struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n falls to 0; nil where nobody waits
}

func (o *openCalls) add() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n++
}

func (o *openCalls) done() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n--
	if o.n == 0 && o.idle != nil {
		close(o.idle)
		o.idle = nil
	}
}

func (o *openCalls) wait(atMost time.Duration) {
	o.mu.Lock()
	if o.n == 0 {
		o.mu.Unlock()
		return
	}
	if o.idle == nil {
		o.idle = make(chan struct{})
	}
	idle := o.idle
	o.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(atMost):
	}
}

// methodName keeps span names few: a client may make up methods of its own.
func methodName(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "HTTP"
}

func unreachable(w http.ResponseWriter, _ *http.Request, err error) {
	answerStatus(w, http.StatusBadGateway, metav1.StatusReasonServiceUnavailable,
		fmt.Sprintf("reach the API server through `tracehook trace`: %v", err))
}

// answerStatus answers as the API server would, so that the command can show why.
func answerStatus(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{ // whoever asked may have left
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure,
		Message:  message,
		Reason:   reason,
		Code:     int32(code),
	})
}

// newLoopbackCertificate makes a key and a certificate for 127.0.0.1 that vouches for
// nothing but itself. The hour before now is for clocks that the command might see
// differently, in a container say.
func newLoopbackCertificate(now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := x509.Certificate{
		Subject:               pkix.Name{CommonName: "tracehook trace"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(certificateLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
