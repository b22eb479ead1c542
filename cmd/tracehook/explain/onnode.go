package explain

// What nodes did for the Pods of a trace. In: a trace, Pods, a store. Out: the kubelets' traces of these Pods, and the trace
// with them below each Pod. Errors: the store's.

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/webhook/cause/lifecycle"
)

// mostPods is how many Pods of one trace are asked for.
const mostPods = 10

// Pod is one whose kubelet is asked for.
type Pod struct {
	UID, Namespace, Name string
	// Created and Until are when it was made, and until when to look; a zero Until is now.
	Created, Until time.Time
	// Cause is the span context that stands on it; its zero value: none.
	Cause trace.SpanContext
}

// OnNode is what a Pod's node did, the longest traces of it.
type OnNode struct {
	Pod    Pod
	Work   []NodeWork
	Traces []tracestore.Trace // that Work is of
}

// Arrived says whether a whole trace is there: the root ends last.
func (o OnNode) Arrived() bool {
	for _, t := range o.Traces {
		for _, root := range t.Forest() {
			if root.Span.ParentID == "" && ofPod(root, o.Pod.UID) {
				return true
			}
		}
	}
	return false
}

// PodsIn are the Pods that spans of a trace name with their UIDs, as those of `tracehook lifecycle` do.
func PodsIn(t tracestore.Trace) []Pod {
	var pods []Pod
	places := map[string]int{}
	for _, s := range t.Spans {
		uid, _ := s.Attributes[keyPodUID].(string)
		if uid == "" || s.TraceID != "" {
			continue
		}
		at, known := places[uid]
		if !known {
			at = len(pods)
			places[uid] = at
			name, _ := s.Attributes["k8s.pod.name"].(string)
			namespace, _ := s.Attributes["k8s.namespace.name"].(string)
			pods = append(pods, Pod{UID: uid, Namespace: namespace, Name: name, Created: s.Start})
		}
		if until := s.End().Add(time.Minute); until.After(pods[at].Until) {
			pods[at].Until = until
		}
	}
	return pods
}

// Sentence is what was done, for how long, and what of it took longest.
func (w NodeWork) Sentence() string {
	text := seconds(w.Seconds)
	if w.Failed {
		text += "  failed"
	}
	if len(w.Slowest) > 0 {
		text += "  slowest: " + w.Slowest[0].What + " " + seconds(w.Slowest[0].Seconds)
	}
	return text + "  trace " + short(w.TraceID)
}

// KubeletsTrace says whether the store has got any kubelet's trace in the last minutes. Where it has none there is nothing to wait for.
func KubeletsTrace(ctx context.Context, store Store, now time.Time) (bool, error) {
	found, err := store.Find(ctx, tracestore.Search{Service: Kubelet, Start: now.Add(-10 * time.Minute), End: now, Limit: 1})
	return len(found) > 0, err
}

// LookOnNodes asks for what the nodes did for Pods. left is how many Pods beyond the first ten were not asked for.
func LookOnNodes(ctx context.Context, store Store, pods []Pod) (found []OnNode, left int, err error) {
	left = max(0, len(pods)-mostPods)
	pods = pods[:len(pods)-left]
	found = make([]OnNode, len(pods))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, pod := range pods {
		group.Go(func() error {
			traces, err := PodTraces(ctx, store, pod.UID, pod.Created, pod.Until)
			if err != nil {
				return fmt.Errorf("look for what the node of Pod %s did: %w", pod.Name, err)
			}
			found[i] = OnNode{Pod: pod, Work: nodeWork(traces, pod.UID)}
			for _, w := range found[i].Work {
				of := func(t tracestore.Trace) bool { return t.ID == w.TraceID }
				if !slices.ContainsFunc(found[i].Traces, of) {
					found[i].Traces = append(found[i].Traces, traces[slices.IndexFunc(traces, of)])
				}
			}
			return nil
		})
	}
	err = group.Wait()
	return found, left, err
}

// HangOnPods shows a trace with what nodes did below each Pod: below its span of `tracehook lifecycle`, else below its cause, else below
// the root.
func HangOnPods(t tracestore.Trace, found []OnNode) tracestore.Trace {
	hung := t
	for _, o := range found {
		below := podSpan(t, o.Pod)
		for _, other := range o.Traces {
			if other.ID != t.ID { // a kubelet that is told of the cause is part of it
				hung = hung.Hang(below, other)
			}
		}
	}
	return hung
}

// podSpan is the id of the span below which a Pod's traces belong.
func podSpan(t tracestore.Trace, pod Pod) string {
	there := make(map[string]bool, len(t.Spans))
	for _, s := range t.Spans {
		there[s.ID] = true
	}
	var anchor, named, caused, root string
	for _, s := range t.Spans {
		ofPod := s.Attributes[keyPodUID] == pod.UID
		switch {
		case ofPod && s.Name == string(lifecycle.PodAnchor):
			anchor = cmp.Or(anchor, s.ID)
		case pod.Cause.IsValid() && t.ID == pod.Cause.TraceID().String() && s.ID == pod.Cause.SpanID().String():
			caused = s.ID
		case ofPod && there[s.ParentID]:
			named = cmp.Or(named, s.ParentID)
		}
		if s.ParentID == "" {
			root = cmp.Or(root, s.ID)
		}
	}
	return cmp.Or(anchor, caused, named, root)
}
