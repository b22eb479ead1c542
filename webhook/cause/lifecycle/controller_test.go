package lifecycle

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// engine is a Controller without a cluster: the tests say what its watches see. It is 12:01.
func engine(t *testing.T, mark Mark) *Controller {
	t.Helper()
	c, err := New(Options{
		Client: kubernetes.NewForConfigOrDie(&nowhere), Flush: func(context.Context) error { return nil },
		Mark: mark, Now: func() time.Time { return noon.Add(time.Minute) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// handed are the stages that were handed on since the last time, one a line.
func (c *Controller) handed() string {
	var lines []string
	for len(c.waiting) > 0 {
		lines = append(lines, strings.TrimSpace(written([]Stage{(<-c.waiting).stage})))
	}
	return strings.Join(lines, "; ")
}

func wantHanded(t *testing.T, c *Controller, want string) {
	t.Helper()
	if got := c.handed(); got != want {
		t.Errorf("handed on %q, want %q", got, want)
	}
}

// stamped is a Pod with a cause, as a watch has it at a version.
func stamped(t *testing.T, version, cause, more, rest string) any {
	t.Helper()
	p := pod(t, more+`, resourceVersion: "`+version+`", annotations: {tracehook.dev/traceparent: "`+cause+`"}`, rest)
	return resources(kubernetes.NewForConfigOrDie(&nowhere))[1].keep(p, nil)
}

var nowhere = rest.Config{Host: "https://127.0.0.1:1"}

func heardOf(t *testing.T, c *Controller, version string, e *corev1.Event) any {
	t.Helper()
	e.ResourceVersion = version
	if e.Namespace == "" {
		e.Namespace = "shop"
	}
	return events(c.o.Client).keep(e, nil)
}

const scheduledAt1 = `status: {phase: Pending, conditions: [{type: PodScheduled, status: "True", lastTransitionTime: "@1@"}]}`

func TestEachStageIsHandedOnOnceAndOnlyOfSampledCauses(t *testing.T) {
	c := engine(t, nil)
	c.see(t.Context(), stamped(t, "5", traceparent, "", "status: {phase: Pending}"), true)
	wantHanded(t, c, "Pod 0-0")
	c.see(t.Context(), stamped(t, "6", traceparent, "", scheduledAt1), false)
	c.see(t.Context(), stamped(t, "7", traceparent, "", scheduledAt1), false)
	wantHanded(t, c, "schedule 0-1")
	if c.seen["pods"] != 7 {
		t.Errorf("seen up to %v, want 7", c.seen)
	}
	for _, none := range []string{strings.TrimSuffix(traceparent, "1") + "0", "nonsense"} {
		c := engine(t, nil)
		c.see(t.Context(), stamped(t, "5", none, "", scheduledAt1), true)
		wantHanded(t, c, "")
	}
}

func TestAfterAMarkOnlyWhatHasChangedIsToldAgain(t *testing.T) {
	c := engine(t, Mark{"pods": 5, "events": 9})
	c.see(t.Context(), stamped(t, "5", traceparent, "", scheduledAt1), true)
	c.see(t.Context(), heardOf(t, c, "9", event("Unhealthy", "Readiness probe failed: x", "app", 3)), true)
	wantHanded(t, c, "")
	c.see(t.Context(), heardOf(t, c, "10", event("Unhealthy", "Liveness probe failed: x", "app", 4)), true)
	wantHanded(t, c, "probe app 4-4 Unhealthy")

	c = engine(t, Mark{"pods": 5, "events": 9})
	c.see(t.Context(), stamped(t, "6", traceparent, "", scheduledAt1), true)
	c.see(t.Context(), heardOf(t, c, "8", event("Unhealthy", "Readiness probe failed: x", "app", 3)), true)
	wantHanded(t, c, "Pod 0-0; schedule 0-1; probe app 3-3 Unhealthy")
}

func TestAnEventThatComesBeforeItsPodIsKept(t *testing.T) {
	c := engine(t, nil)
	c.see(t.Context(), heardOf(t, c, "4", event("Unhealthy", "Readiness probe failed: x", "app", 3)), false)
	wantHanded(t, c, "")
	c.see(t.Context(), stamped(t, "5", traceparent, "", "status: {phase: Pending}"), false)
	wantHanded(t, c, "Pod 0-0; probe app 3-3 Unhealthy")
}

func TestAnEventOfAnotherNamespaceIsNotBelieved(t *testing.T) {
	for _, before := range []bool{true, false} {
		c := engine(t, nil)
		foreign := event("Unhealthy", "Readiness probe failed: made up", "app", 3)
		foreign.Namespace = "of-somebody-else"
		if before {
			c.see(t.Context(), heardOf(t, c, "4", foreign), false)
		}
		c.see(t.Context(), stamped(t, "5", traceparent, "", "status: {phase: Pending}"), false)
		if !before {
			c.see(t.Context(), heardOf(t, c, "6", foreign), false)
		}
		c.see(t.Context(), heardOf(t, c, "7", event("Unhealthy", "Readiness probe failed: x", "app", 4)), false)
		wantHanded(t, c, "Pod 0-0; probe app 4-4 Unhealthy")
	}
}

func TestWhatIsAheadOfTheClockIsNotTold(t *testing.T) {
	c := engine(t, nil)
	c.see(t.Context(), stamped(t, "5", traceparent, "", "status: {phase: Pending}"), false)
	ahead := event("Unhealthy", "Readiness probe failed: x", "app", 3)
	ahead.EventTime = metav1.NewMicroTime(noon.AddDate(1000, 0, 0))
	c.see(t.Context(), heardOf(t, c, "6", ahead), false)
	wantHanded(t, c, "Pod 0-0")
}

func TestOfOneObjectNoMoreIsToldThanAWeekOfCrashes(t *testing.T) {
	c := engine(t, nil)
	c.see(t.Context(), stamped(t, "5", traceparent, "", "status: {phase: Pending}"), false)
	for i := range mostTold + 100 {
		e := event("Pulled", `Successfully pulled image "i" in 1s (1s including waiting).`, "app", 3)
		e.UID = types.UID(strconv.Itoa(i))
		c.see(t.Context(), heardOf(t, c, "6", e), false)
	}
	for _, l := range c.lives {
		if len(l.told) != mostTold {
			t.Errorf("%d stages were told", len(l.told))
		}
	}
}

func TestWhatIsTooOldIsNotTold(t *testing.T) {
	c := engine(t, nil)
	c.o.Now = func() time.Time { return noon.Add(time.Hour + 500*time.Millisecond) }
	c.see(t.Context(), stamped(t, "5", traceparent, "", scheduledAt1), true)
	wantHanded(t, c, "schedule 0-1")
}

func TestARollOutOfLongAgoIsNotToldWithTheLastStatusAsItsEnd(t *testing.T) {
	stateful := func(c *Controller, version string) *kept {
		return resources(c.o.Client)[3].keep(read[appsv1.StatefulSet](t, `metadata: {name: web, namespace: shop, uid: u-1, resourceVersion: "`+version+`", creationTimestamp: "@0@", annotations: {`+causedBy+`}, managedFields: [{subresource: status, time: "@36`+version+`@"}]}
status: {replicas: 1, readyReplicas: 1, updatedReplicas: 1, currentRevision: b, updateRevision: b}`), nil).(*kept)
	}
	for _, test := range []struct {
		name    string
		mark    Mark
		initial bool
		maxAge  time.Duration
		want    string
	}{
		{"at a first start", nil, true, time.Hour, ""},
		{"its status was written after the mark", Mark{"statefulsets": 50}, true, time.Hour, ""},
		{"the cause is no older than what is told", nil, true, 2 * time.Hour, "roll out 0-1h1m0"},
		{"it was watched", nil, false, time.Hour, "roll out 0-1h1m0"},
	} {
		c := engine(t, test.mark)
		c.o.Now, c.o.MaxAge = func() time.Time { return noon.Add(62 * time.Minute) }, test.maxAge
		c.see(t.Context(), stateful(c, "60"), test.initial)
		c.see(t.Context(), stateful(c, "70"), false) // a Pod of it has been replaced
		if got := c.handed(); got != test.want {
			t.Errorf("%s: told %q, want %q", test.name, got, test.want)
		}
	}

	// The end of a Deployment is read from a condition.
	c := engine(t, nil)
	c.o.Now = func() time.Time { return noon.Add(62 * time.Minute) }
	c.see(t.Context(), resources(c.o.Client)[2].keep(read[appsv1.Deployment](t, `metadata: {name: web, namespace: shop, uid: u-1, resourceVersion: "60", creationTimestamp: "@0@", annotations: {`+causedBy+`}}
status: {replicas: 1, updatedReplicas: 1, availableReplicas: 1, conditions: [{type: Progressing, status: "True", reason: NewReplicaSetAvailable, lastUpdateTime: "@3660@"}]}`), nil), true)
	wantHanded(t, c, "roll out 0-1h1m0")
}

func TestAPodThatGoesIsToldToItsEnd(t *testing.T) {
	c := engine(t, nil)
	c.see(t.Context(), stamped(t, "5", traceparent, "", scheduledAt1), true)
	c.handed()
	c.gone(t.Context(), stamped(t, "6", traceparent, `, deletionTimestamp: "@50@", deletionGracePeriodSeconds: 30`, scheduledAt1))
	wantHanded(t, c, "start Pod 0-20 Deleted; delete Pod 20-1m0")

	c.see(t.Context(), stamped(t, "7", traceparent, "", running), false)
	c.handed()
	c.gone(t.Context(), cache.DeletedFinalStateUnknown{Key: "shop/web", Obj: stamped(t, "7", traceparent, "", running)})
	wantHanded(t, c, "delete Pod 1m0-1m0; start Pod 0-1m0 Deleted")
	if len(c.lives) != 0 {
		t.Errorf("it is still known: %v", c.lives)
	}
}

func TestAVolumeClaimIsToldForThePodThatWaitedForIt(t *testing.T) {
	claims := resources(kubernetes.NewForConfigOrDie(&nowhere))[0]
	bound := func(second string) any {
		return claims.keep(read[corev1.PersistentVolumeClaim](t, `metadata: {name: data, namespace: shop, uid: c-1, resourceVersion: "4", creationTimestamp: "@0@", managedFields: [{subresource: status, time: "@`+second+`@"}]}
status: {phase: Bound}`), nil)
	}
	const wants = "\nspec: {volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]}"
	for _, test := range []struct{ name, bound, status, want string }{
		{"the Pod waits", "3", "status: {phase: Pending}", "Pod 0-0; bind volume claim 0-3"},
		{"the Pod waited", "3", strings.ReplaceAll(scheduledAt1, "@1@", "@4@"), "Pod 0-0; schedule 0-4; bind volume claim 0-3"},
		{"it held nothing up", "0", "status: {phase: Pending}", "Pod 0-0"},
		{"its status was written again long after", "30", scheduledAt1, "Pod 0-0; schedule 0-1"},
	} {
		c := engine(t, nil)
		c.see(t.Context(), stamped(t, "5", traceparent, "", test.status+wants), false)
		c.see(t.Context(), bound(test.bound), false)
		if got := c.handed(); got != test.want {
			t.Errorf("%s: handed on %q, want %q", test.name, got, test.want)
		}
		c = engine(t, nil)
		c.see(t.Context(), bound(test.bound), false) // the other way round
		c.see(t.Context(), stamped(t, "5", traceparent, "", test.status+wants), false)
		if got := c.handed(); got != test.want {
			t.Errorf("%s, seen in the other order: handed on %q, want %q", test.name, got, test.want)
		}
	}
}

const becameReadyAt4 = `spec: {containers: [{name: app}]}
status: {phase: Running, conditions: [{type: Ready, status: "True", lastTransitionTime: "@4@"}], containerStatuses: [{name: app, state: {running: {startedAt: "@3@"}}}]}`

var served = endpoints(kubernetes.NewForConfigOrDie(&nowhere))

// serviceAt is the Service web, created in second 1, as a watch has it at a version.
func serviceAt(t *testing.T, version, annotations string) any {
	t.Helper()
	s := read[corev1.Service](t, `metadata: {name: web, namespace: shop, uid: s-1, resourceVersion: "`+version+`", creationTimestamp: "@1@", annotations: {`+annotations+`}}`)
	return served[0].keep(s, nil)
}

// sliceOf is an EndpointSlice of a Service which says that these Pods are ready.
func sliceOf(service string, uids ...string) any {
	e := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: service + "-abc", Namespace: "shop", ResourceVersion: "6", Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
	for _, uid := range uids {
		e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: types.UID(uid)}})
	}
	return served[1].keep(e, nil)
}

const causedBy = `tracehook.dev/traceparent: "` + traceparent + `"`

func TestOfPodsThatNeverComeLittleIsKept(t *testing.T) {
	var many []string
	for i := range 1000 {
		many = append(many, strconv.Itoa(i))
	}
	long := strings.Repeat("x", 1<<20)
	if got := sliceOf("web", append([]string{long}, many...)...).(*kept).ready; len(got) != mostReadyPods || got[0] != "0" {
		t.Errorf("of a slice with 1000 Pods and a UID of 1 MB %d are kept", len(got))
	}
	unbounded := event("Unhealthy", "Readiness probe failed: x", "app", 3)
	unbounded.InvolvedObject.UID = types.UID(long)
	c := engine(t, nil)
	if k := heardOf(t, c, "4", unbounded).(*kept); k.about != "" || k.news != nil {
		t.Errorf("of an Event with a UID of 1 MB %d bytes are kept", len(k.about))
	}

	// Slices of Services and Pods that do not exist push out one another, and the next one is remembered all the same.
	c.see(t.Context(), serviceAt(t, "1", causedBy), false)
	for i := range mostEarly {
		c.see(t.Context(), sliceOf("none-"+strconv.Itoa(i), many[:20]...), false)
		c.see(t.Context(), sliceOf("web", "none-"+strconv.Itoa(i), "nor-"+strconv.Itoa(i)), false)
	}
	uids := 0
	for _, of := range c.slices.of {
		uids += len(of)
	}
	if uids > mostEarly || len(c.slices.order) > mostEarly || len(c.becoming.of) > mostEarly || len(c.becoming.order) > mostEarly {
		t.Errorf("kept: %d UIDs of %d Services, %d Pods", uids, len(c.slices.of), len(c.becoming.of))
	}
	c.see(t.Context(), sliceOf("web", "u-1"), false)
	c.see(t.Context(), stamped(t, "5", traceparent, "", becameReadyAt4), false)
	if got := c.handed(); !strings.Contains(got, "get endpoint 1-4") {
		t.Errorf("told %q, want the endpoint, too", got)
	}
}

func TestAPodThatBecomesReadySaysNothingOfAServiceThatIsGone(t *testing.T) {
	c := engine(t, nil)
	c.see(t.Context(), serviceAt(t, "1", causedBy), false)
	c.see(t.Context(), sliceOf("web", "u-1"), false)
	c.gone(t.Context(), serviceAt(t, "1", causedBy))
	c.see(t.Context(), stamped(t, "5", traceparent, "", becameReadyAt4), false)
	if len(c.slices.of)+len(c.becoming.of) != 0 {
		t.Errorf("kept: %v %v", c.slices.of, c.becoming.of)
	}
}

func TestOfAServiceThatHasLongBeenThereNobodyKnowsTheFirstEndpoint(t *testing.T) {
	// The Service is of 12:00:01, and the Pod is one of a later roll-out; it is 13:02.
	ready := strings.NewReplacer("@4@", "@3660@", "@3@", "@3659@").Replace(becameReadyAt4)
	for _, test := range []struct {
		name   string
		mark   Mark
		maxAge time.Duration
		again  bool
		want   bool
	}{
		{"at a first start", nil, time.Hour, false, false},
		{"the Pod changed while nobody watched", Mark{"pods": 4, "services": 1, "endpointslices": 5}, time.Hour, false, false},
		{"it was given another cause meanwhile", nil, time.Hour, true, false},
		{"it is no older than what is told", nil, 2 * time.Hour, false, true},
	} {
		c := engine(t, test.mark)
		c.o.Now, c.o.MaxAge = func() time.Time { return noon.Add(62 * time.Minute) }, test.maxAge
		service := serviceAt(t, "1", causedBy).(*kept)
		if test.again {
			service.subject.from = noon.Add(time.Hour)
		}
		c.see(t.Context(), stamped(t, "5", traceparent, "", ready), true)
		c.see(t.Context(), service, true)
		c.see(t.Context(), sliceOf("web", "u-1"), true)
		if got := c.handed(); strings.Contains(got, "get endpoint") != test.want {
			t.Errorf("%s: told %q, want an endpoint: %t", test.name, got, test.want)
		}
	}
}

func TestAServiceIsToldUntilItsFirstReadyEndpoint(t *testing.T) {
	service := func(version, annotations string) any { return serviceAt(t, version, annotations) }
	slice := func(version, ready string, more string) any {
		return served[1].keep(read[discoveryv1.EndpointSlice](t, `metadata: {name: web-abc, namespace: shop, uid: e-1, resourceVersion: "`+version+`", labels: {kubernetes.io/service-name: web}}
endpoints: [{conditions: {ready: `+ready+`}, targetRef: {kind: Pod, uid: u-1}}`+more+`]`), nil)
	}
	const cause = causedBy
	ready := stamped(t, "5", traceparent, "", becameReadyAt4)
	starting := stamped(t, "5", traceparent, "", "status: {phase: Pending}")
	orders := map[string]struct {
		seen []any
		want string
	}{
		"the Pod becomes ready, then its slice says so":     {[]any{service("1", cause), starting, slice("2", "false", ""), ready, slice("6", "true", "")}, "get endpoint 1-4"},
		"the slice says so before the Pod does":             {[]any{service("1", cause), starting, slice("2", "true", ""), ready}, "get endpoint 1-4"},
		"the slice comes first of all":                      {[]any{slice("2", "true", ""), ready, service("1", cause)}, "get endpoint 1-4"},
		"the Pod comes last":                                {[]any{slice("2", "true", ""), service("1", cause), ready}, "get endpoint 1-4"},
		"it is ready where nothing is said of it":           {[]any{service("1", cause), ready, slice("6", "null", "")}, "get endpoint 1-4"},
		"it says so twice":                                  {[]any{service("1", cause), ready, slice("6", "true", ""), slice("7", "true", "")}, "get endpoint 1-4"},
		"none is ready":                                     {[]any{service("1", cause), ready, slice("6", "false", "")}, ""},
		"the Service carries no cause":                      {[]any{service("1", ""), ready, slice("6", "true", "")}, ""},
		"its endpoint is no Pod":                            {[]any{service("1", cause), ready, slice("6", "false", `, {addresses: [10.0.0.1]}`)}, ""},
		"one was ready before it was made":                  {[]any{service("1", cause+`, tracehook.dev/caused-at: x`), stamped(t, "5", traceparent, "", strings.NewReplacer("@4@", "@1@", "@3@", "@0@").Replace(becameReadyAt4)), slice("6", "true", "")}, ""},
		"one was ready at once, and another one comes late": {[]any{service("1", cause), stamped(t, "5", traceparent, "", strings.NewReplacer("@4@", "@1@", "@3@", "@0@").Replace(becameReadyAt4)), slice("6", "true", ""), ready, slice("7", "true", "")}, ""},
	}
	for name, test := range orders {
		c := engine(t, nil)
		for _, o := range test.seen {
			again := *o.(*kept) // the handlers take away what it says
			c.see(t.Context(), &again, false)
		}
		got := ""
		for _, line := range strings.Split(c.handed(), "; ") {
			if strings.HasPrefix(line, "get endpoint") {
				got += line
			}
		}
		if got != test.want {
			t.Errorf("%s: told %q, want %q", name, got, test.want)
		}
	}

	// After a mark nothing is told again, and what is gone is forgotten.
	c := engine(t, Mark{"pods": 5, "services": 5, "endpointslices": 6})
	for _, o := range []any{service("1", cause), ready, slice("6", "true", "")} {
		again := *o.(*kept)
		c.see(t.Context(), &again, true)
	}
	wantHanded(t, c, "")
	for _, o := range []any{slice("6", "true", ""), service("1", cause), ready} {
		c.gone(t.Context(), o)
	}
	if len(c.lives)+len(c.services)+len(c.becoming.of)+len(c.slices.of) != 0 {
		t.Errorf("still known: %v %v %v %v", c.lives, c.services, c.becoming.of, c.slices.of)
	}
}
