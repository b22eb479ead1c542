//go:build linux

package node

// What kubelet and containerd did for a Pod. In: its UID. Out: kubelet's traces, which are no part of the trace in which
// the Pod was created: nothing in Kubernetes hands kubelet that context. Errors: of the store, or what has not arrived.

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// PodTraces finds the traces that kubelet began for a Pod, one for each time that it looked after it, the oldest first.
func PodTraces(ctx context.Context, jaeger, uid string) ([]tracestore.Trace, error) {
	client := tracestore.Client{BaseURL: jaeger}
	now := time.Now()
	found, err := client.Find(ctx, tracestore.Search{
		Service: "kubelet", Attributes: map[string]string{"k8s.pod.uid": uid}, Start: now.Add(-time.Hour), End: now, Limit: 1000,
	})
	if err != nil {
		return nil, err
	}
	var traces []tracestore.Trace
	for _, id := range found {
		whole, err := client.Trace(ctx, id)
		if err != nil {
			return nil, err
		}
		traces = append(traces, whole)
	}
	slices.SortFunc(traces, func(a, b tracestore.Trace) int { return a.Spans[0].Start.Compare(b.Spans[0].Start) })
	return traces, nil
}

// WaitStart waits for the one of them in which a Pod's containers were started.
func WaitStart(ctx context.Context, jaeger, uid string) (tracestore.Trace, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		traces, err := PodTraces(ctx, jaeger, uid)
		if err != nil {
			return tracestore.Trace{}, err
		}
		for _, trace := range traces {
			if complete(trace) {
				return trace, nil
			}
		}
		select {
		case <-ctx.Done():
			return tracestore.Trace{}, fmt.Errorf("wait until kubelet and containerd tell how Pod %s was started: %w", uid, ctx.Err())
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// complete says whether both ends of the last call have arrived, and the root, which ends after it.
func complete(t tracestore.Trace) bool {
	has := func(service, name string) bool {
		return slices.ContainsFunc(t.Spans, func(s tracestore.Span) bool { return s.Service == service && s.Name == name })
	}
	const start = "runtime.v1.RuntimeService/StartContainer"
	return has("kubelet", "syncPod") && has("kubelet", start) && has("containerd", start)
}
