package explain

import (
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// at makes a span that begins and lasts some milliseconds.
func at(id, parent, service, name, kind string, start, length int, attributes map[string]any) tracestore.Span {
	begin := time.Date(2026, 11, 28, 14, 2, 11, 0, time.UTC)
	return tracestore.Span{
		ID: id, ParentID: parent, Service: service, Name: name, Kind: kind, Attributes: attributes,
		Start: begin.Add(time.Duration(start) * time.Millisecond), Duration: time.Duration(length) * time.Millisecond,
	}
}

// patched is the trace of a command that patches a Deployment.
func patched() tracestore.Trace {
	command := at("c0", "", "kubectl", "kubectl set", tracestore.KindInternal, 0, 200, nil)
	command.Scope = commandScope
	return tracestore.Trace{ID: "bb", Spans: []tracestore.Span{
		command,
		at("c1", "c0", "kubectl", "PATCH /apis/apps/v1/…", tracestore.KindClient, 100, 70, nil),
		at("a0", "c1", "apiserver", "PATCH /apis/…", tracestore.KindServer, 101, 63, map[string]any{"audit-id": "audit", "http.request.method": "PATCH", "url.path": "/apis/apps/v1/namespaces/shop/deployments/web"}),
		at("a1", "a0", "apiserver", "Patch", tracestore.KindInternal, 102, 61, nil),
		at("a2", "a1", "apiserver", mutatingSpan, tracestore.KindInternal, 103, 5, map[string]any{"webhook": "trace-context.tracehook.dev"}),
		at("t0", "a2", "tracehook", "POST /mutate", tracestore.KindServer, 104, 3, nil),
		at("a3", "a1", "apiserver", validatingSpan, tracestore.KindInternal, 109, 41, map[string]any{"webhook": "validate.kyverno.svc-fail"}),
		at("k0", "a3", "kyverno", "POST /validate", tracestore.KindServer, 110, 39, nil),
		at("a4", "a1", "apiserver", "GuaranteedUpdate etcd3", tracestore.KindInternal, 151, 8, map[string]any{"key": "/deployments/shop/web"}),
	}}
}

func TestATraceTellsTheCommandTheRequestAndItsSlowestPart(t *testing.T) {
	f := factsOf(patched(), "t0")
	want := []Part{{"webhook validate.kyverno.svc-fail", 0.041}, {"etcd GuaranteedUpdate", 0.008}, {"Patch in apiserver", 0.007}}
	if f.Command != "kubectl set" || f.CommandSeconds != 0.2 || f.AuditID != "audit" || f.Request != "PATCH /apis/apps/v1/namespaces/shop/deployments/web" || f.RequestSeconds != 0.063 || !slices.Equal(f.Slowest, want) {
		t.Errorf("the facts are %+v", f)
	}
	t.Run("where the API server does not trace", func(t *testing.T) {
		trace := patched()
		trace.Spans = append(trace.Spans[:2], at("t0", "c1", "tracehook", "POST /mutate", tracestore.KindServer, 104, 3, nil))
		if f := factsOf(trace, "t0"); f.Command != "kubectl set" || f.Request != "PATCH /apis/apps/v1/…" || f.RequestSeconds != 0.07 {
			t.Errorf("the facts are %+v", f)
		}
	})
	t.Run("where the API server links to the command", func(t *testing.T) {
		trace := patched()
		trace.Spans = trace.Spans[2:]
		trace.Spans[0].ParentID, trace.Spans[0].Links = "", []tracestore.Link{{TraceID: "other", SpanID: "x"}}
		if f := factsOf(trace, "t0"); f.Command != "" || f.link != "other" || f.RequestSeconds != 0.063 {
			t.Errorf("the facts are %+v", f)
		}
	})
	t.Run("where the span has not arrived", func(t *testing.T) {
		if f := factsOf(patched(), "nowhere"); f.Command != "kubectl set" || f.Request != "" || f.Slowest != nil {
			t.Errorf("the facts are %+v", f)
		}
	})
}

func TestACauseLeadsToTheCommit(t *testing.T) {
	trace := patched()
	attributes := map[string]any{"tracehook.gitops.kind": "Kustomization", "tracehook.gitops.application": "flux-system/shop",
		"vcs.repository.url.full": "https://example.org/shop", "vcs.ref.head.name": "main", "vcs.ref.head.revision": "8f1b2a7c9d0e3f4a5b6c7d8e9f0a1b2c3d4e5f60"}
	call := at("mutate", trace.Spans[len(trace.Spans)-1].ID, "tracehook", "POST /mutate", tracestore.KindServer, 1, 1, attributes)
	trace.Spans = append(trace.Spans, call, at("create", "mutate", "tracehook", "create Pod", "", 2, 1, nil))
	want := Source{Kind: "Kustomization", Application: "flux-system/shop", Repository: "https://example.org/shop", Ref: "main", Revision: "8f1b2a7c9d0e3f4a5b6c7d8e9f0a1b2c3d4e5f60"}
	for _, span := range []string{"mutate", "create"} {
		if got := factsOf(trace, span).Source; got == nil || *got != want {
			t.Errorf("the source of span %s is %+v, want %+v", span, got, want)
		}
	}
	if got := factsOf(trace, trace.Spans[0].ID).Source; got != nil {
		t.Errorf("a span that is not below has the source %+v", got)
	}
	for text, s := range map[string]Source{
		"of Kustomization flux-system/shop from https://example.org/shop at main " + short(want.Revision): want,
		"of shop": {Application: "shop"},
		"at v1":   {Ref: "v1"},
	} {
		if got := source(s); got != text {
			t.Errorf("%+v is printed %q, want %q", s, got, text)
		}
	}
}

func TestTheCreationOfAnObjectIsFoundByItsKeyInTheStorage(t *testing.T) {
	trace := patched()
	if c := creationOf(trace, "/deployments/shop/web"); c != nil {
		t.Errorf("an update is taken for the creation: %+v", c)
	}
	trace.Spans[8].Name = createdSpan
	if c := creationOf(trace, "/deployments/shop/web"); c == nil || c.Seconds != 0.063 {
		t.Errorf("found %+v", c)
	}
	for key, object := range map[string]AuditObject{
		"/pods/shop/web":                 {schema.GroupResource{Resource: "pods"}, "shop", "web"},
		"/deployments/shop/web":          {schema.GroupResource{Group: "apps", Resource: "deployments"}, "shop", "web"},
		"/namespaces/shop":               {schema.GroupResource{Resource: "namespaces"}, "", "shop"},
		"/shop.example/widgets/shop/web": {schema.GroupResource{Group: "shop.example", Resource: "widgets"}, "shop", "web"},
	} {
		if got := storageKey(object); got != key {
			t.Errorf("the key is %s, want %s", got, key)
		}
	}
}

func TestSelfTimeIsWhatNoChildTook(t *testing.T) {
	node := func(start, length int, children ...*tracestore.Node) *tracestore.Node {
		s := at("x", "", "s", "n", "", start, length, nil)
		return &tracestore.Node{Span: &s, Children: children}
	}
	for name, test := range map[string]struct {
		node *tracestore.Node
		want time.Duration
	}{
		"alone":                     {node(0, 10), 10 * time.Millisecond},
		"two after each other":      {node(0, 10, node(1, 2), node(5, 2)), 6 * time.Millisecond},
		"two at once":               {node(0, 10, node(1, 4), node(2, 4)), 5 * time.Millisecond},
		"one within another":        {node(0, 10, node(1, 8), node(2, 2)), 2 * time.Millisecond},
		"one that outlasts it":      {node(0, 10, node(5, 20)), 5 * time.Millisecond},
		"one that begins before it": {node(5, 10, node(0, 7)), 8 * time.Millisecond},
	} {
		if got := selfTime(test.node); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

func TestWhatAKubeletDidIsToldOfThatPodAloneAndTheLongestOfIt(t *testing.T) {
	var traces []tracestore.Trace
	for i := range mostNodeTraces + 2 {
		traces = append(traces, tracestore.Trace{ID: "t", Spans: []tracestore.Span{
			at("r", "", "kubelet", "syncPod", tracestore.KindInternal, 1000*i, 10+i, map[string]any{"k8s.pod.uid": "p"}),
			at("p", "r", "containerd", "PullImage", tracestore.KindServer, 1000*i, 5+i, nil),
		}})
	}
	traces = append(traces, tracestore.Trace{ID: "o", Spans: []tracestore.Span{at("r", "", "kubelet", "syncPod", "", 0, 10000, map[string]any{"k8s.pod.uid": "other"})}})
	work := nodeWork(traces, "p")
	if len(work) != mostNodeTraces || work[0].Seconds != 0.012 || work[0].Slowest[0].What != "PullImage in containerd" {
		t.Errorf("the work is %+v", work)
	}
}
