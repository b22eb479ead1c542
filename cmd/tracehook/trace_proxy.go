package main

// The proxy between the command and the API servers. In: requests that carry a one-time
// token. Out: the same requests with the user's real credentials, each under a CLIENT
// span and with its trace context. Errors: a request without a token is answered 401 and
// goes nowhere; where an API server cannot be reached, trace_unreachable.go answers.

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
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

	"github.com/tracehook/tracehook/cmd/tracehook/follow"
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
	Kubeconfig     *userKubeconfig // the API servers and the real credentials
	TracerProvider trace.TracerProvider
	FirstAnswer    func(*rest.Config) // runs once, after the first answer of an API server, with its; nil: nothing
	Random         io.Reader          // the tokens' source
	Now            time.Time          // the certificate's begin
}

// traceProxy serves one command on the loopback interface. The path of a request says
// which cluster it is for, the token as which user.
type traceProxy struct {
	url         string            // https://127.0.0.1:PORT
	certificate []byte            // PEM, self-signed
	tokens      map[string]string // of each user

	calls   atomic.Int64 // requests with a token
	refused atomic.Int64 // requests without
	passed  atomic.Bool  // an answer shows that the trace went on below the API server
	failure firstError   // why an API server could not be asked, or did not answer to the end
	seen    follow.Seen  // what the command wrote

	kubeconfig  *userKubeconfig
	users       map[[sha256.Size]byte]string // by the digest of the header Authorization
	prefixes    map[string]string            // of each cluster
	span        trace.SpanContext            // the command's
	bodies      *bodyBudget
	upstreams   upstreams
	reverse     *httputil.ReverseProxy
	traced      http.RoundTripper
	firstAnswer sync.Once
	onAnswer    func(*rest.Config)
	open        openCalls
	connections atomic.Int64 // of the command, open
	server      *http.Server
	cancel      context.CancelFunc
}

// startTraceProxy listens and serves until close. ctx holds the span that the calls'
// spans become children of.
func startTraceProxy(ctx context.Context, o traceProxyOptions) (*traceProxy, error) {
	certificate, err := newLoopbackCertificate(o.Now)
	if err != nil {
		return nil, fmt.Errorf("make the proxy's certificate: %w", err)
	}
	p := &traceProxy{
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}),
		tokens:      map[string]string{},
		kubeconfig:  o.Kubeconfig,
		users:       map[[sha256.Size]byte]string{},
		prefixes:    prefixesOf(o.Kubeconfig),
		span:        trace.SpanContextFromContext(ctx),
		bodies:      newBodyBudget(keptBytesTotal),
		onAnswer:    o.FirstAnswer,
	}
	for _, user := range o.Kubeconfig.users {
		token := make([]byte, tokenBytes)
		if _, err := io.ReadFull(o.Random, token); err != nil {
			return nil, fmt.Errorf("make a one-time token: %w", err)
		}
		p.tokens[user] = base64.RawURLEncoding.EncodeToString(token)
		p.users[sha256.Sum256([]byte("Bearer "+p.tokens[user]))] = user
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the command: %w", err)
	}
	p.url = "https://" + listener.Addr().String()

	p.traced = otelhttp.NewTransport(roundTripper(p.send),
		otelhttp.WithTracerProvider(o.TracerProvider),
		otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()),
		otelhttp.WithPropagators(propagation.TraceContext{}),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return callOf(r).spanName }),
	)
	p.reverse = &httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		Transport:      roundTripper(p.roundTrip),
		ModifyResponse: redirect,
		FlushInterval:  -1, // watches and logs: each piece as it comes
		ErrorHandler:   p.unreachable,
		ErrorLog:       silent, // the command says itself what it could not read
	}
	ctx, p.cancel = context.WithCancel(ctx)
	p.server = &http.Server{
		Handler:           p,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnState:         p.connectionChanged,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          silent, // strangers that fail the handshake
	}
	go func() { _ = p.server.ServeTLS(listener, "", "") }() // ends with close
	return p, nil
}

// prefixesOf is the path below which each cluster is: none for the current one.
func prefixesOf(k *userKubeconfig) map[string]string {
	current, _ := k.currentCluster()
	prefixes := map[string]string{}
	for i, name := range slices.Sorted(maps.Keys(k.clusters)) {
		if name != current {
			prefixes[name] = "/tracehook/" + strconv.Itoa(i)
		} else {
			prefixes[name] = ""
		}
	}
	return prefixes
}

// urlOf is where the command finds a cluster.
func (p *traceProxy) urlOf(cluster string) string { return p.url + p.prefixes[cluster] }

// clusterOf is the reverse of urlOf: the cluster, and its prefix.
func (p *traceProxy) clusterOf(path string) (cluster, prefix string) {
	for name, candidate := range p.prefixes {
		if rest, ok := strings.CutPrefix(path, candidate); ok && len(candidate) >= len(prefix) && (rest == "" || rest[0] == '/') {
			cluster, prefix = name, candidate
		}
	}
	return cluster, prefix
}

var silent = log.New(io.Discard, "", 0)

// close refuses new calls, gives those under way a moment to end, and ends the rest,
// so that every span has ended when it returns.
func (p *traceProxy) close() {
	p.open.wait(drainTime)
	_ = p.server.Close() // its error would be the listener's, which is closed in any case
	p.cancel()           // upgraded connections are no longer the server's
	p.open.wait(closeTime)
	p.upstreams.closeIdle()
}

// connectionChanged closes what is idle upstream when the command's last connection ends.
// A script's next program then begins with new connections, as it does alone: one that the
// API server has meanwhile closed would cost a request that cannot be sent twice.
func (p *traceProxy) connectionChanged(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		p.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		if p.connections.Add(-1) == 0 {
			p.upstreams.closeIdle()
		}
	}
}

func (p *traceProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, known := p.users[sha256.Sum256([]byte(r.Header.Get("Authorization")))]
	if !known {
		p.refused.Add(1)
		answerStatus(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized,
			"this proxy of `tracehook trace` serves only the command that it was started for")
		return
	}
	p.calls.Add(1)
	cluster, prefix := p.clusterOf(r.URL.Path)
	up, err := p.upstreams.get(clusterUser{cluster, user}, p.kubeconfig.connect)
	if err != nil {
		p.unreachable(w, r, err)
		return
	}
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, call{upstream: up, prefix: prefix, sender: senderOf(r.Header)}))
	r.URL = withoutPrefix(r.URL, prefix)
	p.reverse.ServeHTTP(w, r)
}

// withoutPrefix takes the cluster's prefix, which needs no escaping, off a URL's path.
func withoutPrefix(u *url.URL, prefix string) *url.URL {
	out := *u
	out.Path, out.RawPath = strings.TrimPrefix(u.Path, prefix), strings.TrimPrefix(u.RawPath, prefix)
	return &out
}

// rewrite aims a request at the API server and takes the token and any trace context
// off: the real credentials and the call's own context are put on by the transports.
func (p *traceProxy) rewrite(r *httputil.ProxyRequest) {
	r.SetURL(callOf(r.In).upstream.target)
	r.Out.URL.RawQuery = r.In.URL.RawQuery // as it came, also where net/url cannot read it
	for _, name := range []string{"Authorization", "Traceparent", "Tracestate", "Baggage"} {
		r.Out.Header.Del(name)
	}
}

// redirect keeps the command with the cluster that it asked: where an API server sends it on to a
// path of its own, that path is below the cluster's prefix here.
func redirect(response *http.Response) error {
	c := callOf(response.Request)
	u, err := url.Parse(response.Header.Get("Location"))
	if err != nil || !strings.HasPrefix(u.Path, "/") || u.Host != "" && u.Host != c.upstream.target.Host {
		return nil // the command's affair, as it is alone
	}
	base := strings.TrimSuffix(c.upstream.target.EscapedPath(), "/")
	location := c.prefix + strings.TrimPrefix(u.EscapedPath(), base)
	if u.RawQuery != "" {
		location += "?" + u.RawQuery
	}
	response.Header.Set("Location", location)
	return nil
}

// senderOf is the trace context that the command sent with a request. Two of them are none
// (W3C Trace Context, 3.2.2), and several headers with states are one list (3.3.1.1).
func senderOf(header http.Header) trace.SpanContext {
	if len(header.Values("Traceparent")) != 1 {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{
		"traceparent": header.Get("Traceparent"),
		"tracestate":  strings.Join(header.Values("Tracestate"), ","),
	}))
}

// call is what the transports on both sides of otelhttp know of a request.
type call struct {
	upstream *upstream
	prefix   string            // of the cluster, in the path that the command asked for
	sender   trace.SpanContext // the command's own, if it sent one
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
// a stranger's. send puts the real URL back.
func (p *traceProxy) roundTrip(r *http.Request) (*http.Response, error) {
	c := callOf(r)
	prefix := strings.TrimSuffix(c.upstream.target.EscapedPath(), "/")
	template, visible := apiRoute(strings.TrimPrefix(r.URL.EscapedPath(), prefix))
	c.spanName, c.template, c.url = methodName(r.Method), template, r.URL
	if template != "" {
		c.spanName += " " + template
	}
	ctx := context.WithValue(r.Context(), callKey{}, c)
	if p.isParent(c.sender) {
		ctx = trace.ContextWithRemoteSpanContext(ctx, c.sender)
	}
	shown := r.WithContext(ctx)
	// Opaque, because the path is escaped already.
	shown.URL = &url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Opaque: "//" + r.URL.Host + prefix + visible}

	p.open.add()
	response, err := p.traced.RoundTrip(shown)
	if err != nil {
		p.open.done()
		return nil, err
	}
	if p.onAnswer != nil {
		p.firstAnswer.Do(func() { p.onAnswer(c.upstream.config) })
	}
	response.Body = onClose(response.Body, p.open.done)
	return response, nil
}

// isParent says whether the call's span belongs below sender. A sender that is not recorded leaves
// it below the command's span: below one that nobody exports it would be an orphan. Where nothing
// of this run is recorded, the command's own trace goes on, whichever it is.
func (p *traceProxy) isParent(sender trace.SpanContext) bool {
	switch {
	case !sender.IsValid():
		return false
	case !p.span.IsSampled():
		return true
	}
	return sender.TraceID() == p.span.TraceID() && sender.IsSampled()
}

// send is the innermost transport, below otelhttp.
func (p *traceProxy) send(r *http.Request) (*http.Response, error) {
	c := callOf(r)
	span := trace.SpanFromContext(r.Context())
	if c.template != "" {
		span.SetAttributes(semconv.URLTemplate(c.template))
	}
	if c.sender.IsValid() && c.sender.TraceID() != p.span.TraceID() && !p.isParent(c.sender) {
		span.AddLink(trace.Link{SpanContext: c.sender}) // the command's own trace
	}
	r = r.WithContext(r.Context())
	r.URL = c.url
	if r.Header.Get("Upgrade") != "" {
		return c.upstream.upgrading.RoundTrip(r)
	}
	body := p.bodies.keep(r)
	response, err := c.upstream.ordinary.RoundTrip(r)
	if err != nil {
		body.forget()
		return nil, err
	}
	body.answered()
	hungUp := &hungUpBody{ReadCloser: response.Body, ctx: r.Context(), failed: p.failure.add}
	response.Body = onClose(hungUp, body.forget)
	if path := strings.TrimPrefix(c.url.Path, strings.TrimSuffix(c.upstream.target.Path, "/")); follow.Wants(r.Method, path, c.url.RawQuery, response.StatusCode) {
		kept := &answerHead{ReadCloser: response.Body, most: follow.MostAnswer}
		response.Body = onClose(kept, func() { p.seen.Answer(path, kept.content.Bytes(), c.upstream.config) })
	}
	if mayHoldStamp(r.Method, response) && !p.passed.Load() {
		response.Body = &stampFinder{ReadCloser: response.Body, root: p.span, sender: c.sender, found: &p.passed}
	}
	return response, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// hungUpBody ends plainly when the command has hung up. That is how every watch ends,
// and otelhttp would take it for an error.
type hungUpBody struct {
	io.ReadCloser
	ctx    context.Context
	failed func(error) // hears of every other end
}

func (b *hungUpBody) Read(into []byte) (int, error) {
	n, err := b.ReadCloser.Read(into)
	switch {
	case err == nil || err == io.EOF:
	case b.ctx.Err() != nil:
		err = io.EOF
	default:
		b.failed(err)
	}
	return n, err
}

// answerHead keeps the beginning of what is read.
type answerHead struct {
	io.ReadCloser
	most    int
	content bytes.Buffer
}

func (b *answerHead) Read(into []byte) (int, error) {
	n, err := b.ReadCloser.Read(into)
	b.content.Write(into[:min(n, b.most-b.content.Len())])
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
