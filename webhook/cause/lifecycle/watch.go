package lifecycle

// What a Controller keeps of what it watches: an object in, its stages and a few words about it out. Of a Pod of 8 KB some 0.5 KB
// are kept, and of one without a sampled cause a third of that. What a start reads waits as a whole for the handlers, so stages
// are packed on their way to them.

import (
	"context"
	"math"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/tracehook/tracehook/webhook/cause"
)

// kept is what stays of an object in the informers' stores, which know it by its name and version.
type kept struct {
	*metav1.ObjectMeta // without anything: the methods that nobody calls

	namespace, name, uid, resourceVersion string
	resource                              string
	version                               uint64
	// subject is nil where the object has no sampled cause.
	subject *subject
	// news are for the handlers, which take them away. Of an Event there is one, and about whom.
	news  []packed
	about string
	// claims are the volume claims of a Pod, as namespace/name.
	claims []string
	// ready are the Pods that are ready endpoints, by UID, of the Service that about names. The handler takes them away.
	ready []string
}

func (k *kept) GetNamespace() string       { return k.namespace }
func (k *kept) GetName() string            { return k.name }
func (k *kept) GetUID() types.UID          { return types.UID(k.uid) }
func (k *kept) GetResourceVersion() string { return k.resourceVersion }

// packed is a Stage that has ended, in a third of its room.
type packed struct {
	name       Name
	container  string
	start, end int64 // nanoseconds since 1970; noTime: not known
	restart    int32
	seconds    bool // its resolution
	guessed    bool
	more       *Stage // all of it, where it says more than that
}

const noTime = math.MinInt64

func pack(s Stage) packed {
	p := packed{name: s.Name, container: s.Container, restart: s.Restart, seconds: s.Resolution == time.Second, start: noTime, end: s.End.UnixNano(), guessed: s.guessed}
	if !s.Start.IsZero() {
		p.start = s.Start.UnixNano()
	}
	if !p.stage().same(s) {
		p.more = &s
	}
	return p
}

func (p packed) stage() Stage {
	if p.more != nil {
		return *p.more
	}
	s := Stage{Name: p.name, Container: p.container, Restart: p.restart, End: time.Unix(0, p.end), guessed: p.guessed}
	if p.start != noTime {
		s.Start = time.Unix(0, p.start)
	}
	if p.seconds {
		s.Resolution = time.Second
	}
	return s
}

// same says whether two stages are one, whatever zone their times are told in.
func (s Stage) same(o Stage) bool {
	if !s.Start.Equal(o.Start) || !s.End.Equal(o.End) {
		return false
	}
	s.Start, s.End = o.Start, o.End
	return s == o
}

// packEnded packs those of an object's stages that are over: nobody is told of others.
func packEnded(stages []Stage) []packed {
	n := 0
	for _, s := range stages {
		if s.Ended() {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	news := make([]packed, 0, n)
	for _, s := range stages {
		if s.Ended() {
			news = append(news, pack(s))
		}
	}
	return news
}

// resource is one kind of object that is watched.
type resource struct {
	name, kind string
	prototype  runtime.Object
	list       func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch      func(context.Context, metav1.ListOptions) (watch.Interface, error)
	stages     func(obj any, keys []string) []Stage
	// fields narrows what is watched.
	fields string
	// optional: without the right to read it everything else is told all the same.
	optional bool
	// nothing is what all that is kept of it shares.
	nothing *metav1.ObjectMeta
}

const (
	volumeClaims   = "persistentvolumeclaims"
	services       = "services"
	endpointSlices = "endpointslices"
)

// untold are the commonest Events about Pods, which say nothing that a Pod does not say.
const untold = "involvedObject.kind=Pod,reason!=Scheduled,reason!=Created,reason!=Started,reason!=Killing"

func resources(c kubernetes.Interface) []resource {
	return []resource{
		watched(volumeClaims, "PersistentVolumeClaim", &corev1.PersistentVolumeClaim{}, c.CoreV1().PersistentVolumeClaims("").List, c.CoreV1().PersistentVolumeClaims("").Watch, func(p *corev1.PersistentVolumeClaim, _ []string) []Stage { return PersistentVolumeClaim(p) }),
		watched("pods", "Pod", &corev1.Pod{}, c.CoreV1().Pods("").List, c.CoreV1().Pods("").Watch, func(p *corev1.Pod, _ []string) []Stage { return podStages(p) }),
		watched("deployments", "Deployment", &appsv1.Deployment{}, c.AppsV1().Deployments("").List, c.AppsV1().Deployments("").Watch, func(d *appsv1.Deployment, keys []string) []Stage { return Deployment(d, cause.At(d, keys...)) }),
		watched("statefulsets", "StatefulSet", &appsv1.StatefulSet{}, c.AppsV1().StatefulSets("").List, c.AppsV1().StatefulSets("").Watch, func(d *appsv1.StatefulSet, keys []string) []Stage { return StatefulSet(d, cause.At(d, keys...)) }),
		watched("daemonsets", "DaemonSet", &appsv1.DaemonSet{}, c.AppsV1().DaemonSets("").List, c.AppsV1().DaemonSets("").Watch, func(d *appsv1.DaemonSet, keys []string) []Stage { return DaemonSet(d, cause.At(d, keys...)) }),
		watched("jobs", "Job", &batchv1.Job{}, c.BatchV1().Jobs("").List, c.BatchV1().Jobs("").Watch, func(j *batchv1.Job, keys []string) []Stage { return Job(j, cause.At(j, keys...)) }),
	}
}

// events come last: a Controller wants to know a Pod before it hears of it.
func events(c kubernetes.Interface) resource {
	r := watched("events", "Event", &corev1.Event{}, c.CoreV1().Events("").List, c.CoreV1().Events("").Watch, func(e *corev1.Event, _ []string) []Stage {
		if s, ok := PodEvent(e); ok && s.Ended() {
			return []Stage{s}
		}
		return nil
	})
	r.fields = untold
	return r
}

// endpoints are what Services have. They come after the Services and the Pods.
func endpoints(c kubernetes.Interface) []resource {
	none := func(any, []string) []Stage { return nil }
	s := watched(services, "Service", &corev1.Service{}, c.CoreV1().Services("").List, c.CoreV1().Services("").Watch, func(*corev1.Service, []string) []Stage { return nil })
	e := watched(endpointSlices, "EndpointSlice", &discoveryv1.EndpointSlice{}, c.DiscoveryV1().EndpointSlices("").List, c.DiscoveryV1().EndpointSlices("").Watch, func(*discoveryv1.EndpointSlice, []string) []Stage { return nil })
	s.optional, e.optional, s.stages, e.stages = true, true, none, none
	return []resource{s, e}
}

// watched takes the type out of what differs by type.
func watched[T any, L runtime.Object, P interface {
	*T
	runtime.Object
	metav1.Object
}](name, kind string, prototype P, list func(context.Context, metav1.ListOptions) (L, error), watch func(context.Context, metav1.ListOptions) (watch.Interface, error), stages func(P, []string) []Stage) resource {
	return resource{
		name: name, kind: kind, prototype: prototype, watch: watch, nothing: new(metav1.ObjectMeta),
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return list(ctx, o) },
		stages: func(obj any, keys []string) []Stage {
			typed, ok := obj.(P)
			if !ok {
				return nil
			}
			return stages(typed, keys)
		},
	}
}

// informer watches r, all namespaces. It lists once, as a stream where the API server can (KEP-3157).
func (r resource) informer(client kubernetes.Interface, keys []string) (cache.SharedIndexInformer, error) {
	narrow := func(o *metav1.ListOptions) { o.FieldSelector = r.fields }
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			narrow(&o)
			return r.list(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			narrow(&o)
			return r.watch(ctx, o)
		},
	}, client), r.prototype, 0, cache.Indexers{})
	return informer, informer.SetTransform(func(obj any) (any, error) { return r.keep(obj, keys), nil })
}

// keep is the transform of an informer: it comes before the store, and again with what the store already holds.
func (r resource) keep(obj any, keys []string) any {
	o, ok := obj.(metav1.Object)
	if _, again := obj.(*kept); again || !ok {
		return obj
	}
	k := &kept{
		ObjectMeta: r.nothing, resource: r.name,
		namespace: o.GetNamespace(), name: o.GetName(), uid: string(o.GetUID()), resourceVersion: o.GetResourceVersion(),
	}
	k.version, _ = version(k.resourceVersion)
	if r.name == volumeClaims { // which nobody stamps: they are told of for the Pods that wait
		k.news = packEnded(r.stages(obj, nil))
		return k
	}
	if e, ok := obj.(*corev1.Event); ok {
		if len(e.InvolvedObject.UID) <= mostUIDBytes {
			k.news, k.about = packEnded(r.stages(obj, nil)), clone(string(e.InvolvedObject.UID))
		}
		return k
	}
	if e, ok := obj.(*discoveryv1.EndpointSlice); ok {
		k.about, k.ready = e.Namespace+"/"+e.Labels[discoveryv1.LabelServiceName], readyPods(e)
		return k
	}
	found, err := cause.Of(o, keys...)
	if err != nil || !found.IsSampled() {
		return k
	}
	k.subject = &subject{kind: r.kind, namespace: k.namespace, name: k.name, uid: k.uid, cause: found, own: ofItsOwn(o, found.SpanID().String(), keys), from: cause.At(o, keys...), created: o.GetCreationTimestamp().Time}
	if k.subject.from.Before(k.subject.created) {
		k.subject.from = k.subject.created
	}
	if p, ok := obj.(*corev1.Pod); ok {
		k.subject.node, k.subject.deleted = clone(p.Spec.NodeName), requested(p)
	}
	stages := r.stages(obj, keys)
	k.news = packEnded(stages)
	if p, ok := obj.(*corev1.Pod); ok {
		for _, s := range stages {
			if s.Name == Schedule && s.Ended() && !s.Failed() {
				k.subject.scheduled = s.End
			}
			if s.Name == StartPod && s.Ended() && !s.Failed() {
				k.subject.ready = s.End
			}
		}
		k.claims = claimsOf(p)
	}
	return k
}

// Whoever writes an EndpointSlice or an Event may call any number of Pods by UIDs of any length. A real one has 36 bytes, or 32 where it is a
// static Pod's; and of the first endpoints of a Service some are enough.
const mostUIDBytes, mostReadyPods = 64, 100

// readyPods are the UIDs of the Pods that a slice calls ready. Endpoints that are no Pods have no time.
func readyPods(e *discoveryv1.EndpointSlice) (uids []string) {
	for _, endpoint := range e.Endpoints {
		if len(uids) == mostReadyPods {
			break
		}
		if ref := endpoint.TargetRef; ref != nil && ref.Kind == "Pod" && len(ref.UID) <= mostUIDBytes && (endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready) {
			uids = append(uids, clone(string(ref.UID)))
		}
	}
	return uids
}

// claimsOf are the volume claims that a Pod needs, as namespace/name. That of an ephemeral volume is called after both.
func claimsOf(p *corev1.Pod) (claims []string) {
	for _, v := range p.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			claims = append(claims, p.Namespace+"/"+v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			claims = append(claims, p.Namespace+"/"+p.Name+"-"+v.Name)
		}
	}
	return claims
}

// ofItsOwn says whether the span is the object's own `create <Kind>`.
func ofItsOwn(o metav1.Object, spanID string, keys []string) bool {
	if len(keys) == 0 {
		keys = []string{cause.DefaultKey, cause.KEP5915Key}
	}
	for _, key := range keys {
		if own := cause.Parse(o.GetAnnotations()[cause.CreateKey(key)], ""); own.IsValid() && own.SpanID().String() == spanID {
			return true
		}
	}
	return false
}
