package explain

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// kubelets is a store that holds what kubelets did, by the Pod's UID.
type kubelets map[string][]tracestore.Trace

func (k kubelets) Find(_ context.Context, s tracestore.Search) (ids []string, err error) {
	if s.Attributes[keyPodUID] == "unreadable" {
		return nil, errors.New("the store is down")
	}
	for uid, traces := range k {
		if s.Service == Kubelet && (s.Attributes == nil || s.Attributes[keyPodUID] == uid) {
			for _, t := range traces {
				ids = append(ids, t.ID)
			}
		}
	}
	return ids, nil
}

func (k kubelets) Trace(_ context.Context, id string) (tracestore.Trace, error) {
	for _, traces := range k {
		for _, t := range traces {
			if t.ID == id {
				return t, nil
			}
		}
	}
	return tracestore.Trace{}, tracestore.ErrNotFound
}

func TestWhatANodeDidHangsBelowItsPod(t *testing.T) {
	traceID := trace.TraceID{1}
	spanID := trace.SpanID{0x99}
	pod := Pod{UID: "p", Name: "web"}
	stamped := pod
	stamped.Cause = trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanID})
	foreign := pod
	foreign.Cause = trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{2}, SpanID: spanID})
	uid := map[string]any{keyPodUID: "p"}
	request := []tracestore.Span{at("root", "", "kubectl", "kubectl create", "", 0, 5, nil), at(spanID.String(), "root", "tracehook", "create Pod", "", 1, 0, nil)}
	told := []tracestore.Span{
		at("rollout", "root", "tracehook-lifecycle", "roll out", "", 1, 900, nil),
		at("stage", "anchor", "tracehook-lifecycle", "schedule", "", 1, 9, uid), at("anchor", "root", "tracehook-lifecycle", "Pod", "", 2, 0, uid),
	}
	node := tracestore.Trace{ID: "n", Spans: []tracestore.Span{
		at("sync", "", Kubelet, "syncPod", "", 10, 100, uid), at("pull", "sync", "containerd", "PullImage", "", 20, 60, nil),
	}}
	for name, test := range map[string]struct {
		pod   Pod
		spans []tracestore.Span
		want  string // the parent of the kubelet's root
	}{
		"lifecycle has told of it":                         {stamped, append(told, request...), "anchor"},
		"lifecycle has told, not of its Pod":               {pod, append(told[:2:2], request...), "root"}, // whose span has not arrived
		"lifecycle's stages are below the Pod's own cause": {pod, append([]tracestore.Span{at("stage", spanID.String(), "tracehook-lifecycle", "schedule", "", 1, 9, uid)}, request...), spanID.String()},
		"it carries a cause of the trace":                  {stamped, request, spanID.String()},
		"it carries a cause of another trace":              {foreign, request, "root"},
		"nothing is known of it":                           {pod, request, "root"},
	} {
		found, left, err := LookOnNodes(t.Context(), kubelets{"p": {node}}, []Pod{test.pod})
		if err != nil || left != 0 || !found[0].Arrived() || found[0].Work[0].Slowest[0].What != "PullImage in containerd" {
			t.Fatalf("found %+v, %d left, %v", found, left, err)
		}
		hung := HangOnPods(tracestore.Trace{ID: traceID.String(), Spans: test.spans}, found)
		if len(hung.Spans) != len(test.spans)+2 {
			t.Errorf("%s: %d spans", name, len(hung.Spans))
		}
		for _, s := range hung.Spans {
			if s.ID == "sync" && s.ParentID != test.want || s.ID == "pull" && s.ParentID != "sync" {
				t.Errorf("%s: %s hangs below %s, want %s", name, s.ID, s.ParentID, test.want)
			}
			if of := s.Service == Kubelet || s.Service == "containerd"; of != (s.TraceID == "n") {
				t.Errorf("%s: %s is of trace %q", name, s.ID, s.TraceID)
			}
		}
	}
	// Its own trace again is nothing new: a kubelet that is told of the cause takes part in it.
	if hung := HangOnPods(node, []OnNode{{Pod: pod, Traces: []tracestore.Trace{node}}}); len(hung.Spans) != 2 {
		t.Errorf("the trace itself was hung too: %v", hung.Spans)
	}
}

func TestOfManyPodsTenAreAskedFor(t *testing.T) {
	var spans []tracestore.Span
	store := kubelets{}
	for i := range mostPods + 3 {
		uid := fmt.Sprint("p", i)
		attributes := map[string]any{keyPodUID: uid, "k8s.pod.name": "web-" + uid, "k8s.namespace.name": "shop"}
		spans = append(spans, at(uid, "", "tracehook-lifecycle", "Pod", "", i, 0, attributes), at(uid+"s", uid, "tracehook-lifecycle", "start Pod", "", i, 2000, attributes))
		store[uid] = []tracestore.Trace{{ID: uid, Spans: []tracestore.Span{at("r"+uid, "", Kubelet, "syncPod", "", i, 10, attributes)}}}
	}
	pods := PodsIn(tracestore.Trace{ID: "t", Spans: spans})
	if len(pods) != mostPods+3 || pods[1].Name != "web-p1" || pods[1].Namespace != "shop" || pods[1].Until.Sub(pods[1].Created) != time.Minute+2*time.Second {
		t.Fatalf("the Pods are %+v", pods)
	}
	found, left, err := LookOnNodes(t.Context(), store, pods)
	if err != nil || left != 3 || len(found) != mostPods || len(found[0].Work) != 1 {
		t.Errorf("%d found, %d left, %v", len(found), left, err)
	}
	if again := PodsIn(HangOnPods(tracestore.Trace{ID: "t", Spans: spans}, found)); len(again) != len(pods) {
		t.Errorf("what was hung names %d Pods, want %d", len(again), len(pods))
	}
	if trace, err := KubeletsTrace(t.Context(), kubelets{}, time.Now()); trace || err != nil {
		t.Errorf("an empty store has a kubelet's trace: %t, %v", trace, err)
	}
	if _, _, err := LookOnNodes(t.Context(), store, []Pod{{UID: "unreadable", Name: "web"}}); err == nil || err.Error() != "look for what the node of Pod web did: look for traces of kubelet: the store is down" && err.Error() != "look for what the node of Pod web did: the store is down" {
		t.Errorf("the error is %v", err)
	}
}
