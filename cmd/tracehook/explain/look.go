package explain

// What the API server knows. In: an object. Out: Known: its owners, Events, and what it made. Errors: none; what cannot be
// read is in Known with the reason.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// Bounds of what is read for one object.
const (
	mostOwners = 16   // in a chain
	mostEvents = 200  // of one object
	mostMade   = 2000 // objects of one kind that may be the object's
	pageSize   = 500
	parallel   = 4 // requests at a time
)

// Looker reads from an API server.
type Looker struct {
	Objects dynamic.Interface
	Mapper  meta.RESTMapper
	// Keys are the annotations that may hold a cause. Nil: DefaultKeys.
	Keys []string
}

// Known is everything that was read about one object.
type Known struct {
	Keys []string
	// Chain is the object, then its owner, and so on up to the first.
	Chain []Link
	// Events are of the objects of Chain and of Made, by UID.
	Events map[types.UID][]corev1.Event
	Made   []*unstructured.Unstructured
	// Installed says whether a webhook configuration of tracehook's is there. It is looked at only where no cause is stored.
	// Nil: not looked at.
	Installed *bool
	// Unread is what could not be read.
	Unread []Unknown
	// Audit is what the audit log says. Nil: there is none.
	Audit *AuditLog
	// Stored is what the trace store says. Nil: there is none.
	Stored *Stored
}

// Link is an object of a chain of owners.
type Link struct {
	Ref Ref
	// Resource is what the kind is called in paths.
	Resource schema.GroupResource
	Object   *unstructured.Unstructured // nil where Err says why
	Err      error
	// Others are owners beside the one that the chain goes on with, in words.
	Others []string
	// Controller is false where the owner is one without being the controller: nothing is handed down from there.
	Controller bool
}

// Why an owner is not there.
var (
	errGone  = errors.New("it has been deleted")
	errOther = errors.New("it has been deleted, and another object has its name")
	errCycle = errors.New("it is owned by what it owns")
	errMany  = fmt.Errorf("there are more than %d owners above each other", mostOwners)
)

// Look reads what there is to know about an object that has been read.
func (l Looker) Look(ctx context.Context, object *unstructured.Unstructured) Known {
	if l.Keys == nil {
		l.Keys = DefaultKeys()
	}
	k := Known{Keys: l.Keys, Events: map[types.UID][]corev1.Event{}}
	k.Chain = l.chain(ctx, object)
	var unread unreadable
	k.Made = l.made(ctx, object, &unread)

	of := []*unstructured.Unstructured{object}
	for _, link := range k.Chain[1:] {
		if link.Object != nil {
			of = append(of, link.Object)
		}
	}
	for _, made := range k.Made {
		if made.GetKind() == "Pod" && len(of) < mostOwners+8 && becameOf(made, nil, time.Time{}).failing {
			of = append(of, made)
		}
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, o := range of {
		group.Go(func() error {
			events, err := l.events(ctx, o)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				unread.add("Events", err)
			}
			k.Events[o.GetUID()] = events
			return nil
		})
	}
	_ = group.Wait() // none of them fails
	if !slices.ContainsFunc(k.Chain, func(link Link) bool {
		return link.Object != nil && func() bool { s, _ := stampOf(link.Object, l.Keys); return s.ok() }()
	}) {
		k.Installed = l.installed(ctx, &unread)
	}
	k.Unread = unread.list
	return k
}

// chain follows the owners.
func (l Looker) chain(ctx context.Context, object *unstructured.Unstructured) []Link {
	chain := []Link{{Ref: refOf(object), Object: object, Controller: true}}
	if mapping, err := l.Mapper.RESTMapping(object.GroupVersionKind().GroupKind(), object.GroupVersionKind().Version); err == nil {
		chain[0].Resource = mapping.Resource.GroupResource()
	}
	seen := map[types.UID]bool{object.GetUID(): true}
	for {
		below := &chain[len(chain)-1]
		owners := below.Object.GetOwnerReferences()
		if len(owners) == 0 {
			return chain
		}
		at := max(0, slices.IndexFunc(owners, func(o metav1.OwnerReference) bool { return o.Controller != nil && *o.Controller }))
		for i, o := range owners {
			if i != at {
				below.Others = append(below.Others, o.Kind+" "+o.Name)
			}
		}
		owner := owners[at]
		link := Link{Ref: Ref{APIVersion: owner.APIVersion, Kind: owner.Kind, Name: owner.Name, UID: string(owner.UID)}, Controller: owner.Controller != nil && *owner.Controller}
		switch {
		case seen[owner.UID]:
			link.Err = errCycle
		case len(chain) > mostOwners:
			link.Err = errMany
		default:
			seen[owner.UID] = true
			link.Object, link.Resource, link.Err = l.owner(ctx, owner, below.Object.GetNamespace())
		}
		if link.Object != nil {
			link.Ref = refOf(link.Object)
		}
		if chain = append(chain, link); link.Object == nil {
			return chain
		}
	}
}

func (l Looker) owner(ctx context.Context, owner metav1.OwnerReference, namespace string) (*unstructured.Unstructured, schema.GroupResource, error) {
	version, err := schema.ParseGroupVersion(owner.APIVersion)
	if err != nil {
		return nil, schema.GroupResource{}, err
	}
	mapping, err := l.Mapper.RESTMapping(schema.GroupKind{Group: version.Group, Kind: owner.Kind}, version.Version)
	if err != nil {
		return nil, schema.GroupResource{}, err
	}
	var resource dynamic.ResourceInterface = l.Objects.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		resource = l.Objects.Resource(mapping.Resource).Namespace(namespace)
	}
	object, err := resource.Get(ctx, owner.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		object, err = nil, errGone
	case err == nil && object.GetUID() != owner.UID:
		object, err = nil, errOther
	}
	return object, mapping.Resource.GroupResource(), err
}

var eventsResource = schema.GroupVersionResource{Version: "v1", Resource: "events"}

func (l Looker) events(ctx context.Context, object *unstructured.Unstructured) ([]corev1.Event, error) {
	namespace := object.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where Events of objects without one are
	}
	list, err := l.Objects.Resource(eventsResource).Namespace(namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.uid=" + string(object.GetUID()), Limit: mostEvents,
	})
	if err != nil {
		return nil, err
	}
	events := make([]corev1.Event, 0, len(list.Items))
	for _, item := range list.Items {
		var event corev1.Event
		if runtime.DefaultUnstructuredConverter.FromUnstructured(item.Object, &event) == nil {
			events = append(events, event)
		}
	}
	return events, nil
}

// What the kinds that everybody has make. Labels select them; owners decide.
var (
	podsResource        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	replicaSetsResource = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
	jobsResource        = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}
	workloadResources   = []schema.GroupVersionResource{
		{Group: "apps", Version: "v1", Resource: "deployments"}, {Group: "apps", Version: "v1", Resource: "statefulsets"},
		{Group: "apps", Version: "v1", Resource: "daemonsets"}, replicaSetsResource,
		{Group: "batch", Version: "v1", Resource: "cronjobs"}, jobsResource, podsResource,
	}
)

// made returns what the object owns, and what that owns.
func (l Looker) made(ctx context.Context, object *unstructured.Unstructured, unread *unreadable) []*unstructured.Unstructured {
	var resources []schema.GroupVersionResource
	selector, _ := selectorOf(object)
	switch group := object.GroupVersionKind().Group; {
	case object.GetNamespace() == "", object.GetKind() == "Pod" && group == "":
		return nil
	case group == "apps" && object.GetKind() == "Deployment":
		resources = []schema.GroupVersionResource{replicaSetsResource, podsResource}
	case group == "apps" && selector != "", group == "batch" && object.GetKind() == "Job", group == "" && selector != "":
		resources = []schema.GroupVersionResource{podsResource}
	case group == "batch":
		resources, selector = []schema.GroupVersionResource{jobsResource}, ""
	case group == "" || strings.HasSuffix(group, ".k8s.io"):
		return nil // a ConfigMap, a Role, … : they make nothing that would tell
	default:
		resources, selector = workloadResources, ""
	}
	owners := map[types.UID]bool{object.GetUID(): true}
	var made []*unstructured.Unstructured
	for _, resource := range resources {
		err := l.list(ctx, resource, object.GetNamespace(), selector, func(o *unstructured.Unstructured) {
			if slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return owners[r.UID] }) {
				owners[o.GetUID()] = true
				made = append(made, o)
			}
		})
		if err != nil {
			unread.add("the "+resource.Resource+" that it made", err)
		}
	}
	return made
}

// selectorOf is spec.selector as a query, and whether the object has one.
func selectorOf(object *unstructured.Unstructured) (string, bool) {
	value, found, err := unstructured.NestedMap(object.Object, "spec", "selector")
	if err != nil || !found {
		return "", false
	}
	var selector metav1.LabelSelector
	if runtime.DefaultUnstructuredConverter.FromUnstructured(value, &selector) != nil {
		return "", false
	}
	s, err := metav1.LabelSelectorAsSelector(&selector)
	if err != nil || s.Empty() {
		return "", false // a ReplicationController's, or a Service's
	}
	return s.String(), true
}

// list calls see for at most mostMade objects.
func (l Looker) list(ctx context.Context, resource schema.GroupVersionResource, namespace, selector string, see func(*unstructured.Unstructured)) error {
	o := metav1.ListOptions{LabelSelector: selector, Limit: pageSize}
	for seen := 0; ; {
		list, err := l.Objects.Resource(resource).Namespace(namespace).List(ctx, o)
		if err != nil {
			return err
		}
		for i := range list.Items {
			see(&list.Items[i])
		}
		seen += len(list.Items)
		if o.Continue = list.GetContinue(); o.Continue == "" {
			return nil
		}
		if seen >= mostMade {
			return fmt.Errorf("there are more than %d", mostMade)
		}
	}
}

var configurationsResource = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}

// installed looks for the label of the shipped manifests.
func (l Looker) installed(ctx context.Context, unread *unreadable) *bool {
	list, err := l.Objects.Resource(configurationsResource).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=tracehook", Limit: 1})
	if err != nil {
		unread.add("whether tracehook is installed", err)
		return nil
	}
	return new(len(list.Items) > 0)
}

// unreadable collects what could not be read, each thing once.
type unreadable struct{ list []Unknown }

func (u *unreadable) add(what string, err error) {
	for _, known := range u.list {
		if known.What == what {
			return
		}
	}
	u.list = append(u.list, Unknown{What: what, Why: whyUnread(err)})
}

// whyUnread is an error in the user's terms.
func whyUnread(err error) string {
	var status apierrors.APIStatus
	switch {
	case apierrors.IsForbidden(err):
		message := err.Error()
		if errors.As(err, &status) {
			message = status.Status().Message
		}
		return "you may not read it: " + message
	case meta.IsNoMatchError(err):
		return "the API server does not serve this kind any more: " + err.Error()
	}
	return err.Error()
}

func refOf(object *unstructured.Unstructured) Ref {
	return Ref{APIVersion: object.GetAPIVersion(), Kind: object.GetKind(), Namespace: object.GetNamespace(), Name: object.GetName(), UID: string(object.GetUID())}
}
