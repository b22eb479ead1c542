package main

// What `trace` shows of the trace once the command has ended. In: its own spans and a
// store. Out: the trace, and lines that say what it lacks. Errors stay here: the command
// has run, and its exit code is the answer.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// traceWait is one wait for a trace to arrive.
type traceWait struct {
	Store   *tracestore.Client // nil: there is none
	Own     tracestore.Trace
	Calls   []string      // the API calls' spans in Own
	Linked  bool          // the API server makes a trace of its own, so that nothing follows the calls
	Timeout time.Duration // for all of it
	Now     func() time.Time
}

// collect returns the trace as far as it has come, and what there is to say about that.
func (w traceWait) collect(ctx context.Context) (tracestore.Trace, []string) {
	if w.Store == nil {
		return w.Own, []string{"these are the command's own calls; to see what the API server, webhooks and etcd did, name your trace store: --store jaeger=URL, or " + storeVariable}
	}
	ctx, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	complete := tracestore.Completeness{Calls: w.Calls}
	if w.Linked {
		complete.Calls = nil
	}
	store := *w.Store
	store.Every = 100 * time.Millisecond
	arrived, err := store.Wait(ctx, w.Own.ID, func(t tracestore.Trace) error {
		return complete.Check(tracestore.Merge(t, w.Own), w.Now())
	})
	trace := tracestore.Merge(arrived, w.Own)
	later := fmt.Sprintf("`tracehook show %s` draws what comes later", w.Own.ID)
	missing := tracestore.IsMissing(err)
	switch {
	case err == nil:
		return trace, nil
	case errors.Is(err, context.Canceled):
		return trace, []string{"not waited for the rest of the trace; " + later}
	case missing != nil && missing.Calls == 0 && missing.Parents == 0:
		return trace, []string{fmt.Sprintf("spans were still arriving after %s; %s", w.Timeout, later)}
	case missing != nil && missing.Calls == len(w.Calls) && len(trace.Spans) == len(w.Own.Spans):
		return trace, []string{fmt.Sprintf("after %s nothing of the API server has arrived: it may not trace its requests, or export them to another store, or later; %s", w.Timeout, later)}
	case missing != nil:
		return trace, []string{fmt.Sprintf("after %s the trace was not complete: %v; %s", w.Timeout, missing, later)}
	case errors.Is(err, tracestore.ErrNotFound):
		return trace, []string{fmt.Sprintf("after %s nothing of this trace was in the store; is it where the spans are exported to? %s", w.Timeout, later)}
	}
	return trace, []string{"the trace store could not be read: " + storeError(err)}
}

// storeError is the last reason without what Wait says of itself.
func storeError(err error) string {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		errs := joined.Unwrap()
		return errs[len(errs)-1].Error()
	}
	return err.Error()
}
