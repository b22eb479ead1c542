package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// clusterCalls are the ways in which kubectl and helm ask: they differ in what client-go does
// with an answer that is an error.
var clusterCalls = map[string]func(ctx context.Context, c *kubernetes.Clientset) error{
	"version, and helm before anything": func(_ context.Context, c *kubernetes.Clientset) error {
		_, err := c.Discovery().ServerVersion()
		return err
	},
	"discovery": func(_ context.Context, c *kubernetes.Clientset) error {
		_, _, err := c.Discovery().ServerGroupsAndResources()
		return err
	},
	"get": func(ctx context.Context, c *kubernetes.Clientset) error {
		_, err := c.CoreV1().Pods("x").Get(ctx, "y", metav1.GetOptions{})
		return err
	},
	"create": func(ctx context.Context, c *kubernetes.Clientset) error {
		_, err := c.CoreV1().ConfigMaps("x").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "y"}}, metav1.CreateOptions{})
		return err
	},
	"apply": func(ctx context.Context, c *kubernetes.Clientset) error {
		_, err := c.CoreV1().ConfigMaps("x").Patch(ctx, "y", types.ApplyPatchType, []byte("{}"), metav1.PatchOptions{FieldManager: "kubectl"})
		return err
	},
	"--raw": func(ctx context.Context, c *kubernetes.Clientset) error {
		body, err := c.RESTClient().Get().RequestURI("/healthz").Stream(ctx)
		if err == nil {
			body.Close()
		}
		return err
	},
	"watch": func(ctx context.Context, c *kubernetes.Clientset) error {
		w, err := c.CoreV1().Pods("x").Watch(ctx, metav1.ListOptions{})
		if err == nil {
			w.Stop()
		}
		return err
	},
}

func TestTheReasonAloneIsTheReasonUnderTrace(t *testing.T) {
	refused := func(t *testing.T, config *rest.Config) {
		config.Host, config.CAData, config.Insecure = "https://"+closedPort(t), nil, true
	}
	other, _ := newClientCertificate(t, "another authority")
	for _, c := range []struct {
		name   string
		change func(*testing.T, *rest.Config)
		want   string
	}{
		{"nobody listens", refused, "connection refused"},
		{"an authority that did not sign", func(_ *testing.T, c *rest.Config) { c.CAData = other }, "x509: certificate signed by unknown authority"},
		{"a name that is not in the certificate", func(_ *testing.T, c *rest.Config) { c.ServerName = "api.shop" }, "not api.shop"},
		{"a name that nobody knows", func(_ *testing.T, c *rest.Config) { c.Host = "https://api.invalid:6443" }, "lookup api.invalid"},
		{"a proxy that is not there", func(t *testing.T, c *rest.Config) {
			c.Host, c.Proxy = "https://api.invalid:6443", http.ProxyURL(&url.URL{Scheme: "http", Host: closedPort(t)})
		}, "proxyconnect tcp: dial tcp"},
		{"a proxy that refuses", func(t *testing.T, c *rest.Config) {
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
			t.Cleanup(proxy.Close)
			c.Host, c.Proxy = "https://api.invalid:6443", func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) }
		}, "Forbidden"},
		{"no TLS", func(t *testing.T, c *rest.Config) {
			plain := httptest.NewServer(http.NotFoundHandler())
			t.Cleanup(plain.Close)
			c.Host = strings.Replace(plain.URL, "http://", "https://", 1)
		}, "server gave HTTP response to HTTPS client"},
		{"a credential plugin that fails", func(_ *testing.T, c *rest.Config) {
			c.BearerToken = ""
			c.ExecProvider = &clientcmdapi.ExecConfig{APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: clientcmdapi.NeverExecInteractiveMode, Command: "false"}
		}, "getting credentials: exec: executable false failed with exit code 1"},
		{"a credential plugin that is missing", func(_ *testing.T, c *rest.Config) {
			c.BearerToken = ""
			c.ExecProvider = &clientcmdapi.ExecConfig{APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: clientcmdapi.NeverExecInteractiveMode,
				Command: "there-is-no-such-plugin", InstallHint: "apt install it"}
		}, "getting credentials: exec: executable there-is-no-such-plugin not found"},
		{"a token file that is missing", func(_ *testing.T, c *rest.Config) { c.BearerToken, c.BearerTokenFile = "", "/nowhere/token" }, "/nowhere/token: no such file or directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, config := startAPIServer(t, func(http.ResponseWriter, *http.Request) {})
			c.change(t, config)
			recorderConfig := rest.CopyConfig(config)
			p, _, _, recorder := startTestProxy(t, recorderConfig)
			traced := clientFor(t, &rest.Config{Host: p.url, BearerToken: tokenOf(p), TLSClientConfig: rest.TLSClientConfig{CAData: p.certificate}})
			for name, call := range clusterCalls {
				err := call(t.Context(), traced)
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: got %v, want %q in it", name, err, c.want)
				}
			}
			if c.name == "a token file that is missing" {
				return // alone it is the configuration that cannot be loaded
			}
			// The control.
			alone := clientFor(t, config)
			for name, call := range clusterCalls {
				if err := call(t.Context(), alone); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("alone, %s: got %v, want %q in it", name, err, c.want)
				}
			}
			if err := p.failure.get(); err == nil || !strings.Contains(unreachableReason("", err), c.want) {
				t.Errorf("the report has %v", err)
			}
			p.close()
			if spans := recorder.Ended(); len(spans) == 0 || spans[0].Status().Code != codes.Error || !hasAttribute(spans[0], "error.type") {
				t.Errorf("got the spans %v, want errors", spans)
			}
		})
	}
}

func clientFor(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	config = rest.CopyConfig(config)
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func TestTheReasonIsKubectlsSentenceOnOneLine(t *testing.T) {
	for _, c := range []struct{ host, err, want string }{
		{"10.0.0.1:6443", "dial tcp 10.0.0.1:6443: connect: connection refused",
			"The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port? (dial tcp 10.0.0.1:6443: connect: connection refused)"},
		{"api:6443", "tls: failed to verify certificate: x509: certificate has expired", "Unable to connect to the server: tls: failed to verify certificate: x509: certificate has expired"},
		{"", "unable to read client-cert", "Unable to connect to the server: unable to read client-cert"},
		{"api", "first\n\n  second\x1b[2J", "Unable to connect to the server: first second�[2J"},
	} {
		if got := unreachableReason(c.host, errors.New(c.err)); got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

// client-go repeats a read on a connection that was reset. It does so here, too, and repeats no
// write.
func TestAReadOnAConnectionThatWasResetIsTriedAgainByTheCommand(t *testing.T) {
	var requests atomic.Int64
	_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			connection, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			connection.Close()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"y"}}`)
	})
	config.NextProtos = []string{"http/1.1"} // to be hijacked
	p, _, _, _ := startTestProxy(t, config)
	client := clientFor(t, &rest.Config{Host: p.url, BearerToken: tokenOf(p), TLSClientConfig: rest.TLSClientConfig{CAData: p.certificate}})
	if err := clusterCalls["create"](t.Context(), client); err == nil || !strings.Contains(err.Error(), "Unable to connect to the server: ") || requests.Load() != 1 {
		t.Errorf("a write: got %v after %d requests, want an error after one", err, requests.Load())
	}
	requests.Store(0)
	if err := clusterCalls["get"](t.Context(), client); err != nil || requests.Load() != 2 {
		t.Errorf("a read: got %v after %d requests, want success after two", err, requests.Load())
	}
}

func TestOnlyReadsAreTriedAgainAndOnlyOnConnectionsThatBroke(t *testing.T) {
	reset := &net.OpError{Op: "read", Err: syscall.ECONNRESET}
	for _, c := range []struct {
		method string
		err    error
		want   bool
	}{
		{http.MethodGet, reset, true},
		{http.MethodGet, io.EOF, true},
		{http.MethodGet, errors.New("http2: client connection lost"), true},
		{http.MethodGet, syscall.ECONNREFUSED, false},
		{http.MethodGet, errors.New("x509: certificate has expired"), false},
		{http.MethodPost, reset, false},
		{http.MethodPatch, io.EOF, false},
		{http.MethodDelete, io.EOF, false},
	} {
		if got := triedAgain(c.method, c.err); got != c.want {
			t.Errorf("%s after %v: got %t", c.method, c.err, got)
		}
	}
}

// An answer that breaks off is no whole one to the command, and the report says why.
func TestAnAnswerThatBreaksOffIsNoSuccess(t *testing.T) {
	_, config := startAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, `{"items":[`)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	p, client, _, _ := startTestProxy(t, config)
	response, err := client.Get(p.url + "/api/v1/pods")
	if err == nil {
		defer response.Body.Close()
		_, err = io.ReadAll(response.Body)
	}
	if err == nil {
		t.Error("the command takes half an answer for a whole one")
	}
	if got := p.failure.get(); got == nil || !slices.ContainsFunc([]string{"EOF", "stream error"}, func(s string) bool { return strings.Contains(got.Error(), s) }) {
		t.Errorf("the report has %v", got)
	}
}

// Who hangs up is not told anything, and it is no failure of the API server.
func TestHangingUpIsNoFailure(t *testing.T) {
	begun := make(chan struct{})
	_, config := startAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
	})
	p, client, _, recorder := startTestProxy(t, config)
	ctx, hangUp := context.WithTimeout(t.Context(), time.Minute)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/api/v1/pods", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-begun; hangUp() }()
	if response, err := client.Do(request); err == nil {
		response.Body.Close()
		t.Error("got an answer")
	}
	oneSpan(t, p, recorder)
	if err := p.failure.get(); err != nil {
		t.Errorf("the report has %v", err)
	}
}
