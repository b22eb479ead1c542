package main

// What nodes did for the Pods that are shown. In: Pods, a store. Out: their kubelets' traces, and what there is to say about
// those. Errors become lines.

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/explain"
	"github.com/tracehook/tracehook/cmd/tracehook/follow"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// nodePatience is longer than a kubelet keeps a span back: it exports every 5 s.
const nodePatience = 7 * time.Second

// waitForNodes looks for what the nodes of followed Pods did. Where kubelets do not trace it does not wait.
func waitForNodes(ctx context.Context, store *tracestore.Client, lines []follow.Line, patience time.Duration) (found []explain.OnNode, said []string) {
	var pods []explain.Pod
	for _, l := range lines {
		if l.Pod.UID != "" {
			pods = append(pods, l.Pod)
		}
	}
	if store == nil || len(pods) == 0 || ctx.Err() != nil { // a signal came
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	switch trace, err := explain.KubeletsTrace(ctx, store, time.Now()); {
	case err != nil:
		return nil, []string{"what the nodes did could not be read: " + err.Error()}
	case !trace:
		return nil, nil
	}
	for {
		now, left, err := explain.LookOnNodes(ctx, store, pods)
		if err != nil && ctx.Err() == nil {
			return found, []string{"what the nodes did could not be read: " + err.Error()}
		}
		if err == nil {
			found = now
		}
		missing := slices.IndexFunc(found, func(o explain.OnNode) bool { return !o.Arrived() })
		select {
		case <-ctx.Done():
			if missing >= 0 {
				said = append(said, fmt.Sprintf("after %s the kubelet's trace of Pod %s had not arrived", patience, found[missing].Pod.Name))
			}
		case <-time.After(250 * time.Millisecond):
			if missing >= 0 || err != nil {
				continue
			}
		}
		if left > 0 {
			said = append(said, fmt.Sprintf("what nodes did for %d more Pods is not shown", left))
		}
		return found, said
	}
}

// withNodes shows a trace with what nodes did for the Pods that it names.
func withNodes(ctx context.Context, store *tracestore.Client, t tracestore.Trace) (tracestore.Trace, []string) {
	found, left, err := explain.LookOnNodes(ctx, store, explain.PodsIn(t))
	var said []string
	if err != nil {
		said = append(said, "what the nodes did could not be read: "+err.Error())
	}
	if left > 0 {
		said = append(said, fmt.Sprintf("what nodes did for %d more Pods is not shown", left))
	}
	return explain.HangOnPods(t, found), said
}
