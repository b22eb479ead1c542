package webhook

// Lineage: the owner reference of a created object in, the cause that is stored on
// that owner out, asked of the API server. Errors: an owner that is not there, is
// not the one referred to or may not be read, and an API server that does not answer
// in time. None of them is worth more than the cause.

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/webhook/cause"
)

const (
	// LongestOwnerTimeout is how long a look-up may hold a created object up at most.
	LongestOwnerTimeout = 50 * time.Millisecond
	// DefaultOwnerTTL is short because what is stored on an owner changes: a second
	// `kubectl set image` changes the Deployment's, and the deployment controller
	// writes that over its ReplicaSet's. Until the TTL is over a Pod might be put down
	// to the first one. Controllers create an owner's Pods in bursts, so a longer one
	// would spare the API server no more than this does: of 100 Pods in five seconds
	// it is asked for 20.
	DefaultOwnerTTL = 250 * time.Millisecond
	// DefaultOwnerSize is enough for 4000 owners a second at DefaultOwnerTTL.
	DefaultOwnerSize = 1024

	// Metadata may hold 256 KiB of annotations, and as much again of who wrote them.
	maxOwnerBytes = 1 << 20
	// Anybody may send a reference; one that the API server would take is shorter.
	maxReferenceBytes = 1024
	ownerShards       = 16
	// MostOwnerLookups is how many requests for owners are under way at once, at most. Beyond it
	// an object gets its own request's context, and is counted as "limited".
	MostOwnerLookups = 64
)

// OwnersOptions of Owners. Config is required; of the rest the zero values are stated.
type OwnersOptions struct {
	// Config of the API server. Only address, credentials and transport count:
	// nothing here is slowed down by its QPS.
	Config *rest.Config
	// Key of the annotation, as in TraceContextOptions; "" means DefaultAnnotationKey.
	Key string
	// Timeout of a look-up, LongestOwnerTimeout at most; 0 means that. A caller never
	// waits longer than half of what is left until its own deadline, either.
	Timeout time.Duration
	// TTL of an answer; 0 means DefaultOwnerTTL.
	TTL time.Duration
	// Size is how many answers are kept; 0 means DefaultOwnerSize.
	Size int
	// TracerProvider makes the CLIENT spans; nil means none are made.
	TracerProvider trace.TracerProvider
	// MeterProvider makes the metrics; nil means none are made.
	MeterProvider metric.MeterProvider
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Owners finds the causes that are stored on controller owners: it is the Causes of
// a TraceContext.
//
// It asks the API server for an owner's metadata, in a CLIENT span below the span in
// the caller's context, whose traceparent the request carries. Callers that ask for
// the same owner at the same time share one request. Answers are cached for the TTL,
// negative ones too. Timeouts are not cached, so that one slow request costs
// only those who waited for it. Where a kind is found in the API is asked by discovery.
//
// The time of a Cause is when tracehook stored it, else when the owner was created.
type Owners struct {
	client                                     *http.Client
	base                                       url.URL
	key, tracestateKey, causedAtKey, createKey string
	timeout, ttl                               time.Duration
	now                                        func() time.Time
	lookups                                    metric.Int64Counter
	attributes                                 [lookupResults][2]metric.MeasurementOption // [1]: from the cache
	seed                                       maphash.Seed
	shards                                     [ownerShards]ownerShard
	underWay                                   chan struct{} // one element for each request
	kinds                                      *kinds
}

// ownerShard is a part of the cache, so that no lock is shared by all requests.
type ownerShard struct {
	sync.Mutex
	lru *simplelru.LRU[ownerKey, *lookup]
}

// ownerKey is everything that a reference says, and where. The UID alone would let
// anybody who refers to a real owner by a wrong name put a wrong answer in the
// place of the right one.
type ownerKey struct {
	namespace, apiVersion, kind, name string
	uid                               types.UID
}

// lookup is one request, under way or answered.
type lookup struct {
	done chan struct{} // closed when the rest is written
	lookupAnswer
	expires time.Time // zero: at once
}

type lookupAnswer struct {
	cause  Cause
	result lookupResult
	err    error
}

// lookupResult is how a look-up ended: one of a closed set, for metric and span.
type lookupResult int

const (
	lookupFound       lookupResult = iota
	lookupNone                     // the owner has none stored, or nothing that can be read
	lookupNotFound                 // there is no such owner
	lookupUIDMismatch              // somebody else of that name
	lookupForbidden                // for want of RBAC
	lookupTimeout                  // no answer in time
	lookupInvalid                  // no reference that could be followed
	lookupLimited                  // too many requests are under way
	lookupError                    // anything else
	lookupResults                  // how many there are
)

var lookupResultNames = [lookupResults]string{
	"found", "none", "not_found", "uid_mismatch", "forbidden", "timeout", "invalid", "limited", "error",
}

// Attributes of the counter, and of the span that a look-up was made in.
const (
	keyLineageResult = attribute.Key("tracehook.lineage.result")
	keyLineageCached = attribute.Key("tracehook.lineage.cached")
)

// NewOwners makes the client; it connects to nobody yet.
func NewOwners(o OwnersOptions) (*Owners, error) {
	if o.Config == nil {
		return nil, errors.New("look owners up: no configuration of an API server")
	}
	if o.Timeout < 0 || o.Timeout > LongestOwnerTimeout {
		return nil, fmt.Errorf("look owners up: a timeout of %s is not within 0 and %s", o.Timeout, LongestOwnerTimeout)
	}
	if o.TTL < 0 || o.Size < 0 {
		return nil, fmt.Errorf("look owners up: a TTL of %s or a size of %d is negative", o.TTL, o.Size)
	}
	if o.Key == "" {
		o.Key = DefaultAnnotationKey
	}
	if o.Timeout == 0 {
		o.Timeout = LongestOwnerTimeout
	}
	if o.TTL == 0 {
		o.TTL = DefaultOwnerTTL
	}
	if o.Size == 0 {
		o.Size = DefaultOwnerSize
	}
	if o.TracerProvider == nil {
		o.TracerProvider = tracenoop.NewTracerProvider()
	}
	if o.MeterProvider == nil {
		o.MeterProvider = metricnoop.NewMeterProvider()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	owners := &Owners{
		key: o.Key, tracestateKey: cause.TracestateKey(o.Key), causedAtKey: cause.CausedAtKey(o.Key), createKey: cause.CreateKey(o.Key),
		timeout: o.Timeout, ttl: o.TTL, now: o.Now, seed: maphash.MakeSeed(), underWay: make(chan struct{}, MostOwnerLookups),
	}
	owners.kinds = newKinds(owners.fetch, o.Now)
	for i := range owners.shards {
		owners.shards[i].lru, _ = simplelru.NewLRU[ownerKey, *lookup]((o.Size+ownerShards-1)/ownerShards, nil) // an error only of size 0
	}
	if err := owners.connect(o.Config, o.TracerProvider); err != nil {
		return nil, fmt.Errorf("look owners up: %w", err)
	}
	var err error
	owners.lookups, err = o.MeterProvider.Meter(scopeName, metric.WithSchemaURL(semconv.SchemaURL)).Int64Counter("tracehook.lineage.lookups",
		metric.WithUnit("{lookup}"), metric.WithDescription("Look-ups of the trace context that is stored on the owner of a created object, by result."))
	if err != nil {
		return nil, fmt.Errorf("create the counter of look-ups: %w", err)
	}
	for result, name := range lookupResultNames {
		for i, cached := range []bool{false, true} {
			owners.attributes[result][i] = metric.WithAttributeSet(attribute.NewSet(keyLineageResult.String(name), keyLineageCached.Bool(cached)))
		}
	}
	return owners, nil
}

// connect makes a plain HTTP client. client-go's own would wait for its rate limiter,
// try again after a 429, and read an answer of any length; a look-up has no time for
// the first two and no room for the third.
func (o *Owners) connect(config *rest.Config, tracerProvider trace.TracerProvider) error {
	config = rest.CopyConfig(config)
	if config.UserAgent == "" {
		config.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return otelhttp.NewTransport(next,
			otelhttp.WithTracerProvider(tracerProvider),
			otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()), // the counter here says more
			otelhttp.WithPropagators(propagation.TraceContext{}),      // no baggage
			otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method + " " + r.Pattern }),
		)
	})
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return err
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return err
	}
	o.base = *base
	o.client = &http.Client{
		Transport: transport,
		// Credentials go to the API server and to nobody it may name.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// Cause returns what is stored on a controller owner of an object in that namespace
// ("": of a cluster-scoped object). It is the zero Cause where nothing is stored, and
// where it could not be found out, with an error that says why.
func (o *Owners) Cause(ctx context.Context, namespace string, owner metav1.OwnerReference) (Cause, error) {
	key := ownerKey{namespace, owner.APIVersion, owner.Kind, owner.Name, owner.UID}
	answer, cached := o.answer(ctx, key)
	i := 0
	if cached {
		i = 1
	}
	o.lookups.Add(ctx, 1, o.attributes[answer.result][i])
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(keyLineageResult.String(lookupResultNames[answer.result]), keyLineageCached.Bool(cached))
	}
	if answer.err != nil {
		return Cause{}, fmt.Errorf("look up owner %s %s: %w", clip(owner.Kind), clip(owner.Name), answer.err)
	}
	return answer.cause, nil
}

func (o *Owners) answer(ctx context.Context, key ownerKey) (answer lookupAnswer, cached bool) {
	if len(key.namespace)+len(key.apiVersion)+len(key.kind)+len(key.name)+len(key.uid) > maxReferenceBytes {
		return lookupAnswer{result: lookupInvalid, err: errors.New("the reference is longer than any real one")}, false
	}
	wait := o.timeout
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, deadline.Sub(o.now())/2)
	}
	if wait <= 0 {
		return lookupAnswer{result: lookupTimeout, err: context.DeadlineExceeded}, false
	}
	l, cached := o.join(ctx, key)
	switch {
	case l == nil:
		return lookupAnswer{result: lookupLimited, err: errTooMany}, false
	case cached:
		return l.lookupAnswer, true
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	select {
	case <-l.done:
		return l.lookupAnswer, false
	case <-ctx.Done():
		return lookupAnswer{result: lookupTimeout, err: ctx.Err()}, false
	}
}

var errTooMany = errors.New("too many requests are under way")

// join returns an answer that is still good, or else the request that is under way:
// if there is none it starts one, and returns nil if that would be one too many.
func (o *Owners) join(ctx context.Context, key ownerKey) (l *lookup, answered bool) {
	shard := &o.shards[maphash.Comparable(o.seed, key)%ownerShards]
	shard.Lock()
	defer shard.Unlock()
	if l, ok := shard.lru.Get(key); ok {
		select {
		case <-l.done:
			if o.now().Before(l.expires) {
				return l, true
			}
		default:
			return l, false
		}
	}
	select {
	case o.underWay <- struct{}{}:
	default:
		return nil, false
	}
	l = &lookup{done: make(chan struct{})}
	shard.lru.Add(key, l)
	// Not cancelled when the first caller gives up: the others wait too, and the
	// answer is good for the next one.
	go o.do(context.WithoutCancel(ctx), key, l)
	return l, false
}

// do makes the request of a look-up.
func (o *Owners) do(ctx context.Context, key ownerKey, l *lookup) {
	defer close(l.done)
	defer func() { <-o.underWay }()
	defer func() { // of somebody's transport, say; nobody above this goroutine would catch it
		if value := recover(); value != nil {
			l.lookupAnswer = lookupAnswer{result: lookupError, err: fmt.Errorf("panic: %v", value)}
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	var answered bool
	if l.lookupAnswer, answered = o.get(ctx, key); answered {
		l.expires = o.now().Add(o.ttl)
	}
}

// get asks the API server. It answers from etcd and not from its watch cache
// (resourceVersion=0): a ReplicaSet's first Pod comes milliseconds after the
// ReplicaSet itself, which the cache may not have seen yet.
func (o *Owners) get(ctx context.Context, key ownerKey) (answer lookupAnswer, answered bool) {
	place, pattern, err := o.locate(ctx, key)
	switch {
	case errors.Is(err, errTooMany):
		return lookupAnswer{result: lookupLimited, err: err}, false
	case ctx.Err() != nil:
		return lookupAnswer{result: lookupTimeout, err: ctx.Err()}, false
	case errors.Is(err, errNoSuchKind):
		return lookupAnswer{result: lookupNotFound, err: err}, true
	case errors.Is(err, errDiscovery):
		return lookupAnswer{result: lookupError, err: err}, false
	case err != nil:
		return lookupAnswer{result: lookupInvalid, err: err}, true
	}
	body, status, err := o.fetch(ctx, place, pattern, acceptMetadata)
	switch {
	case errors.Is(err, errTooLarge):
		return lookupAnswer{result: lookupError, err: err}, true
	case err != nil:
		return unanswered(ctx, err), false
	}
	refused := fmt.Errorf("%d %s", status, http.StatusText(status))
	switch status {
	case http.StatusOK:
		return o.read(body, key.uid), true
	case http.StatusNotFound:
		return lookupAnswer{result: lookupNotFound, err: refused}, true
	case http.StatusUnauthorized, http.StatusForbidden:
		return lookupAnswer{result: lookupForbidden, err: refused}, true
	}
	return lookupAnswer{result: lookupError, err: refused}, true
}

var errTooLarge = fmt.Errorf("the answer is larger than %d bytes", maxOwnerBytes)

// fetch makes a GET. The body is that of a 200 only.
func (o *Owners) fetch(ctx context.Context, place, pattern, accept string) (body []byte, status int, err error) {
	location := o.base
	location.Path = strings.TrimSuffix(location.Path, "/") + place
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept", accept)
	req.Pattern = pattern // only for the span's name
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode, nil
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxOwnerBytes+1))
	if err == nil && len(body) > maxOwnerBytes {
		err = errTooLarge
	}
	return body, resp.StatusCode, err
}

func unanswered(ctx context.Context, err error) lookupAnswer {
	if ctx.Err() != nil {
		return lookupAnswer{result: lookupTimeout, err: ctx.Err()}
	}
	return lookupAnswer{result: lookupError, err: err}
}

// desiredReplicasAnnotation is what the deployment controller writes on a ReplicaSet.
const desiredReplicasAnnotation = "deployment.kubernetes.io/desired-replicas"

// read takes the cause from an owner's metadata.
func (o *Owners) read(body []byte, uid types.UID) lookupAnswer {
	var owner struct {
		Metadata struct {
			UID               types.UID         `json:"uid"`
			CreationTimestamp string            `json:"creationTimestamp"`
			Annotations       map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	if json.Unmarshal(body, &owner) != nil { // its text might quote the object
		return lookupAnswer{result: lookupError, err: errors.New("the answer is not an object's metadata")}
	}
	if owner.Metadata.UID != uid {
		return lookupAnswer{result: lookupUIDMismatch, err: errors.New("an object of that name has another UID")}
	}
	annotations := owner.Metadata.Annotations
	stored := Cause{Traceparent: annotations[o.key], Tracestate: annotations[o.tracestateKey]}
	if len(stored.Tracestate) > cause.MaxTracestateBytes {
		stored.Tracestate = "" // it counts for nothing, and would be remembered and handed down
	}
	span := stored.SpanContext()
	if !span.IsValid() {
		return lookupAnswer{result: lookupNone}
	}
	if stored.readCausedAt(annotations[o.causedAtKey]); !stored.vouched {
		stored.At, _ = time.Parse(time.RFC3339, owner.Metadata.CreationTimestamp)
	}
	stored.wanted, _ = strconv.Atoi(annotations[desiredReplicasAnnotation])
	// The span `create <Kind>` counts for as long as it belongs to the stored cause:
	// a controller that writes a newer cause over that one knows nothing of the span.
	if create := cause.Parse(annotations[o.createKey], stored.Tracestate); create.IsValid() && create.TraceID() == span.TraceID() {
		stored.Traceparent = annotations[o.createKey]
	}
	return lookupAnswer{result: lookupFound, cause: stored}
}

// acceptMetadata asks for metadata only. An API server behind an APIService may know
// only whole objects; of these, too, only the metadata is looked at.
const acceptMetadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"

// locate turns a reference into a path of the API, and into that path's pattern, of
// which there are few.
func (o *Owners) locate(ctx context.Context, key ownerKey) (place, pattern string, err error) {
	gv, err := schema.ParseGroupVersion(key.apiVersion)
	if err != nil {
		return "", "", errors.New("apiVersion is not GROUP/VERSION")
	}
	for _, part := range []string{gv.Version, key.kind, key.name} {
		if part == "" || len(content.IsPathSegmentName(part)) > 0 { // "../secrets", say
			return "", "", errors.New("a part of it cannot be part of a path")
		}
	}
	if len(content.IsPathSegmentName(gv.Group)) > 0 || len(content.IsPathSegmentName(key.namespace)) > 0 {
		return "", "", errors.New("a part of it cannot be part of a path")
	}
	kind := gv.WithKind(key.kind)
	r, known := workloads[kind]
	if !known {
		if r, err = o.kinds.find(ctx, kind); err != nil {
			return "", "", err
		}
	}
	if r.namespaced && key.namespace == "" {
		return "", "", errors.New("the owner of a cluster-scoped object is in a namespace")
	}
	place, pattern = groupVersionPath(gv)
	if known {
		pattern = place
	}
	if r.namespaced {
		place += "/namespaces/" + key.namespace
		pattern += "/namespaces/{namespace}"
	}
	place += "/" + r.resource + "/" + key.name
	if known {
		return place, pattern + "/" + r.resource + "/{name}", nil
	}
	return place, pattern + "/{resource}/{name}", nil
}

func groupVersionPath(gv schema.GroupVersion) (place, pattern string) {
	if gv.Group == "" {
		return "/api/" + gv.Version, "/api/{version}"
	}
	return "/apis/" + gv.Group + "/" + gv.Version, "/apis/{group}/{version}"
}

// workloads are the built-in kinds that own others. Spans are named by what is in
// here: anybody may refer to an owner of any kind, and names must stay few.
var workloads = map[schema.GroupVersionKind]kindPlace{
	{Group: "apps", Version: "v1", Kind: "Deployment"}:        {"deployments", true},
	{Group: "apps", Version: "v1", Kind: "ReplicaSet"}:        {"replicasets", true},
	{Group: "apps", Version: "v1", Kind: "StatefulSet"}:       {"statefulsets", true},
	{Group: "apps", Version: "v1", Kind: "DaemonSet"}:         {"daemonsets", true},
	{Group: "batch", Version: "v1", Kind: "Job"}:              {"jobs", true},
	{Group: "batch", Version: "v1", Kind: "CronJob"}:          {"cronjobs", true},
	{Group: "", Version: "v1", Kind: "ReplicationController"}: {"replicationcontrollers", true},
}
