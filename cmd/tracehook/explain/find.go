package explain

// Which objects carry a trace. In: its id. Out: every object of the cluster, or of a namespace, that was caused by it, by the
// metadata alone. Errors: none; kinds that cannot be read are in the answer with the reason.

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/pager"
)

// Bounds of a search.
const (
	mostCarriers  = 10000
	kindsAtATime  = 8
	pagesInMemory = 1
)

// Finder looks through a cluster.
type Finder struct {
	Discovery discovery.ServerResourcesInterface
	Metadata  metadata.Interface
	// Keys are the annotations that may hold a cause. Nil: DefaultKeys.
	Keys []string
	// Namespace limits the search to one, and leaves out objects without one. "": all of the cluster.
	Namespace string
}

// Carriers is the answer.
type Carriers struct {
	metav1.TypeMeta `json:",inline"`
	TraceID         string `json:"traceID"`
	// Namespace is where was looked. "": everywhere.
	Namespace string    `json:"namespace,omitempty"`
	Objects   []Carrier `json:"objects"`
	// Kinds and Looked are how many kinds and objects were looked at.
	Kinds  int `json:"kinds"`
	Looked int `json:"looked"`
	// NotKnown are the kinds that could not be read.
	NotKnown []Unknown `json:"notKnown,omitempty"`
}

// Carrier is an object that carries the trace.
type Carrier struct {
	Ref `json:",inline"`
	// Owner is the UID of its controller owner. "": it has none.
	Owner string `json:"owner,omitempty"`
	// Earlier is true where the trace is that of the cause before its present one.
	Earlier bool       `json:"earlier,omitempty"`
	At      *time.Time `json:"at,omitempty"` // when its cause was stored
	Created time.Time  `json:"created"`
}

// Find looks at every kind that can be listed.
func (f Finder) Find(ctx context.Context, id trace.TraceID) Carriers {
	if f.Keys == nil {
		f.Keys = DefaultKeys()
	}
	found := Carriers{TypeMeta: metav1.TypeMeta{APIVersion: APIVersion, Kind: KindCarriers}, TraceID: id.String(), Namespace: f.Namespace, Objects: []Carrier{}}
	resources, err := f.resources()
	if err != nil {
		found.NotKnown = append(found.NotKnown, Unknown{What: "some kinds", Why: err.Error()})
	}
	found.Kinds = len(resources)
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(kindsAtATime)
	more := false
	for _, resource := range resources {
		group.Go(func() error {
			err := f.list(ctx, resource, func(object *metav1.PartialObjectMetadata) {
				carrier, ok := carrierOf(object, id, f.Keys)
				mu.Lock()
				defer mu.Unlock()
				found.Looked++
				switch {
				case !ok:
				case len(found.Objects) >= mostCarriers:
					more = true
				default:
					carrier.APIVersion, carrier.Kind = resource.version.String(), resource.kind
					found.Objects = append(found.Objects, carrier)
				}
			})
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				found.NotKnown = append(found.NotKnown, Unknown{What: resource.version.WithResource(resource.name).GroupResource().String(), Why: whyUnread(err)})
			}
			return nil
		})
	}
	_ = group.Wait() // none of them fails
	if more {
		found.NotKnown = append(found.NotKnown, Unknown{What: "further objects", Why: fmt.Sprintf("there are more than %d; look with -n at one namespace", mostCarriers)})
	}
	slices.SortFunc(found.Objects, func(a, b Carrier) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Kind+"/"+a.Namespace+"/"+a.Name, b.Kind+"/"+b.Namespace+"/"+b.Name)
	})
	slices.SortFunc(found.NotKnown, func(a, b Unknown) int { return strings.Compare(a.What, b.What) })
	return found
}

// listable is a kind that can be listed.
type listable struct {
	version schema.GroupVersion
	name    string // the resource's
	kind    string
}

// resources asks the API server what there is. The error says which groups did not answer; the others are returned.
func (f Finder) resources() ([]listable, error) {
	lists, err := f.Discovery.ServerPreferredResources()
	var all []listable
	for _, list := range lists {
		version, parseErr := schema.ParseGroupVersion(list.GroupVersion)
		if parseErr != nil {
			continue
		}
		for _, r := range list.APIResources {
			switch {
			case !slices.Contains(r.Verbs, "list"), strings.Contains(r.Name, "/"):
			case f.Namespace != "" && !r.Namespaced:
			case r.Kind == "Event", r.Kind == "ComponentStatus": // not stamped, and not stored
			default:
				all = append(all, listable{version, r.Name, r.Kind})
			}
		}
	}
	return all, err
}

// list reads a kind page by page.
func (f Finder) list(ctx context.Context, resource listable, see func(*metav1.PartialObjectMetadata)) error {
	var client metadata.ResourceInterface = f.Metadata.Resource(resource.version.WithResource(resource.name))
	if f.Namespace != "" {
		client = f.Metadata.Resource(resource.version.WithResource(resource.name)).Namespace(f.Namespace)
	}
	pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) })
	pages.PageBufferSize = pagesInMemory
	return pages.EachListItem(ctx, metav1.ListOptions{}, func(object runtime.Object) error {
		if partial, ok := object.(*metav1.PartialObjectMetadata); ok {
			see(partial)
		}
		return nil
	})
}

// carrierOf says whether an object carries the trace.
func carrierOf(object *metav1.PartialObjectMetadata, id trace.TraceID, keys []string) (Carrier, bool) {
	s, err := stampOf(object, keys)
	if err != nil || !s.ok() {
		return Carrier{}, false
	}
	c := Carrier{
		Ref:     Ref{Namespace: object.GetNamespace(), Name: object.GetName(), UID: string(object.GetUID())},
		Created: object.GetCreationTimestamp().UTC(),
	}
	if owner := metav1.GetControllerOfNoCopy(object); owner != nil {
		c.Owner = string(owner.UID)
	}
	if !s.at.IsZero() {
		c.At = new(s.at)
	}
	// What a controller makes may have its owner's annotations: the way back is the owner's.
	c.Earlier = s.span.TraceID() != id
	return c, !c.Earlier || s.previous.TraceID() == id && c.Owner == ""
}
