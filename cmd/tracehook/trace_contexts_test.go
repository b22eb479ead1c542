package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// A command that names another context, cluster or user of the kubeconfig is traced there, too, and
// no credential plugin runs that it does not need.
func TestEveryContextOfTheKubeconfigLeadsThroughTheProxy(t *testing.T) {
	directory := t.TempDir()
	kubeconfig := "apiVersion: v1\nkind: Config\ncurrent-context: office\nclusters:\n"
	for _, name := range []string{"cellar", "office"} {
		_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, name, " ", r.URL.Path, " ", r.Header.Get("Authorization"), " ", r.Header.Get("Traceparent") != "")
		})
		file := filepath.Join(directory, name+".crt")
		if err := os.WriteFile(file, config.CAData, 0o600); err != nil {
			t.Fatal(err)
		}
		kubeconfig += fmt.Sprintf("- {name: %s, cluster: {server: %s/base/%s, certificate-authority: %s.crt}}\n", name, config.Host, name, name)
	}
	ran := filepath.Join(directory, "ran")
	kubeconfig += `users:
- {name: alice, user: {token: alices}}
- name: bob
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      interactiveMode: Never
      command: sh
      args: [-c, 'echo >>` + ran + `; echo ''{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"bobs"}}''']
contexts:
- {name: office, context: {cluster: office, user: alice}}
- {name: cellar, context: {cluster: cellar, user: bob}}
- {name: nobody, context: {cluster: cellar}}
`
	file := filepath.Join(directory, "kubeconfig")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", file)
	k, err := loadKubeconfig("", "")
	if err != nil {
		t.Fatal(err)
	}
	recorder := tracetest.NewSpanRecorder()
	run := tracedRun{Kubeconfig: k, TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)), Random: rand.Reader, Now: time.Now}
	way, err := run.openWay(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(way.close)

	// ask is what a command does that has the temporary kubeconfig and these flags.
	ask := func(flags clientcmd.ConfigOverrides) (int, string) {
		rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: way.kubeconfig}
		config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &flags).ClientConfig()
		if err != nil {
			t.Fatal(err)
		}
		config.NextProtos = []string{"http/1.1"}
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			t.Fatal(err)
		}
		return get(t, client, config.Host+"/api/v1/namespaces", nil)
	}
	overrides := func(context, cluster, user string) clientcmd.ConfigOverrides {
		var o clientcmd.ConfigOverrides
		o.CurrentContext, o.Context.Cluster, o.Context.AuthInfo = context, cluster, user
		return o
	}
	for _, c := range []struct {
		flags clientcmd.ConfigOverrides
		want  string
	}{
		{overrides("", "", ""), "office /base/office/api/v1/namespaces Bearer alices true"},
		{overrides("", "cellar", ""), "cellar /base/cellar/api/v1/namespaces Bearer alices true"},
		{overrides("nobody", "", ""), "cellar /base/cellar/api/v1/namespaces  true"},
	} {
		if _, got := ask(c.flags); got != c.want {
			t.Errorf("%+v\n got %q\nwant %q", c.flags.Context, got, c.want)
		}
	}
	if _, err := os.Stat(ran); !os.IsNotExist(err) {
		t.Errorf("bob's credential plugin ran for nothing: %v", err)
	}
	for _, c := range []struct {
		flags clientcmd.ConfigOverrides
		want  string
	}{
		{overrides("cellar", "", ""), "cellar /base/cellar/api/v1/namespaces Bearer bobs true"},
		{overrides("", "", "bob"), "office /base/office/api/v1/namespaces Bearer bobs true"},
	} {
		if _, got := ask(c.flags); got != c.want {
			t.Errorf("%+v\n got %q\nwant %q", c.flags.Context, got, c.want)
		}
	}

	content, err := os.ReadFile(way.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"alices", "bobs", "interactiveMode", "base/"} {
		if strings.Contains(string(content), secret) {
			t.Errorf("the temporary kubeconfig tells %q:\n%s", secret, content)
		}
	}
	way.close()
	for _, span := range recorder.Ended() {
		if span.Name() != "GET /api/v1/namespaces" || strings.Contains(attributes(span)["url.full"], "/tracehook/") {
			t.Errorf("got %s with %v", span.Name(), span.Attributes())
		}
	}
	if n := len(recorder.Ended()); n != 5 {
		t.Errorf("got %d spans, want one for each of 5 calls", n)
	}
}

// A redirect must not lead from one cluster to the other.
func TestARedirectStaysWithItsCluster(t *testing.T) {
	for _, c := range []struct{ location, want string }{
		{"/base/api/v1/namespaces/x/services/y/proxy/?a=b", "/tracehook/0/api/v1/namespaces/x/services/y/proxy/?a=b"},
		{"https://HOST/base/a%2Fb", "/tracehook/0/a%2Fb"},
		{"proxy/", "proxy/"},
		{"https://elsewhere.invalid/base/x", "https://elsewhere.invalid/base/x"},
		{"", ""},
	} {
		_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
			if c.location != "" {
				w.Header().Set("Location", strings.ReplaceAll(c.location, "HOST", r.Host))
			}
			w.WriteHeader(http.StatusMovedPermanently)
		})
		config.Host += "/base"
		k := oneCluster(config, "")
		k.clusters = map[string]kubeconfigCluster{"a": {}, "tracehook": {}} // "a" is not the current one
		p, err := startTraceProxy(context.Background(), traceProxyOptions{Kubeconfig: k, TracerProvider: sdktrace.NewTracerProvider(), Random: rand.Reader, Now: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.close)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: pinned(t, p)},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.urlOf("a")+"/api", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+tokenOf(p))
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if got := response.Header.Get("Location"); got != c.want {
			t.Errorf("%q becomes %q, want %q", c.location, got, c.want)
		}
	}
}

// One broken context is explained to who uses it.
func TestAContextThatCannotBeUsedIsExplainedToTheCommand(t *testing.T) {
	_, config := startAPIServer(t, func(http.ResponseWriter, *http.Request) {})
	k := oneCluster(config, "")
	k.users = append(k.users, "broken")
	k.connect = func(_, user string) (*rest.Config, error) {
		if user == "broken" {
			return &rest.Config{Host: config.Host, TLSClientConfig: rest.TLSClientConfig{CertFile: "/nowhere.crt", KeyFile: "/nowhere.key"}}, nil
		}
		return config, nil
	}
	p, err := startTraceProxy(context.Background(), traceProxyOptions{Kubeconfig: k, TracerProvider: sdktrace.NewTracerProvider(), Random: rand.Reader, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: pinned(t, p)}}
	status, body := get(t, client, p.url+"/version", http.Header{"Authorization": {"Bearer " + p.tokens["broken"]}})
	if status != http.StatusBadGateway || !strings.Contains(body, "Unable to connect to the server: open /nowhere.crt: no such file or directory") {
		t.Errorf("got %d and %q", status, body)
	}
	if status, _ := get(t, client, p.url+"/version", http.Header{"Authorization": {"Bearer " + tokenOf(p)}}); status != http.StatusOK {
		t.Errorf("the other context got %d", status)
	}
}

func TestAPathBelongsToTheClusterWithTheLongestPrefix(t *testing.T) {
	k := &userKubeconfig{current: "a", clusters: map[string]kubeconfigCluster{}, contexts: oneCluster(&rest.Config{}, "").contexts}
	k.contexts["a"] = k.contexts["tracehook"].DeepCopy()
	k.contexts["a"].Cluster = "c00"
	for i := range 12 {
		k.clusters[fmt.Sprintf("c%02d", i)] = kubeconfigCluster{}
	}
	p := &traceProxy{prefixes: prefixesOf(k)}
	for path, want := range map[string]string{
		"/api":                       "c00",
		"/tracehook/1/api":           "c01",
		"/tracehook/11/api":          "c11",
		"/tracehook/11":              "c11",
		"/tracehook/12/api":          "c00",
		"/tracehook":                 "c00",
		"/api/tracehook/1/api":       "c00",
		p.prefixes["c07"] + "/apis/": "c07",
	} {
		if got, _ := p.clusterOf(path); got != want {
			t.Errorf("%s belongs to %s, want %s", path, got, want)
		}
	}
}

// The trace context that a client sends with a request: of the same trace it is the parent,
// another trace is linked to.
func TestTheClientsOwnSpanIsTheParentOfItsCall(t *testing.T) {
	const other = "0af7651916cd43dd8448eb211c80319c"
	for _, c := range []struct {
		name   string
		header func(root trace.SpanContext) http.Header
		parent string // span id; "" for the command's
		links  int
		state  string
	}{
		{name: "none", header: func(trace.SpanContext) http.Header { return nil }},
		{name: "of the same trace", parent: "b7ad6b7169203331", state: "a=1,b=2", header: func(root trace.SpanContext) http.Header {
			return http.Header{"Traceparent": {"00-" + root.TraceID().String() + "-b7ad6b7169203331-01"}, "Tracestate": {"a=1", "b=2"}}
		}},
		{name: "of the same trace, not recorded", header: func(root trace.SpanContext) http.Header {
			return http.Header{"Traceparent": {"00-" + root.TraceID().String() + "-b7ad6b7169203331-00"}}
		}},
		{name: "of another trace", links: 1, header: func(trace.SpanContext) http.Header {
			return http.Header{"Traceparent": {"00-" + other + "-b7ad6b7169203331-01"}, "Tracestate": {"a=1"}}
		}},
		{name: "two", header: func(root trace.SpanContext) http.Header {
			return http.Header{"Traceparent": {"00-" + root.TraceID().String() + "-b7ad6b7169203331-01", "00-" + other + "-b7ad6b7169203331-01"}}
		}},
		{name: "nonsense", header: func(trace.SpanContext) http.Header { return http.Header{"Traceparent": {"00-x-y-01"}} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got http.Header
			_, config := startAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
			p, client, root, recorder := startTestProxy(t, config)
			get(t, client, p.url+"/version", c.header(root.SpanContext()))
			span := oneSpan(t, p, recorder)
			want := c.parent
			if want == "" {
				want = root.SpanContext().SpanID().String()
			}
			if span.Parent().SpanID().String() != want || span.SpanContext().TraceID() != root.SpanContext().TraceID() {
				t.Errorf("the call is below %v, want %s", span.Parent(), want)
			}
			if len(span.Links()) != c.links || c.links > 0 && span.Links()[0].SpanContext.TraceID().String() != other {
				t.Errorf("got the links %v", span.Links())
			}
			own := fmt.Sprintf("00-%s-%s-01", span.SpanContext().TraceID(), span.SpanContext().SpanID())
			if v := got.Values("Traceparent"); len(v) != 1 || v[0] != own {
				t.Errorf("the API server was given %q, want %q", v, own)
			}
			if v := got.Get("Tracestate"); v != c.state {
				t.Errorf("the API server was given the state %q, want %q", v, c.state)
			}
		})
	}
}

// Where nothing of the run is recorded, a client's own trace reaches the API server as it does alone.
func TestAClientsTraceGoesOnWhereNoneIsRecorded(t *testing.T) {
	const own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, provider := range map[string]trace.TracerProvider{
		"OTEL_SDK_DISABLED": noop.NewTracerProvider(),
		"not sampled":       sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample()))),
	} {
		t.Run(name, func(t *testing.T) {
			var got string
			_, config := startAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("Traceparent") })
			ctx, span := provider.Tracer("").Start(context.Background(), "kubectl")
			defer span.End()
			p, err := startTraceProxy(ctx, traceProxyOptions{Kubeconfig: oneCluster(config, ""), TracerProvider: provider, Random: rand.Reader, Now: time.Now()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.close)
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: pinned(t, p)}}
			get(t, client, p.url+"/version", http.Header{"Authorization": {"Bearer " + tokenOf(p)}, "Traceparent": {own}})
			if !strings.HasPrefix(got, own[:36]) || !strings.HasSuffix(got, "-01") {
				t.Errorf("the API server was given %q, want the trace of %s", got, own)
			}
		})
	}
}

// `trace` inside `trace`: the inner one's calls are what the outer one's calls hang below.
func TestATraceInsideATraceIsOneBranch(t *testing.T) {
	_, config := startAPIServer(t, func(http.ResponseWriter, *http.Request) {})
	outer, _, root, recorder := startTestProxy(t, config)
	inner := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	env := []string{fmt.Sprintf("TRACEPARENT=00-%s-%s-01", root.SpanContext().TraceID(), root.SpanContext().SpanID())}
	config = &rest.Config{Host: outer.url, BearerToken: tokenOf(outer), TLSClientConfig: rest.TLSClientConfig{CAData: outer.certificate}}
	runAsKubectl(t, inner, oneCluster(config, "default"), env, "kubectl", "/api")
	outer.close()
	root.End()

	spans := map[string]sdktrace.ReadOnlySpan{} // by id
	for _, span := range recorder.Ended() {
		spans[span.SpanContext().SpanID().String()] = span
	}
	var path []string
	for _, span := range recorder.Ended() {
		if span.Name() != "GET /api" {
			continue
		}
		var names []string
		for s := span; s != nil; s = spans[s.Parent().SpanID().String()] {
			names = append(names, s.Name())
		}
		if len(names) > len(path) {
			path = names
		}
	}
	if got, want := strings.Join(path, " < "), "GET /api < GET /api < kubectl < root"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// That the trace goes on below the API server is seen in the objects that it stores.
func TestAnObjectThatIsStampedWithTheTraceShowsThatItWentOn(t *testing.T) {
	for _, c := range []struct {
		name   string
		method string
		answer func(traceID, root, call string) string
		want   bool
	}{
		{"a stamp by a webhook", http.MethodPost, func(id, _, _ string) string {
			return `{"metadata":{"annotations":{"tracehook.dev/traceparent":"00-` + id + `-00f067aa0ba902b7-01"}}}`
		}, true},
		{"the call's own context", http.MethodPatch, func(id, _, call string) string { return "\x12\x3700-" + id + "-" + call + "-01\x1a" }, true},
		{"a stamp behind much else", http.MethodPost, func(id, _, _ string) string {
			return strings.Repeat("00-", 30_000) + "00-" + id + "-00f067aa0ba902b7-01"
		}, true},
		{"what the command was given itself", http.MethodPost, func(id, root, _ string) string { return "TRACEPARENT=00-" + id + "-" + root + "-01" }, false},
		{"another trace", http.MethodPost, func(string, string, string) string { return "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01" }, false},
		{"half a stamp", http.MethodPost, func(id, _, _ string) string { return "00-" + id + "-00f067" }, false},
		{"a read", http.MethodGet, func(id, _, _ string) string { return "00-" + id + "-00f067aa0ba902b7-01" }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var root trace.Span
			_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				parts := strings.Split(r.Header.Get("Traceparent"), "-")
				answer := c.answer(parts[1], root.SpanContext().SpanID().String(), parts[2])
				for i := range 3 { // in pieces, cut anywhere
					fmt.Fprint(w, answer[len(answer)*i/3:len(answer)*(i+1)/3])
					w.(http.Flusher).Flush()
				}
			})
			var p *traceProxy
			var client *http.Client
			p, client, root, _ = startTestProxy(t, config)
			request, err := http.NewRequestWithContext(t.Context(), c.method, p.url+"/api/v1/namespaces/x/pods", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if _, err := io.Copy(io.Discard, response.Body); err != nil {
				t.Fatal(err)
			}
			if got := p.passed.Load(); got != c.want {
				t.Errorf("got %t, want %t", got, c.want)
			}
		})
	}
}

func TestToolsThatAskASitesProxyForLoopbackAreToldNotTo(t *testing.T) {
	for _, c := range []struct{ name, env, want string }{
		{"no proxy", "HOME=/ NO_PROXY=x", ""},
		{"an empty proxy", "HTTPS_PROXY=", ""},
		{"a proxy", "HTTPS_PROXY=http://p:3128", "NO_PROXY=127.0.0.1 no_proxy=127.0.0.1"},
		{"a proxy in lower case", "https_proxy=http://p:3128", "NO_PROXY=127.0.0.1 no_proxy=127.0.0.1"},
		{"a proxy for all", "all_proxy=socks5://p:1080", "NO_PROXY=127.0.0.1 no_proxy=127.0.0.1"},
		{"a proxy for HTTP", "HTTP_PROXY=http://p:3128", "NO_PROXY=127.0.0.1 no_proxy=127.0.0.1"},
		{"exceptions", "HTTPS_PROXY=http://p:3128 NO_PROXY=.corp,10.0.0.0/8", "NO_PROXY=.corp,10.0.0.0/8,127.0.0.1 no_proxy=.corp,10.0.0.0/8,127.0.0.1"},
		{"exceptions in lower case", "HTTPS_PROXY=http://p:3128 no_proxy=.corp,", "NO_PROXY=.corp,127.0.0.1 no_proxy=.corp,127.0.0.1"},
		{"exceptions in both", "HTTPS_PROXY=http://p:3128 NO_PROXY=a no_proxy=b", "NO_PROXY=a,127.0.0.1 no_proxy=b,127.0.0.1"},
		{"loopback is one already", "HTTPS_PROXY=http://p:3128 NO_PROXY=localhost,127.0.0.1,x", "NO_PROXY=localhost,127.0.0.1,x no_proxy=localhost,127.0.0.1,x"},
		{"all are", "HTTPS_PROXY=http://p:3128 NO_PROXY=*", "NO_PROXY=* no_proxy=*"},
	} {
		set := noProxy(strings.Fields(c.env))
		got := ""
		if len(set) > 0 {
			got = "NO_PROXY=" + set["NO_PROXY"] + " no_proxy=" + set["no_proxy"]
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}
