package tree_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore/recorded"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// theChain is the whole way of a `kubectl create`, as one reads it in the trace.
func theChain() tree.Want {
	const api, internal = "apiserver", tracestore.KindInternal
	return tree.Want{Name: "kubectl create", Service: "kubectl", Kind: internal, Children: []tree.Want{
		{Name: "HTTP GET", Service: "kubectl", Kind: tracestore.KindClient},
		{Name: "HTTP POST", Service: "kubectl", Kind: tracestore.KindClient, Children: []tree.Want{
			{Name: "POST /api/v1/namespaces/{:namespace}/configmaps", Service: api, Kind: tracestore.KindServer, Attributes: map[string]any{"audit-id": nil, "http.response.status_code": 201}, Children: []tree.Want{
				{Name: "audit", Service: api, Children: []tree.Want{{Name: "constrainedimpersonation", Children: []tree.Want{{Name: "priorityandfairness", Children: []tree.Want{{Name: "authorization", Children: []tree.Want{
					{Name: "Create", Service: api, Kind: internal, Events: []string{"About to store object in database", "Write to database*"}, Children: []tree.Want{
						// In another order than they arrive.
						{Name: "Create etcd3", Service: api, Attributes: map[string]any{"key": "/configmaps/default/hello"}, Children: []tree.Want{
							{Name: "etcdserverpb.KV/Txn", Service: api, Kind: tracestore.KindClient, Children: []tree.Want{
								{Name: "etcdserverpb.KV/Txn", Service: "etcd", Kind: tracestore.KindServer},
							}},
						}},
						{Name: "Call mutating webhook", Service: api, Attributes: map[string]any{"UID": regexp.MustCompile(`^[0-9a-f-]{36}$`)}, Events: []string{"Request completed", "Patch applied"}, Children: []tree.Want{
							{Name: "HTTP POST", Service: api, Kind: tracestore.KindClient, Children: []tree.Want{
								{Name: "POST /mutate", Service: "tracehook", Kind: tracestore.KindServer, Status: "unset",
									Attributes: map[string]any{"admission.response.allowed": true, "admission.response.patch.operations": 1, "admission.request.name": notEmpty},
									Absent:     []string{"user"},
									Children:   []tree.Want{{Name: "mutate trace-context", Service: "tracehook", Kind: internal}}},
							}},
						}},
					}},
				}}}}}}}},
			}},
		}},
	}}
}

func notEmpty(v any) error {
	if v == "" {
		return errors.New("want some text")
	}
	return nil
}

func TestTheWholeChainMatches(t *testing.T) {
	if err := tree.Match(recorded.Trace(t, "configmap"), theChain()); err != nil {
		t.Fatal(err)
	}
}

func TestADescendantMayBeAnywhereBelow(t *testing.T) {
	trace := recorded.Trace(t, "configmap")
	below := tree.Want{Name: "kubectl create", Children: []tree.Want{{Name: "mutate trace-context", Descendant: true}}}
	if err := tree.Match(trace, below); err != nil {
		t.Error(err)
	}
	anywhere := tree.Want{Name: "POST /mutate", Descendant: true, Children: []tree.Want{{Name: "mutate trace-context"}}}
	if err := tree.Match(trace, anywhere); err != nil {
		t.Error(err)
	}
	above := tree.Want{Name: "mutate trace-context", Descendant: true, Children: []tree.Want{{Name: "POST /mutate", Descendant: true}}}
	if tree.Match(trace, above) == nil {
		t.Error("a parent passed as the descendant of its child")
	}
}

// Each case asks for something that is nearly there. The error must name what
// is wrong with the nearest span.
func TestAMismatchNamesTheNearestSpanAndWhatDiffers(t *testing.T) {
	root := func(children ...tree.Want) tree.Want {
		return tree.Want{Name: "kubectl create", Children: children}
	}
	mutate := tree.Want{Name: "POST /mutate", Service: "tracehook", Descendant: true}
	with := func(change func(w *tree.Want)) tree.Want {
		w := mutate
		change(&w)
		return root(w)
	}
	for name, c := range map[string]struct {
		want tree.Want
		says []string
	}{
		"wrong parent": {
			root(tree.Want{Name: "POST /mutate", Service: "tracehook"}),
			[]string{
				"1 of 2 wanted spans not found",
				`"POST /mutate" (tracehook), directly below "kubectl create" (kubectl, internal)`,
				`nearest: "POST /mutate" (tracehook, server) `,
				`- parent: it is directly below "HTTP POST" (apiserver, client)`,
			},
		},
		"wrong root": {
			tree.Want{Name: "HTTP POST", Service: "kubectl", Children: []tree.Want{mutate}},
			[]string{"as the root, with 1 more wanted below it", `- parent: it is directly below "kubectl create" (kubectl, internal)`},
		},
		"wrong name": {
			with(func(w *tree.Want) { w.Name = "POST /validate" }),
			[]string{`- name: want "POST /validate", got "POST /mutate"`},
		},
		"wrong service": {
			with(func(w *tree.Want) { w.Service = "gatekeeper" }),
			[]string{`- service: want "gatekeeper", got "tracehook"`},
		},
		"wrong kind": {
			with(func(w *tree.Want) { w.Kind = tracestore.KindInternal }),
			[]string{`- kind: want "internal", got "server"`},
		},
		"wrong status": {
			with(func(w *tree.Want) { w.Status = "error" }),
			[]string{`- status: want "error", got "unset"`},
		},
		"attribute of another value": {
			with(func(w *tree.Want) { w.Attributes = map[string]any{"http.request.method": "PUT"} }),
			[]string{`- attribute http.request.method: want "PUT", got "POST"`},
		},
		"attribute of another type": {
			with(func(w *tree.Want) { w.Attributes = map[string]any{"http.response.status_code": "200"} }),
			[]string{`- attribute http.response.status_code: want "200", got 200 (int64)`},
		},
		"attribute that is missing": {
			with(func(w *tree.Want) { w.Attributes = map[string]any{"k8s.pod.name": nil, "k8s.job.name": "x"} }),
			[]string{"- attribute k8s.pod.name: it is missing", `- attribute k8s.job.name: want "x", it is missing`},
		},
		"attribute that does not match": {
			with(func(w *tree.Want) { w.Attributes = map[string]any{"url.path": regexp.MustCompile("^/validate")} }),
			[]string{`- attribute url.path: want /^/validate/, got "/mutate"`},
		},
		"attribute that does not pass": {
			with(func(w *tree.Want) { w.Attributes = map[string]any{"admission.request.subresource": notEmpty} }),
			[]string{`- attribute admission.request.subresource: want some text, got ""`},
		},
		"attribute that must not be": {
			with(func(w *tree.Want) { w.Absent = []string{"admission.request.name"} }),
			[]string{`- attribute admission.request.name: want none, got "hello"`},
		},
		"event that is missing": {
			root(tree.Want{Name: "Call mutating webhook", Events: []string{"Patch applied", "Patch refused"}, Descendant: true}),
			[]string{`- event "Patch refused": got "Request completed", "Patch applied"`},
		},
		"event without the prefix": {
			with(func(w *tree.Want) { w.Events = []string{"Patch*"} }),
			[]string{`- event "Patch*": got no events`},
		},
		"link that is missing": {
			with(func(w *tree.Want) { w.Links = []tracestore.Link{{TraceID: "a", SpanID: "b"}} }),
			[]string{"- link to a-b: got no links"},
		},
		"two wanted where there is one": {
			root(mutate, mutate),
			[]string{"1 of 3 wanted spans not found", `- it is bound already, by the "POST /mutate" (tracehook) that is wanted, somewhere below "kubectl create"`},
		},
		"nothing like it": {
			root(tree.Want{Name: "schedule pod", Service: "kube-scheduler", Descendant: true, Kind: "producer", Attributes: map[string]any{"a": nil, "b": nil, "c": nil, "d": nil}}),
			[]string{"no span comes near"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := tree.Match(recorded.Trace(t, "configmap"), c.want)
			if err == nil {
				t.Fatal("it matches")
			}
			says := append([]string{"what arrived:", "apiserver                ├ Call mutating webhook"}, c.says...)
			for _, text := range says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("the error does not say %q:\n%v", text, err)
				}
			}
		})
	}
}

func TestATraceMustBeOneWholeTree(t *testing.T) {
	any := tree.Want{Name: "a"}
	for name, c := range map[string]struct {
		spans string // id<parent …
		want  tree.Want
		says  string // "" for a match
	}{
		"one tree":                              {"a b<a c<b", any, ""},
		"a parent that did not arrive":          {"a b<x", any, `the parent of "b" (s) did not arrive: x`},
		"… when only a part is asked for":       {"a b<x", tree.Want{Name: "b", Descendant: true}, ""},
		"a second root":                         {"a b", any, `"b" (s) is a root of its own`},
		"a cycle":                               {"a b<c c<b", any, `"b" (s) is below itself: its parent is c`},
		"a cycle, when only a part is asked":    {"a b<c c<b", tree.Want{Name: "a", Descendant: true}, `"b" (s) is below itself`},
		"an id twice":                           {"a b<a b<a", any, `two spans have the id b`},
		"nothing at all":                        {"", any, "no span comes near"},
		"a parent that the test made up":        {"a<t b<a c<t", tree.Want{Name: "a", ParentID: "t"}, ""},
		"another parent than the test's":        {"a<u b<a", tree.Want{Name: "a", ParentID: "t"}, "parent: it is below u, which did not arrive"},
		"the test's parent and a root besides":  {"a<t b", tree.Want{Name: "a", ParentID: "t"}, `"b" (s) is a root of its own`},
		"the root has the test's parent wanted": {"a b<a", tree.Want{Name: "a", ParentID: "t"}, "parent: it is a root"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tree.Match(made(c.spans), c.want)
			switch {
			case c.says == "" && err != nil:
				t.Error(err)
			case c.says != "" && err == nil:
				t.Errorf("it matches, want an error that says %q", c.says)
			case c.says != "" && !strings.Contains(err.Error(), c.says):
				t.Errorf("the error does not say %q:\n%v", c.says, err)
			}
		})
	}
}

// The first span that would do is not always the right one.
func TestTheSearchGoesBackOnItsChoices(t *testing.T) {
	// Two alike siblings, and only the second one has what is wanted of the first.
	trace := made("r x<r x2<r y<x2")
	for i := range trace.Spans {
		trace.Spans[i].Name = trace.Spans[i].Name[:1]
	}
	want := tree.Want{Name: "r", Children: []tree.Want{{Name: "x"}, {Name: "x", Children: []tree.Want{{Name: "y"}}}}}
	if err := tree.Match(trace, want); err != nil {
		t.Error(err)
	}
	// A descendant may take the span that a child needs.
	trace = made("r x<r x2<x")
	for i := range trace.Spans {
		trace.Spans[i].Name = trace.Spans[i].Name[:1]
	}
	want = tree.Want{Name: "r", Children: []tree.Want{{Name: "x", Descendant: true}, {Name: "x"}}}
	if err := tree.Match(trace, want); err != nil {
		t.Error(err)
	}
}

func TestAHopelessSearchEndsSoon(t *testing.T) {
	var spans []string
	want := tree.Want{Name: "r"}
	for i := range 300 {
		spans = append(spans, fmt.Sprintf("x%d<r", i))
		want.Children = append(want.Children, tree.Want{Descendant: true, Service: "s"})
	}
	want.Children = append(want.Children, tree.Want{Service: "s"})
	trace := made("r " + strings.Join(spans, " "))
	began := time.Now()
	err := tree.Match(trace, want)
	if err == nil || !strings.Contains(err.Error(), "1 of 302 wanted spans not found") {
		t.Errorf("301 wanted, 300 there: %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}

// made builds a trace of service s from "id<parent id<parent …"; a span is
// called as its id.
func made(spans string) tracestore.Trace {
	trace := tracestore.Trace{ID: "made"}
	for i, text := range strings.Fields(spans) {
		id, parent, _ := strings.Cut(text, "<")
		trace.Spans = append(trace.Spans, tracestore.Span{
			ID: id, ParentID: parent, Name: id, Service: "s", Start: time.UnixMilli(int64(i)), Duration: time.Millisecond,
		})
	}
	return trace
}
