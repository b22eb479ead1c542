package explain

// What the trace store knows about what was read. In: Known, a store. Out: the traces of the causes, of each object's creation,
// and of a Pod on its node. Errors: in what is not known.

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// Store is where spans can be read back from: a tracestore.Client.
type Store interface {
	Trace(ctx context.Context, id string) (tracestore.Trace, error)
	Find(ctx context.Context, s tracestore.Search) ([]string, error)
}

// byStore is what only a store knows.
const byStore = "the command, its steps and what was slow"

// Kubelet is the service whose traces are a Pod's on its node; containerd's spans are in them.
const Kubelet = "kubelet"

// Stored is what a store knows.
type Stored struct {
	Facts   map[string]*TraceFacts // by trace and span
	Created map[string]*Creation   // by UID
	Node    []NodeWork
	Unread  []Unknown
}

// Lookup asks the store about everything that was read.
func (k Known) Lookup(ctx context.Context, store Store) *Stored {
	s := &Stored{Facts: map[string]*TraceFacts{}, Created: map[string]*Creation{}}
	var mu sync.Mutex
	var unread unreadable
	lost := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		var asked *url.Error
		if errors.As(err, &asked) { // said once, and without the long question
			what, err = byStore, fmt.Errorf("the trace store cannot be asked: %w", asked.Err)
		}
		unread.add(what, err)
	}
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, link := range k.Chain {
		if link.Object == nil {
			continue
		}
		stored, _ := stampOf(link.Object, k.Keys)
		id := factsKey(stored.traceID(), stored.span.SpanID().String())
		mu.Lock()
		_, known := s.Facts[id]
		ask := stored.ok() && !known
		if ask {
			s.Facts[id] = nil
		}
		mu.Unlock()
		if ask {
			group.Go(func() error {
				facts, err := lookupCause(ctx, store, stored)
				switch {
				case errors.Is(err, tracestore.ErrNotFound):
					lost("the trace "+stored.traceID(), errors.New("the store does not have it: it was not sampled, has expired, or is in another store"))
				case err != nil:
					lost("the trace "+stored.traceID(), err)
				}
				mu.Lock()
				defer mu.Unlock()
				s.Facts[id] = facts
				return nil
			})
		}
		group.Go(func() error {
			creation, err := lookupCreation(ctx, store, link)
			if err != nil {
				lost("when exactly objects were created", err)
			}
			mu.Lock()
			defer mu.Unlock()
			s.Created[link.Ref.UID] = creation
			return nil
		})
		if i == 0 && link.Ref.Kind == "Pod" && link.Ref.APIVersion == "v1" {
			group.Go(func() error {
				traces, err := PodTraces(ctx, store, link.Ref.UID, link.Object.GetCreationTimestamp().Time, time.Time{})
				if err != nil {
					lost("what its node did", err)
				}
				mu.Lock()
				defer mu.Unlock()
				s.Node = nodeWork(traces, link.Ref.UID)
				return nil
			})
		}
	}
	_ = group.Wait() // none of them fails
	s.Unread = unread.list
	return s
}

func factsKey(traceID, spanID string) string { return traceID + "/" + spanID }

func lookupCause(ctx context.Context, store Store, s stamp) (*TraceFacts, error) {
	trace, err := store.Trace(ctx, s.traceID())
	if err != nil {
		return nil, err
	}
	facts := factsOf(trace, s.span.SpanID().String())
	if facts.link == "" || facts.link == trace.ID {
		return facts, nil
	}
	client, err := store.Trace(ctx, facts.link)
	if err != nil {
		return facts, nil // a link may lead to what is in no store
	}
	if command := commandOf(client.Forest()); command != nil {
		facts.Command, facts.CommandSeconds, facts.CommandTraceID = command.Name, command.Duration.Seconds(), client.ID
	}
	return facts, nil
}

// lookupCreation looks for the write by the name that the API server's span of the storage has.
func lookupCreation(ctx context.Context, store Store, link Link) (*Creation, error) {
	created := link.Object.GetCreationTimestamp().Time
	key := storageKey(link.audited())
	ids, err := store.Find(ctx, tracestore.Search{
		Service: apiServer, Attributes: map[string]string{keyStorage: key},
		Start: created.Add(-mostApart), End: created.Add(mostApart), Limit: mostStoreTraces,
	})
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		trace, err := store.Trace(ctx, id)
		if err != nil {
			return nil, err
		}
		if c := creationOf(trace, key); c != nil {
			return c, nil
		}
	}
	return nil, nil
}

// PodTraces returns the traces that a Pod's kubelet began between two times, with containerd's spans in them: they are roots of
// their own that name the Pod's UID. A zero until is now. None is no error: most kubelets do not trace.
func PodTraces(ctx context.Context, store Store, uid string, from, until time.Time) ([]tracestore.Trace, error) {
	if until.IsZero() {
		until = time.Now()
	}
	ids, err := store.Find(ctx, tracestore.Search{
		Service: Kubelet, Attributes: map[string]string{keyPodUID: uid}, Start: from.Add(-mostApart), End: until, Limit: mostStoreTraces,
	})
	if err != nil {
		return nil, err
	}
	var traces []tracestore.Trace
	for _, id := range ids {
		trace, err := store.Trace(ctx, id)
		if err != nil && !errors.Is(err, tracestore.ErrNotFound) {
			return traces, fmt.Errorf("read what the kubelet did: %w", err)
		}
		if err == nil {
			traces = append(traces, trace)
		}
	}
	return traces, nil
}
