package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// startAPIServer serves handler as an API server does: over TLS, with HTTP/2 for
// those that want it, and asking for client certificates.
func startAPIServer(t *testing.T, handler http.HandlerFunc) (*httptest.Server, *rest.Config) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, &rest.Config{
		Host:            server.URL,
		BearerToken:     "real",
		TLSClientConfig: rest.TLSClientConfig{CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})},
	}
}

// startTestProxy is a proxy below a root span, and what it records. The client trusts
// its certificate and sends its token, as a command with the temporary kubeconfig does.
func startTestProxy(t *testing.T, config *rest.Config) (p *traceProxy, client *http.Client, root trace.Span, recorder *tracetest.SpanRecorder) {
	t.Helper()
	recorder = tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	ctx, root := provider.Tracer("test").Start(context.Background(), "root")
	p, err := startTraceProxy(ctx, traceProxyOptions{Kubeconfig: oneCluster(config, "default"), TracerProvider: provider, Random: rand.Reader, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	client, err = rest.HTTPClientFor(&rest.Config{Host: p.url, BearerToken: tokenOf(p), DisableCompression: true,
		TLSClientConfig: rest.TLSClientConfig{CAData: p.certificate}})
	if err != nil {
		t.Fatal(err)
	}
	return p, client, root, recorder
}

func tokenOf(p *traceProxy) string { return p.tokens["tracehook"] }

// get reads url to its end.
func get(t *testing.T, client *http.Client, url string, header http.Header) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		request.Header[name] = values
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

// oneSpan closes the proxy and returns the span of the only call that it made.
func oneSpan(t *testing.T, p *traceProxy, recorder *tracetest.SpanRecorder) sdktrace.ReadOnlySpan {
	t.Helper()
	p.close()
	spans := recorder.Ended()
	if len(spans) != 1 {
		t.Fatalf("got %d spans, want 1: %v", len(spans), spanNames(spans))
	}
	return spans[0]
}

func spanNames(spans []sdktrace.ReadOnlySpan) []string {
	var names []string
	for _, s := range spans {
		names = append(names, s.Name())
	}
	return names
}

func TestARequestWithoutTheTokenNeverReachesTheAPIServer(t *testing.T) {
	var reached atomic.Int64
	_, config := startAPIServer(t, func(http.ResponseWriter, *http.Request) { reached.Add(1) })
	p, client, _, recorder := startTestProxy(t, config)
	refused := []string{"", "Bearer", "Bearer ", "Bearer real", tokenOf(p), "bearer " + tokenOf(p), "Basic " + tokenOf(p), "Bearer " + tokenOf(p) + "x", "Bearer " + tokenOf(p)[:len(tokenOf(p))-1]}
	anonymous := *client
	anonymous.Transport = &http.Transport{TLSClientConfig: pinned(t, p)}
	for _, authorization := range refused {
		status, body := get(t, &anonymous, p.url+"/version", http.Header{"Authorization": {authorization}})
		var answer metav1.Status
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Errorf("Authorization %q: %v in %q", authorization, err, body)
		}
		if status != http.StatusUnauthorized || answer.Reason != metav1.StatusReasonUnauthorized || !strings.Contains(answer.Message, "tracehook trace") {
			t.Errorf("Authorization %q: got %d and %q, want 401 and a Status that says who refuses", authorization, status, body)
		}
	}
	if reached.Load() > 0 || len(recorder.Started()) > 1 || p.calls.Load() > 0 || p.refused.Load() != int64(len(refused)) {
		t.Errorf("of %d refused requests, %d reached the API server, %d were counted as calls and %d as refused; spans: %d",
			len(refused), reached.Load(), p.calls.Load(), p.refused.Load(), len(recorder.Started())-1)
	}

	// The positive control: with the token, the same request gets there.
	if status, _ := get(t, client, p.url+"/version", nil); status != http.StatusOK || reached.Load() != 1 {
		t.Errorf("with the token: got %d, and %d requests reached the API server", status, reached.Load())
	}
}

func pinned(t *testing.T, p *traceProxy) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(p.certificate) {
		t.Fatal("the proxy's certificate is no PEM")
	}
	return &tls.Config{RootCAs: roots}
}

func TestTokensAreLongAndNeverTheSame(t *testing.T) {
	_, config := startAPIServer(t, nil)
	first, _, _, _ := startTestProxy(t, config)
	second, _, _, _ := startTestProxy(t, config)
	if tokenOf(first) == tokenOf(second) || len(tokenOf(first)) < 43 { // 32 bytes in base64
		t.Errorf("got the tokens %q and %q", tokenOf(first), tokenOf(second))
	}
	if bytes.Equal(first.certificate, second.certificate) {
		t.Error("two proxies have the same certificate")
	}
}

func TestTheProxysCertificateIsForTheLoopbackAddressAndSignsNothing(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	certificate, err := newLoopbackCertificate(now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	for _, c := range []struct {
		name string
		at   time.Time
		ok   bool
	}{
		{"127.0.0.1", now, true},
		{"127.0.0.1", now.Add(-59 * time.Minute), true},
		{"127.0.0.1", now.Add(-61 * time.Minute), false},
		{"127.0.0.1", now.Add(certificateLifetime + time.Minute), false},
		{"127.0.0.2", now, false},
		{"localhost", now, false},
	} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: c.name, CurrentTime: c.at})
		if (err == nil) != c.ok {
			t.Errorf("%s at %s: got %v, want it valid: %t", c.name, c.at, err, c.ok)
		}
	}
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Error("the certificate could sign others")
	}
}

// newClientCertificate is a certificate and its key, PEM.
func newClientCertificate(t *testing.T, name string) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func TestTheAPIServerSeesTheRealCredentialsWhateverTheyAre(t *testing.T) {
	certificate, key := newClientCertificate(t, "alice")
	for _, c := range []struct {
		name   string
		change func(*rest.Config)
		want   string
	}{
		{"a token", func(*rest.Config) {}, "Bearer real"},
		{"a token in a file", func(c *rest.Config) { c.BearerToken, c.BearerTokenFile = "", writeFile(t, "from file") }, "Bearer from file"},
		{"a password", func(c *rest.Config) { c.BearerToken, c.Username, c.Password = "", "alice", "secret" }, "Basic YWxpY2U6c2VjcmV0"},
		{"a client certificate", func(c *rest.Config) { c.BearerToken, c.CertData, c.KeyData = "", certificate, key }, "certificate of alice"},
		{"a credential plugin", func(c *rest.Config) {
			c.BearerToken = ""
			c.ExecProvider = &clientcmdapi.ExecConfig{
				APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: clientcmdapi.NeverExecInteractiveMode, Command: "echo",
				Args: []string{`{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"from plugin"}}`},
			}
		}, "Bearer from plugin"},
		{"impersonation", func(c *rest.Config) { c.Impersonate.UserName = "bob" }, "Bearer real as bob"},
		{"no verification", func(c *rest.Config) { c.CAData, c.Insecure = nil, true }, "Bearer real"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				who := r.Header.Get("Authorization")
				if len(r.TLS.PeerCertificates) > 0 {
					who += "certificate of " + r.TLS.PeerCertificates[0].Subject.CommonName
				}
				if user := r.Header.Get("Impersonate-User"); user != "" {
					who += " as " + user
				}
				fmt.Fprint(w, who)
			})
			c.change(config)
			p, client, _, _ := startTestProxy(t, config)
			if _, got := get(t, client, p.url+"/version", nil); got != c.want {
				t.Errorf("the API server saw %q, want %q", got, c.want)
			}
		})
	}
}

func TestARequestArrivesAsItWasSent(t *testing.T) {
	type seen struct{ method, uri, body, accept, agent, encoding, connection, baggage, tracestate string }
	arrived := make(chan seen, 1)
	_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		arrived <- seen{r.Method, r.RequestURI, string(body), r.Header.Get("Accept"), r.Header.Get("User-Agent"), r.Header.Get("Accept-Encoding"),
			r.Header.Get("Connection"), r.Header.Get("Baggage"), r.Header.Get("Tracestate")}
		w.Header().Set("Warning", `299 - "careful"`)
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, "conflict")
	})
	config.Host += "/k8s/clusters/c-1" // as Rancher has it
	p, client, _, _ := startTestProxy(t, config)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, p.url+"/apis/x/v1/things/a%2Fb?b=2&a=1;c=%zz", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Accept": "application/json", "User-Agent": "kubectl/v1",
		"Baggage": "user=alice", "Tracestate": "a=b", "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"} {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	want := seen{method: "PATCH", uri: "/k8s/clusters/c-1/apis/x/v1/things/a%2Fb?b=2&a=1;c=%zz", body: "{}", accept: "application/json", agent: "kubectl/v1"} // and no offer of compression
	if got := <-arrived; got != want {
		t.Errorf("the API server saw\n%+v\nwant\n%+v", got, want)
	}
	if response.StatusCode != http.StatusConflict || response.Header.Get("Warning") != `299 - "careful"` || string(answer) != "conflict" {
		t.Errorf("the command saw %s, %v, %q", response.Status, response.Header, answer)
	}
}

func TestEachCallIsAClientSpanBetweenTheCommandsAndTheAPIServers(t *testing.T) {
	var traceparent atomic.Value
	server, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		traceparent.Store(r.Header.Get("Traceparent"))
		w.WriteHeader(http.StatusForbidden)
	})
	p, client, root, recorder := startTestProxy(t, config)
	get(t, client, p.url+"/api/v1/namespaces/shop/configmaps/cart?pretty=true", nil)
	span := oneSpan(t, p, recorder)

	if want := "GET /api/v1/namespaces/{namespace}/configmaps/{name}"; span.Name() != want {
		t.Errorf("got the span %q, want %q", span.Name(), want)
	}
	if span.SpanKind() != trace.SpanKindClient {
		t.Errorf("the span is %s, want client", span.SpanKind())
	}
	if span.Parent().SpanID() != root.SpanContext().SpanID() || span.SpanContext().TraceID() != root.SpanContext().TraceID() {
		t.Errorf("the parent is %v, want %v", span.Parent(), root.SpanContext())
	}
	if want := fmt.Sprintf("00-%s-%s-01", span.SpanContext().TraceID(), span.SpanContext().SpanID()); traceparent.Load() != want {
		t.Errorf("the API server was given %q, want %q", traceparent.Load(), want)
	}
	if span.Status().Code != codes.Error {
		t.Errorf("the status after a 403 is %v, want Error", span.Status())
	}
	address := server.Listener.Addr().String()
	_, port, _ := strings.Cut(address, ":")
	want := map[string]string{
		"error.type":                "403",
		"http.request.method":       "GET",
		"http.response.status_code": "403",
		"network.protocol.version":  "2.0",
		"server.address":            "127.0.0.1",
		"server.port":               port,
		"url.full":                  "https://" + address + "/api/v1/namespaces/shop/configmaps/cart",
		"url.template":              "/api/v1/namespaces/{namespace}/configmaps/{name}",
	}
	if got := attributes(span); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got the attributes\n%v\nwant\n%v", got, want)
	}
}

// attributes are a span's as they print.
func attributes(span sdktrace.ReadOnlySpan) map[string]string {
	out := map[string]string{}
	for _, a := range span.Attributes() {
		out[string(a.Key)] = a.Value.String()
	}
	return out
}

func TestASpanHoldsNoSecretOfTheRequest(t *testing.T) {
	_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/drop" {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Set-Cookie", "hunter2")
		fmt.Fprint(w, "hunter2")
	})
	config.BearerToken = "hunter2"
	for path, want := range map[string]string{
		"/api/v1/namespaces/x/pods/web/exec?command=mysql&command=-phunter2": "GET /api/v1/namespaces/{namespace}/pods/{name}/exec",
		"/api/v1/namespaces/x/services/web/proxy/hunter2":                    "GET /api/v1/namespaces/{namespace}/services/{name}/proxy/{path}",
		"/hunter2":      "GET",
		"/drop?hunter2": "GET",
	} {
		t.Run(want, func(t *testing.T) {
			p, client, _, recorder := startTestProxy(t, config)
			get(t, client, p.url+path, http.Header{"Cookie": {"hunter2"}, "User-Agent": {"hunter2"}, "X-Anything": {"hunter2"}})
			span := oneSpan(t, p, recorder)
			if span.Name() != want {
				t.Errorf("got the span %q, want %q", span.Name(), want)
			}
			all := fmt.Sprintln(span.Name(), span.Attributes(), span.Events(), span.Status(), span.Links())
			for _, secret := range []string{"hunter2", tokenOf(p)} {
				if strings.Contains(all, secret) {
					t.Errorf("the span holds %q: %s", secret, all)
				}
			}
			if !strings.Contains(all, "url.full") { // the positive control
				t.Errorf("the span has no URL: %s", all)
			}
		})
	}
}

func TestMadeUpMethodsDoNotNameSpans(t *testing.T) {
	_, config := startAPIServer(t, func(http.ResponseWriter, *http.Request) {})
	p, client, _, recorder := startTestProxy(t, config)
	request, err := http.NewRequestWithContext(t.Context(), "HUNTER2", p.url+"/version", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if span := oneSpan(t, p, recorder); span.Name() != "HTTP /version" {
		t.Errorf("got the span %q", span.Name())
	}
}

func TestAWatchIsPassedOnPieceByPieceAndEndsWithoutAnError(t *testing.T) {
	more := make(chan struct{})
	gone := make(chan struct{})
	_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		for _, piece := range []string{"first\n", "second\n"} {
			fmt.Fprint(w, piece)
			w.(http.Flusher).Flush()
			<-more
		}
		<-r.Context().Done()
		close(gone)
	})
	p, client, _, recorder := startTestProxy(t, config)
	ctx, hangUp := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/api/v1/namespaces/x/pods?watch=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	waitForLine(t, lines, "first") // while the server holds the second back
	more <- struct{}{}
	waitForLine(t, lines, "second")
	if ended := recorder.Ended(); len(ended) > 0 {
		t.Errorf("the span ended before the watch did: %v", spanNames(ended))
	}
	more <- struct{}{}
	hangUp()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the API server is not told that the command has hung up")
	}
	span := oneSpan(t, p, recorder)
	if span.Status().Code != codes.Unset {
		t.Errorf("hanging up is no error, got %v", span.Status())
	}
}

func TestCloseEndsWhatIsStillOpen(t *testing.T) {
	_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "first\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	p, client, _, recorder := startTestProxy(t, config)
	response, err := client.Get(p.url + "/api/v1/pods?watch=true")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	begin := time.Now()
	span := oneSpan(t, p, recorder) // closes, though the command's child goes on reading
	if took := time.Since(begin); took > drainTime+closeTime {
		t.Errorf("close took %s", took)
	}
	if span.Name() != "GET /api/v1/pods" || span.EndTime().IsZero() {
		t.Errorf("got %q, ended at %v", span.Name(), span.EndTime())
	}
	if again, err := client.Get(p.url + "/version"); err == nil {
		again.Body.Close()
		t.Error("the proxy still answers")
	}
}

// upgrade asks the proxy for protocol over HTTP/1.1, as kubectl exec does, and returns
// the connection that has been taken over.
func upgrade(t *testing.T, p *traceProxy, protocol string) (*tls.Conn, *bufio.Reader) {
	t.Helper()
	connection, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), pinned(t, p))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	fmt.Fprintf(connection, "POST /api/v1/namespaces/x/pods/web/exec?command=sh HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"+
		"Connection: Upgrade\r\nUpgrade: %s\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n", tokenOf(p), protocol)
	reader := bufio.NewReader(connection)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close() // which is not the connection that has been taken over
	if response.StatusCode != http.StatusSwitchingProtocols || response.Header.Get("Upgrade") != protocol {
		t.Fatalf("got %s with Upgrade %q", response.Status, response.Header.Get("Upgrade"))
	}
	return connection, reader
}

func TestAnExecTakesTheConnectionOver(t *testing.T) {
	for _, protocol := range []string{"SPDY/3.1", "websocket"} {
		t.Run(protocol, func(t *testing.T) {
			hungUp := make(chan struct{})
			_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != 1 || r.Header.Get("Authorization") != "Bearer real" || r.Header.Get("Upgrade") != protocol || r.Header.Get("Traceparent") == "" {
					http.Error(w, fmt.Sprint(r.Proto, r.Header), http.StatusBadRequest)
					return
				}
				connection, buffered, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer connection.Close()
				fmt.Fprintf(connection, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
				for {
					line, err := buffered.ReadString('\n')
					if err != nil {
						close(hungUp)
						return
					}
					fmt.Fprintf(connection, "you said %s", line)
				}
			})
			p, _, root, recorder := startTestProxy(t, config)
			connection, lines := upgrade(t, p, protocol)
			for _, word := range []string{"hello", "again"} {
				fmt.Fprintln(connection, word)
				waitForLine(t, lines, "you said "+word)
			}
			if ended := recorder.Ended(); len(ended) > 0 {
				t.Errorf("the span ended before the exec did: %v", spanNames(ended))
			}
			connection.Close()
			select {
			case <-hungUp:
			case <-time.After(10 * time.Second):
				t.Fatal("the API server is not told that the command has hung up")
			}

			span := oneSpan(t, p, recorder)
			if span.Name() != "POST /api/v1/namespaces/{namespace}/pods/{name}/exec" || span.Parent().SpanID() != root.SpanContext().SpanID() {
				t.Errorf("got %q below %v", span.Name(), span.Parent())
			}
			if span.Status().Code != codes.Unset {
				t.Errorf("hanging up is no error, got %v", span.Status())
			}
			if got := attributes(span); got["http.response.status_code"] != "101" || got["network.protocol.version"] != "1.1" {
				t.Errorf("got the attributes %v", got)
			}
		})
	}
}

func TestCloseEndsAnExecThatGoesOn(t *testing.T) {
	_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		connection, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer connection.Close()
		fmt.Fprint(connection, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
		_, _ = buffered.ReadByte() // until it is closed
	})
	p, _, _, recorder := startTestProxy(t, config)
	upgrade(t, p, "SPDY/3.1")
	if span := oneSpan(t, p, recorder); span.EndTime().IsZero() {
		t.Error("the span has not ended")
	}
}

func hasAttribute(span sdktrace.ReadOnlySpan, key attribute.Key) bool {
	for _, a := range span.Attributes() {
		if a.Key == key {
			return true
		}
	}
	return false
}
