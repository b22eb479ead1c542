package lifecycle

// Controller: what the cluster says about objects in, spans out. Errors: of setting up, and what Run documents.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const scopeName = "github.com/tracehook/tracehook/webhook/cause/lifecycle"

const (
	// DefaultMaxAge is how old a stage may be that is told, and how long after its cause it may end and still be in its
	// trace: as long as a cause is handed down (webhook/doc.go).
	DefaultMaxAge = time.Hour
	// markEvery is how often a Mark is reached.
	markEvery = 2 * time.Second
	// mostWaiting stages wait for their turn; each has some 300 bytes.
	mostWaiting = 16 << 10
	// patience is how long the exporter may take nothing. What the informers hear meanwhile waits in memory.
	patience = 2 * time.Minute
	// lastFlush is how long the end may wait for the exporter.
	lastFlush = 5 * time.Second
	// mostTold stages of one object are told. A Pod that crashes every five minutes makes fewer in a week, and whoever may write
	// Events could make any number.
	mostTold = 10_000
	// mostAhead is how far the cluster's clocks may be ahead of ours.
	mostAhead = 5 * time.Minute
	// mostEarly things are kept that were heard of objects that are not known yet: two watches are not in step.
	mostEarly = 4 << 10
)

var (
	// ErrBehind means that no span could be exported for two minutes. A Controller that starts from the last Mark tells what is
	// missing.
	ErrBehind = errors.New("spans are not exported")
	// ErrMark means that the cluster is older than the Mark: it has been restored. Start without one.
	ErrMark = errors.New("the cluster is older than what has been told")
)

// Options of a Controller. Client and Flush are needed.
type Options struct {
	// Client reads Pods, Deployments, StatefulSets, DaemonSets, Jobs, PersistentVolumeClaims and Events of all namespaces: list and watch.
	// Where it may read Services and EndpointSlices, too, Services are told of.
	Client kubernetes.Interface
	// Keys are the annotations that hold the cause, as in cause.Of.
	Keys []string
	// Trust says what the cause is to the spans; "" means TrustParent.
	Trust Trust
	// MaxAge bounds what is told: nothing that ended longer ago; and what ends longer after its cause has a trace of its own,
	// linked to it. 0 means DefaultMaxAge.
	MaxAge time.Duration
	// Mark is how far somebody has told before.
	Mark Mark
	// Told is called with each Mark that is reached. Nil: nobody needs it.
	Told func(Mark)
	// Flush returns when all spans that have ended are exported, with an error if they are not: ForceFlush of the SDK's
	// provider.
	Flush func(context.Context) error
	// Now is the clock, for ages and for when a Pod is gone; nil means time.Now.
	Now func() time.Time
	// TracerProvider needs an IDGenerator that asks WantedIDs. Nil means OpenTelemetry's global one.
	TracerProvider trace.TracerProvider
	// MeterProvider receives the metrics; nil means OpenTelemetry's global one.
	MeterProvider metric.MeterProvider
	// Logger is told of starts and of what is missing; nil means slog.Default.
	Logger *slog.Logger
}

// A Controller tells what becomes of the objects of a cluster. It keeps nothing but in memory. It runs once.
type Controller struct {
	o         Options
	tracer    trace.Tracer
	telemetry *telemetry
	log       *slog.Logger
	// waiting are stages in the order in which they were seen, and marks between them.
	waiting chan told
	synced  atomic.Bool
	fail    context.CancelCauseFunc

	mu    sync.Mutex
	seen  Mark // the latest resource versions of which all stages are in waiting
	lives map[string]*life
	// early are stages of Pods that are not known yet.
	early early[heard]
	// bound are volume claims that are bound or lost, and waits the Pods that need a claim; by namespace/name.
	bound map[string]Stage
	waits map[string][]string
	// services are the UIDs of Services by namespace/name. becoming are the Services whose endpoint a Pod is that was not seen to be ready
	// yet, and slices what was heard of Services that are not known yet.
	services map[string]string
	becoming early[string]
	slices   early[string]
}

// early is what was heard of objects that are not known yet, by object. Of more than mostEarly things the oldest are forgotten: anybody may
// speak of objects that never come.
type early[T any] struct {
	of    map[string][]T
	order []string // one for each thing that is kept; those that were taken stay in it
}

func (e *early[T]) keep(key string, thing T) {
	if len(e.order) >= mostEarly {
		delete(e.of, e.order[0])
		e.order = e.order[1:]
	}
	if e.of == nil {
		e.of = map[string][]T{}
	}
	e.of[key] = append(e.of[key], thing)
	e.order = append(e.order, key)
}

func (e *early[T]) take(key string) []T {
	things := e.of[key]
	delete(e.of, key)
	return things
}

// life is what is known of an object that has a sampled cause. Others have a nil life.
type life struct {
	subject *subject
	// changed says that the object was written after the Mark: what it says may not have been told.
	changed bool
	// served says that a Service has had a ready endpoint, or that nobody can know any more when it had the first.
	served bool
	told   []trace.SpanID
}

// heard is what an Event told.
type heard struct {
	namespace string // the Event's, which the API server holds to that of the object it names, but not to the UID
	stage     Stage
	fresh     bool
}

// told is a stage on its way, or a mark.
type told struct {
	subject *subject
	stage   Stage
	reached chan struct{}
}

// New returns a Controller. It calls nobody yet.
func New(o Options) (*Controller, error) {
	if o.Client == nil || o.Flush == nil {
		return nil, errors.New("make controller: Client and Flush are needed")
	}
	switch o.Trust {
	case "":
		o.Trust = TrustParent
	case TrustParent, TrustLink, TrustNone:
	default:
		return nil, fmt.Errorf("make controller: trust %q: want parent, link or none", o.Trust)
	}
	if o.MaxAge == 0 {
		o.MaxAge = DefaultMaxAge
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.TracerProvider == nil {
		o.TracerProvider = otel.GetTracerProvider()
	}
	if o.MeterProvider == nil {
		o.MeterProvider = otel.GetMeterProvider()
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Told == nil {
		o.Told = func(Mark) {}
	}
	t, err := newTelemetry(o.MeterProvider)
	if err != nil {
		return nil, err
	}
	return &Controller{
		o: o, telemetry: t, log: o.Logger, tracer: o.TracerProvider.Tracer(scopeName, trace.WithSchemaURL(semconv.SchemaURL)),
		waiting: make(chan told, mostWaiting), seen: Mark{}, lives: map[string]*life{},
		bound: map[string]Stage{}, waits: map[string][]string{},
		services: map[string]string{},
	}, nil
}

// Synced says whether everything that was there at the start has been read.
func (c *Controller) Synced() bool { return c.synced.Load() }

// Run tells until ctx ends; then what has been seen is told, and Run returns nil. Other ends are ErrBehind, ErrMark, and that the
// API server could not be read.
func (c *Controller) Run(ctx context.Context) error {
	working, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	c.fail = stop
	defer stop(nil)
	go c.tell(working) // an exporter that takes nothing may hold it up for longer than Run lasts
	watching, unwatch := context.WithCancel(working)
	defer unwatch()
	defer context.AfterFunc(ctx, unwatch)()

	var group sync.WaitGroup
	err := c.watch(watching, &group)
	if err == nil {
		c.synced.Store(true)
		c.log.Info("everything that was there has been read", "objects", c.known(), "told_before", c.o.Mark.String())
		for ctx.Err() == nil && working.Err() == nil {
			c.reach(working)
			select {
			case <-ctx.Done():
			case <-working.Done():
			case <-time.After(markEvery):
			}
		}
	}
	unwatch()
	group.Wait() // no more is seen
	if err == nil && working.Err() == nil {
		last, cancel := context.WithTimeout(working, lastFlush)
		defer cancel()
		c.reach(last)
	}
	stop(nil)
	if cause := context.Cause(working); !errors.Is(cause, context.Canceled) {
		return cause
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Controller) known() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lives)
}

// watch starts all informers, and returns when they and the handlers have what was there.
func (c *Controller) watch(ctx context.Context, group *sync.WaitGroup) error {
	if err := c.watchAll(ctx, group, resources(c.o.Client)); err != nil {
		return err
	}
	return c.watchAll(ctx, group, append(endpoints(c.o.Client), events(c.o.Client)))
}

func (c *Controller) watchAll(ctx context.Context, group *sync.WaitGroup, resources []resource) error {
	var started []func() error
	for _, r := range resources {
		settled, err := c.start(ctx, group, r)
		if err != nil {
			return fmt.Errorf("watch %s: %w", r.name, err)
		}
		started = append(started, settled)
	}
	for _, settled := range started {
		if err := settled(); err != nil {
			return err
		}
	}
	return nil
}

// start starts one informer. settled waits for what was there.
func (c *Controller) start(ctx context.Context, group *sync.WaitGroup, r resource) (settled func() error, err error) {
	informer, err := r.informer(c.o.Client, c.o.Keys)
	if err != nil {
		return nil, err
	}
	handled, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    func(obj any, initial bool) { c.see(ctx, obj, initial) },
		UpdateFunc: func(_, obj any) { c.see(ctx, obj, false) },
		DeleteFunc: func(obj any) { c.gone(ctx, obj) },
	})
	if err != nil {
		return nil, err
	}
	running, giveUp := context.WithCancel(ctx)
	if r.optional {
		if err := informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, reflector *cache.Reflector, err error) {
			if !apierrors.IsForbidden(err) {
				cache.DefaultWatchErrorHandler(ctx, reflector, err)
				return
			}
			if running.Err() == nil {
				c.log.Warn("not told of: they may not be read", "resource", r.name, "error", err)
			}
			giveUp()
		}); err != nil {
			giveUp()
			return nil, err
		}
	}
	group.Go(func() {
		defer giveUp()
		informer.RunWithContext(running)
	})
	return func() error {
		if !cache.WaitForCacheSync(running.Done(), handled.HasSynced) {
			if ctx.Err() == nil {
				return nil // it was given up
			}
			return fmt.Errorf("watch %s: %w", r.name, context.Cause(ctx))
		}
		// A mark of later than now is of another cluster, or of this one before it was restored.
		if now, ok := version(informer.LastSyncResourceVersion()); ok && now < c.o.Mark[r.name] {
			return fmt.Errorf("%w: %s at %d, told up to %d", ErrMark, r.name, now, c.o.Mark[r.name])
		}
		return nil
	}, nil
}

// see takes what an object says now. initial is for what was there at the start.
func (c *Controller) see(ctx context.Context, obj any, initial bool) {
	k, ok := obj.(*kept)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.seen[k.resource] = max(c.seen[k.resource], k.version) }()
	mark, marked := c.o.Mark[k.resource]
	fresh := !initial || !marked || k.version == 0 || k.version > mark
	news := k.news
	k.news = nil // the store need not hold them
	if k.resource == "events" {
		for _, n := range news {
			c.hear(ctx, k.about, heard{k.namespace, n.stage(), fresh})
		}
		return
	}
	if k.resource == volumeClaims {
		if len(news) > 0 {
			c.bind(ctx, k.namespace+"/"+k.name, news[0].stage(), fresh)
		}
		return
	}
	if k.resource == endpointSlices {
		pods := k.ready
		k.ready = nil
		c.endpoints(ctx, k.about, pods, fresh)
		return
	}
	uid := k.uid
	l, before := c.lives[uid]
	if k.resource == services {
		c.services[k.namespace+"/"+k.name] = uid
	}
	if k.subject == nil {
		if k.resource == services {
			c.slices.take(k.namespace + "/" + k.name)
		}
		c.lives[uid] = nil
		c.early.take(uid)
		c.becoming.take(uid)
		return
	}
	if l == nil {
		l = &life{subject: k.subject, changed: fresh}
		// Of a Service that has long been there the first Pods may be gone: the earliest of today's is not its first.
		l.served = k.resource == services && c.o.Now().Sub(k.subject.created) > c.o.MaxAge
		c.lives[uid] = l
	}
	l.subject = k.subject
	long := initial && c.o.Now().Sub(l.subject.from) > c.o.MaxAge
	for _, n := range news {
		s := n.stage()
		c.add(ctx, l, s, fresh && (!long || !s.guessed)) // it may have ended long ago
	}
	for _, claim := range k.claims {
		if !before {
			c.waits[claim] = append(c.waits[claim], uid)
		}
		if s, ok := c.bound[claim]; ok {
			c.heldUp(ctx, l, claim, s, fresh)
		}
	}
	if !before {
		for _, h := range c.early.take(uid) {
			c.believe(ctx, l, h)
		}
	}
	if k.resource == services {
		c.endpoints(ctx, k.namespace+"/"+k.name, c.slices.take(k.namespace+"/"+k.name), fresh)
	}
	if !l.subject.ready.IsZero() {
		for _, service := range c.becoming.take(uid) {
			if _, known := c.services[service]; known { // else it is gone
				c.endpoints(ctx, service, []string{uid}, fresh)
			}
		}
	}
}

// endpoints takes which Pods are ready endpoints of a Service. The first of them ends its wait: it was ready when the Pod was. Pods without
// a sampled cause have no time here.
func (c *Controller) endpoints(ctx context.Context, service string, pods []string, fresh bool) {
	uid, known := c.services[service]
	if !known { // two watches are not in step
		for _, pod := range pods {
			if !slices.Contains(c.slices.of[service], pod) {
				c.slices.keep(service, pod)
			}
		}
		return
	}
	l := c.lives[uid]
	if l == nil || l.served {
		return
	}
	var first time.Time
	for _, pod := range pods {
		p, known := c.lives[pod]
		switch {
		case known && p != nil && !p.subject.ready.IsZero():
			if first.IsZero() || p.subject.ready.Before(first) {
				first = p.subject.ready
			}
			fresh = fresh || p.changed
		case (!known || p != nil) && !slices.Contains(c.becoming.of[pod], service):
			c.becoming.keep(pod, service)
		}
	}
	if first.IsZero() {
		return
	}
	l.served = true
	s := Stage{Name: GetEndpoint, Start: l.subject.from, End: first, Resolution: time.Second}
	if s.End.Sub(s.Start) >= s.Resolution { // else it had one at once
		c.add(ctx, l, s, fresh || l.changed)
	}
}

// bind takes that a volume claim is bound, which its first status of that says best.
func (c *Controller) bind(ctx context.Context, claim string, s Stage, fresh bool) {
	if _, known := c.bound[claim]; known {
		return
	}
	c.bound[claim] = s
	for _, uid := range c.waits[claim] {
		if l := c.lives[uid]; l != nil {
			c.heldUp(ctx, l, claim, s, fresh || l.changed)
		}
	}
}

// heldUp adds how long a Pod waited for a claim, if it did: it cannot be scheduled before.
func (c *Controller) heldUp(ctx context.Context, l *life, claim string, s Stage, fresh bool) {
	s.Start = latest(time.Time{}, s.Start, l.subject.created)
	if scheduled := l.subject.scheduled; s.End.Sub(s.Start) < s.Resolution || !scheduled.IsZero() && s.End.After(scheduled) {
		return
	}
	_, s.Occurrence, _ = strings.Cut(claim, "/")
	c.add(ctx, l, s, fresh)
}

// hear takes what an Event says of a Pod.
func (c *Controller) hear(ctx context.Context, uid string, h heard) {
	if l, known := c.lives[uid]; known {
		if l != nil {
			c.believe(ctx, l, h)
		}
		return
	}
	c.early.keep(uid, h)
}

// believe takes what an Event says of an object of its own namespace: whoever may write Events in one must not tell of
// another's objects.
func (c *Controller) believe(ctx context.Context, l *life, h heard) {
	if h.namespace == l.subject.namespace {
		c.add(ctx, l, h.stage, h.fresh || l.changed)
	}
}

// gone takes that an object is no more.
func (c *Controller) gone(ctx context.Context, obj any) {
	if missed, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = missed.Obj
	}
	k, ok := obj.(*kept)
	if !ok || k.resource == "events" {
		return
	}
	c.see(ctx, obj, false) // what it said at last
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.resource == volumeClaims {
		delete(c.bound, k.namespace+"/"+k.name)
		return
	}
	if k.resource == endpointSlices {
		c.slices.take(k.about)
		return
	}
	uid := k.uid
	c.becoming.take(uid)
	if k.resource == services && c.services[k.namespace+"/"+k.name] == uid {
		delete(c.services, k.namespace+"/"+k.name)
	}
	for _, claim := range k.claims {
		if c.waits[claim] = slices.DeleteFunc(c.waits[claim], func(other string) bool { return other == uid }); len(c.waits[claim]) == 0 {
			delete(c.waits, claim)
		}
	}
	l := c.lives[uid]
	delete(c.lives, uid)
	if l == nil || k.resource != "pods" {
		return
	}
	now := c.o.Now()
	deleted := sane(Stage{Name: DeletePod, Start: l.subject.deleted, End: now, Resolution: time.Second})
	c.add(ctx, l, deleted, true)
	c.add(ctx, l, sane(Stage{Name: StartPod, Start: l.subject.created, End: deleted.Start, Resolution: time.Second, Failure: failure("Deleted", "the Pod was deleted before it was ready")}), true)
}

// add hands a stage on that has ended and was not told yet.
func (c *Controller) add(ctx context.Context, l *life, s Stage, fresh bool) {
	if !s.Ended() || !l.subject.tells(c.o.Trust, s) {
		return
	}
	id := SpanID(l.subject.cause, l.subject.uid, s)
	if slices.Contains(l.told, id) {
		return
	}
	if len(l.told) >= mostTold {
		c.telemetry.count("too_many", 1)
		return
	}
	l.told = append(l.told, id)
	if !fresh {
		return
	}
	switch age := c.o.Now().Sub(s.End); {
	case age > c.o.MaxAge:
		c.telemetry.count("too_old", 1)
		return
	case age < -mostAhead: // an Event may say any time
		c.telemetry.count("ahead", 1)
		return
	}
	item := told{subject: l.subject, stage: s}
	select {
	case c.waiting <- item:
		return
	default:
	}
	select {
	case c.waiting <- item:
	case <-ctx.Done():
	case <-time.After(patience):
		c.fail(ErrBehind)
	}
}

// tell makes spans, one after the other, in the order in which things were seen.
func (c *Controller) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case next := <-c.waiting:
			if next.reached != nil {
				close(next.reached)
				continue
			}
			late := next.stage.End.Sub(next.subject.from) > c.o.MaxAge
			span := next.subject.tell(c.tracer, c.o.Trust, late, next.stage)
			c.telemetry.measure(next.subject, next.stage, span)
		}
	}
}

// reach waits until everything that has been seen is told and exported.
func (c *Controller) reach(ctx context.Context) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, ErrBehind)
	defer cancel()
	reached := make(chan struct{})
	c.mu.Lock()
	mark := make(Mark, len(c.seen))
	for resource, version := range c.seen {
		mark[resource] = max(version, c.o.Mark[resource])
	}
	select {
	case c.waiting <- told{reached: reached}:
	case <-ctx.Done():
	}
	c.mu.Unlock()
	select {
	case <-reached:
	case <-ctx.Done():
	}
	err := ctx.Err()
	if err == nil {
		err = c.o.Flush(ctx)
	}
	if err != nil {
		if errors.Is(context.Cause(ctx), ErrBehind) {
			c.fail(ErrBehind)
		}
		return
	}
	c.telemetry.reached.Record(ctx, c.o.Now().Unix())
	c.o.Told(mark)
}
