package webhook

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/metric/metricdata/metricdatatest"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/webhook/cause"
)

// Where the API server itself matters, e2e/lineage_test.go asks a real one. Here are
// the shapes of failure that a real one does not make on demand.

var webReplicaSet = metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-1", UID: "uid-of-web-1"}

const storedCause = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// metadataOf is what an API server answers, less what nobody reads.
func metadataOf(uid, annotations string) string {
	return fmt.Sprintf(`{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"web-1","uid":%q,"annotations":%s}}`, uid, annotations)
}

var storedMetadata = metadataOf("uid-of-web-1", `{"a":"b","tracehook.dev/traceparent":"`+storedCause+`","tracehook.dev/tracestate":"x=1"}`)

func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, body)
	}
}

// ownersTest is an Owners and everything it tells.
type ownersTest struct {
	*Owners
	requests *atomic.Int64 // to the API server
	spans    *tracetest.SpanRecorder
	metrics  *metric.ManualReader
	tracer   trace.Tracer
}

// newOwners makes Owners that ask an API server of the test's, without a network
// between them: in a synctest bubble nothing there takes any time.
func newOwners(t *testing.T, o OwnersOptions, api http.Handler) *ownersTest {
	t.Helper()
	requests := new(atomic.Int64)
	o.Config = &rest.Config{Host: "https://api.example", Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		requests.Add(1)
		recorder := httptest.NewRecorder()
		api.ServeHTTP(recorder, r)
		resp := recorder.Result()
		resp.Request = r
		return resp, nil
	})}
	test := newOwnersAt(t, o)
	test.requests = requests
	return test
}

func inBubble(test func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) { synctest.Test(t, test) }
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func newOwnersAt(t *testing.T, o OwnersOptions) *ownersTest {
	t.Helper()
	test := &ownersTest{spans: tracetest.NewSpanRecorder(), metrics: metric.NewManualReader()}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(test.spans))
	test.tracer = provider.Tracer("test")
	o.TracerProvider = provider
	o.MeterProvider = metric.NewMeterProvider(metric.WithReader(test.metrics))
	var err error
	if test.Owners, err = NewOwners(o); err != nil {
		t.Fatal(err)
	}
	return test
}

// counted is the counter as "result" or "result cached", and how often.
func (o *ownersTest) counted(t *testing.T) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := o.metrics.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	counted := map[string]int64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != "tracehook.lineage.lookups" {
				t.Errorf("metric %s besides the counter of look-ups", m.Name)
				continue
			}
			for _, point := range m.Data.(metricdata.Sum[int64]).DataPoints {
				result, _ := point.Attributes.Value(keyLineageResult)
				name := result.AsString()
				if cached, _ := point.Attributes.Value(keyLineageCached); cached.AsBool() {
					name += " cached"
				}
				counted[name] = point.Value
			}
		}
	}
	return counted
}

func (o *ownersTest) wantCounted(t *testing.T, want map[string]int64) {
	t.Helper()
	if got := o.counted(t); !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

func TestALookUpIsAClientSpanThatAsksForMetadataOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked http.Header
		var uri string
		o := newOwners(t, OwnersOptions{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked, uri = r.Header.Clone(), r.URL.RequestURI()
			says(storedMetadata)(w, r)
		}))
		ctx, parent := o.tracer.Start(t.Context(), "parent")
		cause, err := o.Cause(ctx, "shop", webReplicaSet)
		parent.End()
		if want := (Cause{Traceparent: storedCause, Tracestate: "x=1"}); cause != want || err != nil {
			t.Errorf("got %+v, %v, want %+v", cause, err, want)
		}
		// Neither resourceVersion=0, which may be old, nor anything else.
		if want := "/apis/apps/v1/namespaces/shop/replicasets/web-1"; uri != want {
			t.Errorf("asked for %s, want %s", uri, want)
		}
		if got := asked.Get("Accept"); got != "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json" {
			t.Errorf("Accept: %s", got)
		}
		if asked.Get("User-Agent") == "Go-http-client/2.0" {
			t.Error("the API server is not told who asks")
		}

		spans := o.spans.Ended()
		if len(spans) != 2 {
			t.Fatalf("got %d spans, want 2: %v", len(spans), spans)
		}
		client, caller := spans[0], spans[1]
		if client.Name() != "GET /apis/apps/v1/namespaces/{namespace}/replicasets/{name}" || client.SpanKind() != trace.SpanKindClient ||
			client.Parent().SpanID() != caller.SpanContext().SpanID() {
			t.Errorf("got %s span %q below %s, want the route's CLIENT span below %s", client.SpanKind(), client.Name(), client.Parent().SpanID(), caller.SpanContext().SpanID())
		}
		if got, want := asked.Get("Traceparent"), formatTraceparent(client.SpanContext()); got != want {
			t.Errorf("traceparent %s, want the CLIENT span's %s", got, want)
		}
		if got := attribute.NewSet(caller.Attributes()...); !got.HasValue(keyLineageResult) || !got.HasValue(keyLineageCached) {
			t.Errorf("the caller's span has %v, want the result too", caller.Attributes())
		}
		for _, a := range client.Attributes() {
			if strings.Contains(a.Value.String(), storedCause) {
				t.Errorf("attribute %s holds a part of the object", a.Key)
			}
		}
		o.wantCounted(t, map[string]int64{"found": 1})
	})
}

// someKinds answers discovery as an API server with these kinds does.
func someKinds(w http.ResponseWriter, r *http.Request) {
	lists := map[string]string{
		"/apis/argoproj.io/v1alpha1": `{"name":"rollouts","kind":"Rollout","namespaced":true},{"name":"rollouts/scale","kind":"Scale","namespaced":true},{"name":"rollouts/status","kind":"Rollout","namespaced":true}`,
		"/apis/example.com/v1":       `{"name":"proxies","kind":"Proxy","namespaced":false},{"name":"kubernetesen","kind":"Kubernetes","namespaced":true},{"name":"bad/../name","kind":"Bad"},{"name":"..","kind":"Bad"}`,
		"/api/v1":                    `{"name":"pods","kind":"Pod","namespaced":true},{"name":"nodes","kind":"Node","namespaced":false}`,
	}
	list, ok := lists[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	fmt.Fprintf(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"x","resources":[%s]}`, list)
}

func TestAReferenceLeadsToItsPlaceInTheAPI(t *testing.T) {
	const custom = "/apis/{group}/{version}"
	for _, test := range []struct {
		key            ownerKey
		place, pattern string
	}{
		{ownerKey{"ns", "apps/v1", "Deployment", "x", "u"}, "/apis/apps/v1/namespaces/ns/deployments/x", "/apis/apps/v1/namespaces/{namespace}/deployments/{name}"},
		{ownerKey{"ns", "apps/v1", "ReplicaSet", "x", "u"}, "/apis/apps/v1/namespaces/ns/replicasets/x", "/apis/apps/v1/namespaces/{namespace}/replicasets/{name}"},
		{ownerKey{"ns", "apps/v1", "StatefulSet", "x", "u"}, "/apis/apps/v1/namespaces/ns/statefulsets/x", "/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"},
		{ownerKey{"ns", "apps/v1", "DaemonSet", "x", "u"}, "/apis/apps/v1/namespaces/ns/daemonsets/x", "/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}"},
		{ownerKey{"ns", "batch/v1", "Job", "x", "u"}, "/apis/batch/v1/namespaces/ns/jobs/x", "/apis/batch/v1/namespaces/{namespace}/jobs/{name}"},
		{ownerKey{"ns", "batch/v1", "CronJob", "x", "u"}, "/apis/batch/v1/namespaces/ns/cronjobs/x", "/apis/batch/v1/namespaces/{namespace}/cronjobs/{name}"},
		{ownerKey{"ns", "v1", "ReplicationController", "x", "u"}, "/api/v1/namespaces/ns/replicationcontrollers/x", "/api/v1/namespaces/{namespace}/replicationcontrollers/{name}"},
		{ownerKey{"ns", "argoproj.io/v1alpha1", "Rollout", "x", "u"}, "/apis/argoproj.io/v1alpha1/namespaces/ns/rollouts/x", custom + "/namespaces/{namespace}/{resource}/{name}"},
		{ownerKey{"ns", "v1", "Pod", "x", "u"}, "/api/v1/namespaces/ns/pods/x", "/api/{version}/namespaces/{namespace}/{resource}/{name}"},
		// An odd plural, and owners that are in no namespace, whatever they own.
		{ownerKey{"ns", "example.com/v1", "Kubernetes", "x", "u"}, "/apis/example.com/v1/namespaces/ns/kubernetesen/x", custom + "/namespaces/{namespace}/{resource}/{name}"},
		{ownerKey{"", "example.com/v1", "Proxy", "x:y", "u"}, "/apis/example.com/v1/proxies/x:y", custom + "/{resource}/{name}"},
		{ownerKey{"ns", "example.com/v1", "Proxy", "x", "u"}, "/apis/example.com/v1/proxies/x", custom + "/{resource}/{name}"},
		{ownerKey{"ns", "v1", "Node", "x", "u"}, "/api/v1/nodes/x", "/api/{version}/{resource}/{name}"},
	} {
		o := newOwners(t, OwnersOptions{}, http.HandlerFunc(someKinds))
		place, pattern, err := o.locate(t.Context(), test.key)
		if place != test.place || pattern != test.pattern || err != nil {
			t.Errorf("%+v:\n got %s, %s, %v\nwant %s, %s", test.key, place, pattern, err, test.place, test.pattern)
		}
	}
	o := newOwners(t, OwnersOptions{}, http.HandlerFunc(someKinds))
	for _, key := range []ownerKey{
		{"ns", "apps/v9", "Deployment", "x", "u"},         // no such version
		{"ns", "example.com/v1", "Pod", "x", "u"},         // no such kind in it
		{"ns", "example.com/v1", "Bad", "x", "u"},         // no name that can be part of a path
		{"", "argoproj.io/v1alpha1", "Rollout", "x", "u"}, // in a namespace, of an object that is in none
	} {
		if place, _, err := o.locate(t.Context(), key); err == nil {
			t.Errorf("%+v leads to %s", key, place)
		}
	}
}

func TestTheCauseOfAClusterScopedOwnerIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwners(t, OwnersOptions{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/apis/example.com/v1/proxies/p" {
				says(storedMetadata)(w, r)
				return
			}
			someKinds(w, r)
		}))
		c, err := o.Cause(t.Context(), "shop", metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Proxy", Name: "p", UID: "uid-of-web-1"})
		if c.Traceparent != storedCause || err != nil {
			t.Errorf("got %+v, %v, want the owner's cause", c, err)
		}
		var names []string
		for _, span := range o.spans.Ended() {
			names = append(names, span.Name())
		}
		if want := []string{"GET /apis/{group}/{version}", "GET /apis/{group}/{version}/{resource}/{name}"}; !slices.Equal(names, want) {
			t.Errorf("spans %q, want %q", names, want)
		}
	})
}

// An API server that is slow to tell of its kinds costs the first look-up its cause, and no request more.
func TestSlowDiscoveryIsForTheNextLookUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var discoveries atomic.Int64
		o := newOwners(t, OwnersOptions{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/apis/example.com/v1" {
				discoveries.Add(1)
				time.Sleep(time.Second)
			}
			if r.URL.Path == "/apis/example.com/v1/proxies/p" {
				says(storedMetadata)(w, r)
				return
			}
			someKinds(w, r)
		}))
		ask := func() (Cause, error) {
			return o.Cause(t.Context(), "shop", metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Proxy", Name: "p", UID: "uid-of-web-1"})
		}
		for range 3 {
			start := time.Now()
			if c, err := ask(); !errors.Is(err, context.DeadlineExceeded) || c != (Cause{}) || time.Since(start) != LongestOwnerTimeout {
				t.Errorf("got %+v, %v after %s, want the deadline", c, err, time.Since(start))
			}
			synctest.Wait()
		}
		time.Sleep(time.Second)
		if c, err := ask(); c.Traceparent != storedCause || err != nil {
			t.Errorf("got %+v, %v, want the owner's cause", c, err)
		}
		if n := discoveries.Load(); n != 1 {
			t.Errorf("the API server was asked for its kinds %d times, want once", n)
		}
		o.wantCounted(t, map[string]int64{"timeout": 3, "found": 1})
	})
}

// Anybody may refer to an owner of any kind.
func TestReferencesToKindsThatNobodyKnowsCostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var discoveries atomic.Int64
		o := newOwners(t, OwnersOptions{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Count(r.URL.Path, "/") == 3 {
				discoveries.Add(1)
			}
			if r.URL.Path == "/apis/example.com/v1/proxies/p" {
				says(storedMetadata)(w, r)
				return
			}
			someKinds(w, r)
		}))
		known := metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Proxy", Name: "p", UID: "uid-of-web-1"}
		if c, err := o.Cause(t.Context(), "shop", known); c.Traceparent != storedCause || err != nil {
			t.Fatalf("got %+v, %v, want the owner's cause", c, err)
		}
		for i := range 10_000 {
			for _, owner := range []metav1.OwnerReference{
				{APIVersion: fmt.Sprintf("group-%d.example/v1", i), Kind: "Unknown", Name: "x", UID: "u"},
				{APIVersion: "example.com/v1", Kind: fmt.Sprint("Unknown", i), Name: "x", UID: "u"},
			} {
				if _, err := o.Cause(t.Context(), "shop", owner); err == nil {
					t.Fatalf("%+v was found", owner)
				}
			}
		}
		if n := discoveries.Load(); n > 4*discoveryRate+1 {
			t.Errorf("the API server was asked for kinds %d times", n)
		}
		if n := o.kinds.missing.Len() + o.kinds.found.Len(); n > 2*mostGroupVersions {
			t.Errorf("%d groups and versions are remembered", n)
		}
		time.Sleep(DefaultOwnerTTL)
		if c, err := o.Cause(t.Context(), "shop", known); c.Traceparent != storedCause || err != nil {
			t.Errorf("after all those got %+v, %v, want the owner's cause still", c, err)
		}
		// A CRD that has come meanwhile is found.
		time.Sleep(noKindsTTL)
		if _, err := o.Cause(t.Context(), "shop", metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: "n", UID: "u"}); !strings.Contains(fmt.Sprint(err), "404") {
			t.Errorf("got %v, want that there is no such Node", err)
		}
	})
}

func TestNoMoreLookUpsAreUnderWayThanTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var underWay, most atomic.Int64
		o := newOwners(t, OwnersOptions{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			most.Store(max(most.Load(), underWay.Add(1)))
			time.Sleep(20 * time.Millisecond)
			underWay.Add(-1)
			says(storedMetadata)(w, r)
		}))
		ask := func() {
			var group sync.WaitGroup
			for i := range 10 * MostOwnerLookups {
				owner := webReplicaSet
				owner.Name = fmt.Sprint("web-", i)
				group.Go(func() {
					start := time.Now()
					c, err := o.Cause(t.Context(), "shop", owner)
					if limited := errors.Is(err, errTooMany); limited && (time.Since(start) > 0 || c != (Cause{})) || !limited && err != nil {
						t.Errorf("got %+v, %v after %s", c, err, time.Since(start))
					}
				})
			}
			group.Wait()
		}
		ask()
		if n := most.Load(); n != MostOwnerLookups {
			t.Errorf("%d requests were under way at once, want %d", n, MostOwnerLookups)
		}
		o.wantCounted(t, map[string]int64{"found": MostOwnerLookups, "limited": 9 * MostOwnerLookups})
		time.Sleep(time.Second)
		ask() // there is room again
		o.wantCounted(t, map[string]int64{"found": 2 * MostOwnerLookups, "limited": 18 * MostOwnerLookups})
	})
}

func TestTheTimeOfACauseIsWhenItWasStoredElseWhenTheOwnerWasMade(t *testing.T) {
	at := time.Date(2026, 11, 28, 9, 0, 0, 5e6, time.UTC)
	for _, test := range []struct {
		name, causedAt string
		want           time.Time
	}{
		{"stored with it", formatCausedAt(at, storedCause, 0), at},
		{"of another traceparent", formatCausedAt(at, "another", 0), time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)},
		{"none", "", time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)},
	} {
		t.Run(test.name, inBubble(func(t *testing.T) {
			o := newOwners(t, OwnersOptions{}, says(`{"metadata":{"uid":"uid-of-web-1","creationTimestamp":"2026-11-01T00:00:00Z","annotations":{"tracehook.dev/traceparent":"`+
				storedCause+`","tracehook.dev/caused-at":"`+test.causedAt+`"}}}`))
			if c, err := o.Cause(t.Context(), "shop", webReplicaSet); !c.At.Equal(test.want) || err != nil {
				t.Errorf("got %s, %v, want %s", c.At, err, test.want)
			}
		}))
	}
}

// Anybody who may create an object writes its owner references.
func TestAReferenceThatLeadsNowhereIsNotFollowed(t *testing.T) {
	o := newOwners(t, OwnersOptions{}, says(storedMetadata))
	references := []metav1.OwnerReference{
		{},
		{APIVersion: "apps/v1", Kind: "ReplicaSet", UID: "u"},
		{APIVersion: "apps/v1", Name: "x", UID: "u"},
		{Kind: "ReplicaSet", Name: "x", UID: "u"},
		{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "..", UID: "u"},
		{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "../../../../../api/v1/secrets", UID: "u"},
		{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "%2e%2e", UID: "u"},
		{APIVersion: "apps/v1", Kind: "../secret", Name: "x", UID: "u"},
		{APIVersion: "../v1", Kind: "ReplicaSet", Name: "x", UID: "u"},
		{APIVersion: "a/b/c", Kind: "ReplicaSet", Name: "x", UID: "u"},
		{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: strings.Repeat("x", maxReferenceBytes), UID: "u"},
	}
	for _, reference := range references {
		if cause, err := o.Cause(t.Context(), "shop", reference); cause != (Cause{}) || err == nil || len(err.Error()) > 300 {
			t.Errorf("%+v: got %+v, %.300v, want a short error", reference, cause, err)
		}
	}
	if cause, err := o.Cause(t.Context(), "../kube-system", webReplicaSet); cause != (Cause{}) || err == nil {
		t.Errorf("namespace ../kube-system: got %+v, %v, want an error", cause, err)
	}
	if n := o.requests.Load(); n != 0 {
		t.Errorf("the API server was asked %d times, want 0", n)
	}
	o.wantCounted(t, map[string]int64{"invalid": int64(len(references)) + 1})
}

func TestEveryAnswerIsCountedByItsResultAndKeptForTheTTL(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			fmt.Fprint(w, storedMetadata) // whatever is in it
		}
	}
	for _, test := range []struct {
		name   string
		api    http.HandlerFunc
		result string
		err    string
	}{
		{"the cause", says(storedMetadata), "found", ""},
		{"nothing stored", says(metadataOf("uid-of-web-1", `{"a":"b"}`)), "none", ""},
		{"no annotations", says(metadataOf("uid-of-web-1", `null`)), "none", ""},
		{"no traceparent", says(metadataOf("uid-of-web-1", `{"tracehook.dev/traceparent":"00-x"}`)), "none", ""},
		{"a traceparent that nobody would write", says(metadataOf("uid-of-web-1", `{"tracehook.dev/traceparent":"`+strings.Repeat("0", 1<<18)+`"}`)), "none", ""},
		{"another object of that name", says(metadataOf("another", `{"tracehook.dev/traceparent":"`+storedCause+`"}`)), "uid_mismatch", "another UID"},
		{"no object", status(404), "not_found", "404"},
		{"no permission", status(403), "forbidden", "403"},
		{"no user", status(401), "forbidden", "401"},
		{"too many requests", status(429), "error", "429"},
		{"a broken API server", status(500), "error", "500"},
		{"a way to somebody else", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "error", "302"},
		{"something else", says(`<html>secret-value</html>`), "error", "not an object's metadata"},
		{"half an answer", says(storedMetadata[:len(storedMetadata)-4]), "error", "not an object's metadata"},
		{"two answers", says(storedMetadata + storedMetadata), "error", "not an object's metadata"},
		{"annotations of another type", says(metadataOf("uid-of-web-1", `["secret-value"]`)), "error", "not an object's metadata"},
		{"nothing", says(""), "error", "not an object's metadata"},
	} {
		t.Run(test.name, inBubble(func(t *testing.T) {
			var now atomic.Int64
			o := newOwners(t, OwnersOptions{Now: func() time.Time { return time.UnixMilli(now.Load()) }}, test.api)
			ask := func() {
				t.Helper()
				ctx, span := o.tracer.Start(t.Context(), "caller")
				defer span.End()
				cause, err := o.Cause(ctx, "shop", webReplicaSet)
				if (cause != Cause{}) != (test.result == "found") {
					t.Errorf("got cause %+v", cause)
				}
				switch {
				case test.err == "" && err != nil:
					t.Error(err)
				case test.err != "" && (err == nil || !strings.HasPrefix(err.Error(), "look up owner ReplicaSet web-1: ") || !strings.Contains(err.Error(), test.err)):
					t.Errorf("got error %v, want one that says %q", err, test.err)
				case err != nil && strings.Contains(err.Error(), "secret"):
					t.Errorf("the error quotes the answer: %v", err)
				}
			}
			ask()
			now.Add(DefaultOwnerTTL.Milliseconds() - 1)
			ask()
			o.wantCounted(t, map[string]int64{test.result: 1, test.result + " cached": 1})
			now.Add(1)
			ask()
			o.wantCounted(t, map[string]int64{test.result: 2, test.result + " cached": 1})
			if n := o.requests.Load(); n != 2 {
				t.Errorf("the API server was asked %d times, want 2", n)
			}
		}))
	}
}

func TestTheSpanOfACreateCountsWhileItBelongsToTheStoredCause(t *testing.T) {
	const create, otherTrace = "00-0af7651916cd43dd8448eb211c80319c-1111111111111111-01", "00-11111111111111111111111111111111-2222222222222222-01"
	for _, test := range []struct{ name, annotations, want string }{
		{"it does", `{"k/t":"` + storedCause + `","k/create-traceparent":"` + create + `"}`, create},
		{"its cause was replaced", `{"k/t":"` + otherTrace + `","k/create-traceparent":"` + create + `"}`, otherTrace},
		{"it is none", `{"k/t":"` + storedCause + `","k/create-traceparent":"x"}`, storedCause},
		{"its cause was removed", `{"k/create-traceparent":"` + create + `"}`, ""},
	} {
		t.Run(test.name, inBubble(func(t *testing.T) {
			o := newOwners(t, OwnersOptions{Key: "k/t"}, says(metadataOf("uid-of-web-1", test.annotations)))
			if cause, err := o.Cause(t.Context(), "shop", webReplicaSet); cause.Traceparent != test.want || err != nil {
				t.Errorf("got %+v, %v, want %s", cause, err, test.want)
			}
		}))
	}
}

type slowBody struct {
	io.Reader
	wait func() error
}

func (b *slowBody) Read(p []byte) (int, error) {
	if err := b.wait(); err != nil {
		return 0, err
	}
	b.wait = func() error { return nil }
	return b.Reader.Read(p)
}

func (b *slowBody) Close() error { return nil }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// newSlowOwners makes Owners whose API server takes that long, in the time of a
// synctest bubble: no moment longer than it says.
func newSlowOwners(t *testing.T, headers, body time.Duration) *ownersTest {
	t.Helper()
	requests := new(atomic.Int64)
	o := newOwnersAt(t, OwnersOptions{Config: &rest.Config{Host: "https://api.example", Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		requests.Add(1)
		if err := sleep(r.Context(), headers); err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r, Body: &slowBody{
			Reader: strings.NewReader(storedMetadata), wait: func() error { return sleep(r.Context(), body) }}}, nil
	})}})
	o.requests = requests
	return o
}

func TestAnAPIServerThatDoesNotAnswerIsAskedAgainNextTime(t *testing.T) {
	for _, test := range []struct {
		name          string
		headers, body time.Duration
	}{{"at all", time.Hour, 0}, {"to the end", time.Millisecond, time.Hour}, {"soon enough", 30 * time.Millisecond, 30 * time.Millisecond}} {
		t.Run(test.name, inBubble(func(t *testing.T) {
			o := newSlowOwners(t, test.headers, test.body)
			for range 2 {
				start := time.Now()
				_, err := o.Cause(t.Context(), "shop", webReplicaSet)
				if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != LongestOwnerTimeout {
					t.Errorf("got %v after %s, want the deadline after %s", err, took, LongestOwnerTimeout)
				}
				synctest.Wait() // the request itself ends now, too
			}
			o.wantCounted(t, map[string]int64{"timeout": 2})
			if n := o.requests.Load(); n != 2 {
				t.Errorf("the API server was asked %d times, want 2", n)
			}
		}))
	}
	t.Run("because it is not there", func(t *testing.T) {
		o := newOwnersAt(t, OwnersOptions{Config: &rest.Config{Host: "127.0.0.1:1", Transport: &http.Transport{}}})
		for range 2 {
			if _, err := o.Cause(t.Context(), "shop", webReplicaSet); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("got %v, want that the connection is refused", err)
			}
		}
		o.wantCounted(t, map[string]int64{"error": 2})
		if span := o.spans.Ended()[0]; span.Status().Code != codes.Error {
			t.Errorf("the CLIENT span's status is %v", span.Status())
		}
	})
}

func TestALookUpTakesNoMoreThanHalfOfWhatIsLeft(t *testing.T) {
	for _, test := range []struct{ left, want time.Duration }{
		{-time.Second, 0}, {0, 0}, {time.Nanosecond, 0}, {20 * time.Millisecond, 10 * time.Millisecond},
		{100 * time.Millisecond, 50 * time.Millisecond}, {time.Hour, 50 * time.Millisecond},
	} {
		t.Run(test.left.String(), inBubble(func(t *testing.T) {
			o := newSlowOwners(t, time.Hour, 0)
			ctx, cancel := context.WithTimeout(t.Context(), test.left)
			defer cancel()
			start := time.Now()
			_, err := o.Cause(ctx, "shop", webReplicaSet)
			if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != test.want {
				t.Errorf("got %v after %s, want the deadline after %s", err, took, test.want)
			}
			o.wantCounted(t, map[string]int64{"timeout": 1})
			time.Sleep(time.Minute) // the request does not outlive its own deadline
		}))
	}
}

func TestTheFirstCallerMayGiveUpWithoutHarmToTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newSlowOwners(t, 20*time.Millisecond, 20*time.Millisecond)
		first, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := o.Cause(first, "shop", webReplicaSet); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the first caller got %v, want that its time is up", err)
		}
		cancel()
		start := time.Now()
		cause, err := o.Cause(t.Context(), "shop", webReplicaSet)
		if cause.Traceparent != storedCause || err != nil || time.Since(start) != 30*time.Millisecond {
			t.Errorf("the second caller got %+v, %v after %s, want the answer to the first one's request after 30ms", cause, err, time.Since(start))
		}
		if n := o.requests.Load(); n != 1 {
			t.Errorf("the API server was asked %d times, want once", n)
		}
	})
}

func TestAThousandPodsOfOneReplicaSetAreOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers = 1000
		o := newSlowOwners(t, time.Millisecond, time.Millisecond)
		var failed atomic.Int64
		var group sync.WaitGroup
		ask := func() {
			for range callers {
				group.Go(func() {
					if cause, err := o.Cause(t.Context(), "shop", webReplicaSet); cause.Traceparent != storedCause || err != nil {
						failed.Add(1)
					}
				})
			}
			group.Wait()
		}
		ask()
		o.wantCounted(t, map[string]int64{"found": callers})
		ask()
		o.wantCounted(t, map[string]int64{"found": callers, "found cached": callers})
		if n := failed.Load(); n != 0 {
			t.Errorf("%d callers got no cause", n)
		}
		if n := o.requests.Load(); n != 1 {
			t.Errorf("the API server was asked %d times, want once", n)
		}
	})
}

// kept are the look-ups in the cache, also those under way.
func (o *Owners) kept() (all []*lookup) {
	for i := range o.shards {
		o.shards[i].Lock()
		all = append(all, o.shards[i].lru.Values()...)
		o.shards[i].Unlock()
	}
	return all
}

// Else whoever may create an object could cut others' Pods from their cause.
func TestAWrongReferenceDoesNotReplaceTheRightOnesAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwners(t, OwnersOptions{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/shop/replicasets/web-1") {
				http.NotFound(w, r)
				return
			}
			says(storedMetadata)(w, r)
		}))
		wrong := webReplicaSet
		wrong.Name = "web-2"
		for _, ask := range []struct {
			namespace string
			owner     metav1.OwnerReference
			want      string
		}{{"shop", wrong, ""}, {"other", webReplicaSet, ""}, {"shop", webReplicaSet, storedCause}, {"shop", wrong, ""}} {
			if cause, _ := o.Cause(t.Context(), ask.namespace, ask.owner); cause.Traceparent != ask.want {
				t.Errorf("%s/%s: got %+v, want %q", ask.namespace, ask.owner.Name, cause, ask.want)
			}
		}
		o.wantCounted(t, map[string]int64{"found": 1, "not_found": 2, "not_found cached": 1})
	})
}

func TestOfAHugeAnswerOnlySoMuchIsRead(t *testing.T) {
	var sent atomic.Int64
	stopped := make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		defer close(stopped)
		fmt.Fprint(w, `{"metadata":{"uid":"uid-of-web-1","annotations":{"a":"`)
		chunk := []byte(strings.Repeat("a", 64<<10))
		for {
			n, err := w.Write(chunk)
			if sent.Add(int64(n)); err != nil || sent.Load() > 1<<30 {
				return
			}
		}
	}))
	server.EnableHTTP2 = true // as an API server does
	server.StartTLS()
	defer server.Close()
	o := newOwnersAt(t, OwnersOptions{Config: &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{
		CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})}}})
	// Not by way of Cause: on a busy machine so much may take longer than a look-up has.
	answer, answered := o.get(t.Context(), ownerKey{"shop", "apps/v1", "ReplicaSet", "web-1", "uid-of-web-1"})
	if answer.result != lookupError || !answered || !strings.Contains(answer.err.Error(), "larger than 1048576 bytes") {
		t.Errorf("got %+v, want that the answer is too large", answer)
	}
	<-stopped
	if n := sent.Load(); n > 64<<20 { // buffers on the way hold some
		t.Errorf("%d bytes were taken", n)
	}
}

func TestTheCacheForgetsTheOldestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwners(t, OwnersOptions{Size: 2 * ownerShards, TTL: time.Hour}, says(storedMetadata))
		for i := range 500 {
			owner := webReplicaSet
			owner.Name = fmt.Sprint("web-", i)
			if _, err := o.Cause(t.Context(), "shop", owner); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(o.kept()); n > 2*ownerShards {
			t.Errorf("%d answers are kept, want %d at most", n, 2*ownerShards)
		}
	})
}

func TestATransportThatPanicsCostsOnlyTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwnersAt(t, OwnersOptions{Config: &rest.Config{Host: "https://api.example", Transport: roundTripper(func(*http.Request) (*http.Response, error) { panic("on purpose") })}})
		if cause, err := o.Cause(t.Context(), "shop", webReplicaSet); cause != (Cause{}) || err == nil || !strings.Contains(err.Error(), "panic: on purpose") {
			t.Errorf("got %+v, %v, want the panic as an error", cause, err)
		}
		o.wantCounted(t, map[string]int64{"error": 1})
	})
}

func TestOwnersThatCannotWorkAreNotMade(t *testing.T) {
	for name, o := range map[string]OwnersOptions{
		"no API server":         {},
		"a negative timeout":    {Config: &rest.Config{}, Timeout: -1},
		"too long a timeout":    {Config: &rest.Config{}, Timeout: LongestOwnerTimeout + 1},
		"a negative TTL":        {Config: &rest.Config{}, TTL: -1},
		"a negative size":       {Config: &rest.Config{}, Size: -1},
		"an address that is no": {Config: &rest.Config{Host: "a b"}},
		"a CA that is none":     {Config: &rest.Config{Host: "https://x", TLSClientConfig: rest.TLSClientConfig{CAFile: "/does/not/exist"}}},
	} {
		if _, err := NewOwners(o); err == nil || !strings.HasPrefix(err.Error(), "look owners up: ") {
			t.Errorf("%s: got %v, want an error", name, err)
		}
	}
}

func TestTheCounterOfLookUpsIsWhatItIsCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwners(t, OwnersOptions{}, says(storedMetadata))
		if _, err := o.Cause(t.Context(), "shop", webReplicaSet); err != nil {
			t.Fatal(err)
		}
		var all metricdata.ResourceMetrics
		if err := o.metrics.Collect(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		metricdatatest.AssertEqual(t, metricdata.Metrics{
			Name: "tracehook.lineage.lookups", Unit: "{lookup}",
			Description: "Look-ups of the trace context that is stored on the owner of a created object, by result.",
			Data: metricdata.Sum[int64]{Temporality: metricdata.CumulativeTemporality, IsMonotonic: true, DataPoints: []metricdata.DataPoint[int64]{
				{Attributes: attribute.NewSet(keyLineageResult.String("found"), keyLineageCached.Bool(false)), Value: 1},
			}},
		}, all.ScopeMetrics[0].Metrics[0], metricdatatest.IgnoreTimestamp())
	})
}

// What an owned object's create costs while its owner's answer is in the cache.
func BenchmarkCauseFromTheCache(b *testing.B) {
	server := httptest.NewServer(says(storedMetadata))
	defer server.Close()
	o, err := NewOwners(OwnersOptions{Config: &rest.Config{Host: server.URL}, TTL: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if cause, err := o.Cause(b.Context(), "shop", webReplicaSet); cause.Traceparent == "" || err != nil {
				b.Fatal(cause, err)
			}
		}
	})
}

func TestATracestateThatIsTooLongIsNotRemembered(t *testing.T) {
	for length, kept := range map[int]bool{cause.MaxTracestateBytes: true, cause.MaxTracestateBytes + 1: false} {
		t.Run(strconv.Itoa(length), inBubble(func(t *testing.T) {
			state := "a=" + strings.Repeat("x", length-2)
			o := newOwners(t, OwnersOptions{}, says(`{"metadata":{"uid":"uid-of-web-1","annotations":{"tracehook.dev/traceparent":"`+storedCause+`","tracehook.dev/tracestate":"`+state+`"}}}`))
			c, err := o.Cause(t.Context(), "shop", webReplicaSet)
			if err != nil || (c.Tracestate != "") != kept {
				t.Errorf("%d bytes are remembered, %v", len(c.Tracestate), err)
			}
		}))
	}
}
