package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	unsampledTraceparent = "00-" + testTraceID + "-" + testParentID + "-00"
	othersText           = "00-11111111111111111111111111111111-2222222222222222-01"
	thirdText            = "00-33333333333333333333333333333333-4444444444444444-01"
	causedAt             = "tracehook.dev/caused-at"
	previously           = "tracehook.dev/previous-traceparent"
)

// notes is what stands on an object.
type notes map[string]string

// chosen is a traceparent that a client has set.
func chosen(traceparent string) notes { return notes{DefaultAnnotationKey: traceparent} }

// ours is what tracehook stored so long ago, on some other object.
func ours(traceparent string, ago time.Duration) notes {
	return notes{DefaultAnnotationKey: traceparent, causedAt: formatCausedAt(testNow.Add(-ago), traceparent, 7)}
}

// oursHere is what tracehook stored so long ago, on Deployment shop/web.
func oursHere(traceparent string, ago time.Duration) notes {
	here := placeOf(&Request{Resource: metav1.GroupVersionResource{Group: "apps", Resource: "deployments"}, Namespace: "shop", Name: "web"}, traceparent)
	return notes{DefaultAnnotationKey: traceparent, causedAt: formatCausedAt(testNow.Add(-ago), traceparent, here)}
}

func (a notes) and(key, value string) notes {
	b := maps.Clone(a)
	b[key] = value
	return b
}

// what a request says.
type asked struct {
	resource      string // GROUP/RESOURCE; "" means apps/deployments
	owner         string // KIND of the controller owner
	object, old   notes
	spec, oldSpec string // old == nil: CREATE
	unsampled     bool
	dryRun        bool
	subResource   string
	oldMetadata   string // more of it, with a comma in front
}

func (a asked) review(t *testing.T) string {
	t.Helper()
	if a.resource == "" {
		a.resource = "apps/deployments"
	}
	group, resource, _ := strings.Cut(a.resource, "/")
	object := func(annotations notes, spec, more string) string {
		text, err := json.Marshal(annotations)
		if err != nil {
			t.Fatal(err)
		}
		if a.owner != "" {
			more += `,"ownerReferences":[{"apiVersion":"x/v1","kind":"` + a.owner + `","name":"o","uid":"u-o","controller":true}]`
		}
		if spec == "" {
			spec = "1"
		}
		return `{"metadata":{"name":"web","annotations":` + string(text) + more + `},"spec":` + spec + `}`
	}
	operation, old := "CREATE", "null"
	if a.old != nil {
		operation, old = "UPDATE", object(a.old, a.oldSpec, a.oldMetadata)
	}
	return fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":%q,"name":"web","namespace":"shop","dryRun":%t,"subResource":%q,`+
		`"kind":{"group":%[4]q,"version":"v1","kind":"Kind"},"resource":{"group":%[4]q,"version":"v1","resource":%[5]q},"object":%[6]s,"oldObject":%[7]s}}`,
		operation, a.dryRun, a.subResource, group, resource, object(a.object, a.spec, ""), old)
}

// The table of doc.go, row by row: what was asked, what tracehook.stamp says, and what is on the object then.
// "this" is the SERVER span of the request.
func TestWhatIsStoredIsWhatTheTableSays(t *testing.T) {
	const hour = time.Hour
	owners := func(at time.Duration) Cause { return Cause{Traceparent: causeText, At: testNow.Add(-at)} }
	type want struct {
		stored, previous string
		age              time.Duration // what caused-at says
		links            []string
	}
	for _, test := range []struct {
		name   string
		asked  asked
		owners Cause
		stamp  string
		want   want
	}{
		{"a client creates", asked{}, Cause{}, "created", want{stored: "this"}},
		{"a client creates, not sampled", asked{unsampled: true}, Cause{}, "created", want{}},
		{"a client creates with a context that it has chosen", asked{object: chosen(causeText)}, Cause{}, "kept", want{stored: causeText, links: []string{causeText}}},
		{"with an injected TRACEPARENT, which is a stamp", asked{object: chosen(ours(causeText, 0)[DefaultAnnotationKey])}, Cause{}, "kept", want{stored: causeText, links: []string{causeText}}},
		{"the same, not sampled", asked{object: chosen(causeText), unsampled: true}, Cause{}, "kept", want{stored: causeText, links: []string{causeText}}},
		{"a client creates what it got from another object", asked{object: ours(causeText, hour)}, Cause{}, "returned", want{stored: "this", previous: causeText, links: []string{causeText}}},
		{"of a moment ago", asked{object: ours(causeText, 0)}, Cause{}, "returned", want{stored: "this", previous: causeText, links: []string{causeText}}},
		{"the same, not sampled", asked{object: ours(causeText, hour), unsampled: true}, Cause{}, "returned", want{stored: "this", previous: causeText, links: []string{causeText}}},
		{"what it got from another object, with a context that it has chosen", asked{object: ours(othersText, hour).and(DefaultAnnotationKey, causeText)}, Cause{}, "kept", want{stored: causeText, links: []string{causeText}}},
		{"a client creates with a context that is none", asked{object: chosen("yesterday")}, Cause{}, "invalid", want{stored: "this"}},
		{"the same, not sampled", asked{object: chosen("yesterday"), unsampled: true}, Cause{}, "invalid", want{}},
		{"a client that is in the same trace", asked{object: chosen(testTraceparent)}, Cause{}, "same_trace", want{stored: testTraceparent}},
		{"in one trace, what it got from another object", asked{object: ours(testTraceparent, 0)}, Cause{}, "returned", want{stored: "this", previous: testTraceparent, links: []string{testTraceparent}}},

		{"a controller creates", asked{owner: "ReplicaSet"}, owners(59 * time.Minute), "owned", want{stored: causeText, age: 59 * time.Minute, links: []string{causeText}}},
		{"the same, not sampled", asked{owner: "ReplicaSet", unsampled: true}, owners(0), "owned", want{stored: causeText, links: []string{causeText}}},
		{"a controller creates, of an owner whose time is not known", asked{owner: "ReplicaSet"}, Cause{Traceparent: causeText}, "owned", want{stored: causeText, links: []string{causeText}}},
		{"a controller creates, of an owner without a cause", asked{owner: "ReplicaSet"}, Cause{}, "owned", want{stored: "this"}},
		{"a controller creates, later", asked{owner: "ReplicaSet"}, owners(61 * time.Minute), "linked", want{stored: "this", links: []string{causeText}}},
		{"a controller creates, of an owner of the future", asked{owner: "ReplicaSet"}, owners(-1000 * hour), "linked", want{stored: "this", links: []string{causeText}}},
		{"a Job's controller creates, however late", asked{owner: "Job"}, owners(1000 * hour), "owned", want{stored: causeText, age: 1000 * hour, links: []string{causeText}}},
		{"a CronJob's controller creates", asked{owner: "CronJob", resource: "batch/jobs"}, owners(0), "linked", want{stored: "this", links: []string{causeText}}},
		{"a CronJob's controller creates, of a CronJob without a cause", asked{owner: "CronJob", resource: "batch/jobs"}, Cause{}, "owned", want{stored: "this"}},
		{"of another kind that makes work again and again", asked{owner: "CronWorkflow"}, owners(0), "linked", want{stored: "this", links: []string{causeText}}},
		{"and another", asked{owner: "ScheduledSparkApplication"}, owners(0), "linked", want{stored: "this", links: []string{causeText}}},
		{"and another", asked{owner: "BackupSchedule"}, owners(0), "linked", want{stored: "this", links: []string{causeText}}},
		{"a CronJob's template has a stamp in it", asked{owner: "CronJob", object: ours(othersText, 0)}, owners(0), "linked", want{stored: "this", previous: othersText, links: []string{causeText, othersText}}},
		{"a Job is made of a CronJob by hand", asked{owner: "CronJob", resource: "batch/jobs", object: notes{"cronjob.kubernetes.io/instantiate": "manual"}}, owners(0), "created", want{stored: "this"}},
		{"a controller copies its owner's stamp", asked{owner: "Deployment", object: ours(causeText, time.Minute)}, Cause{}, "kept", want{stored: causeText, age: time.Minute, links: []string{causeText}}},
		{"a controller sets a context of its own", asked{owner: "Widget", object: chosen(causeText)}, Cause{}, "kept", want{stored: causeText, links: []string{causeText}}},
		{"a Pod's template has an old stamp in it", asked{owner: "ReplicaSet", object: ours(othersText, 2*hour)}, owners(0), "owned", want{stored: causeText, links: []string{causeText, othersText}}},
		{"a controller sets what is none", asked{owner: "ReplicaSet", object: chosen("x")}, owners(0), "invalid", want{stored: causeText, links: []string{causeText}}},
		{"the same, later", asked{owner: "ReplicaSet", object: chosen("x")}, owners(2 * hour), "invalid", want{stored: "this", links: []string{causeText}}},

		{"a change", asked{object: ours(causeText, hour), old: ours(causeText, hour), oldSpec: "2"}, Cause{}, "updated", want{stored: "this", previous: causeText, links: []string{causeText}}},
		{"the same, not sampled", asked{object: ours(causeText, hour), old: ours(causeText, hour), oldSpec: "2", unsampled: true}, Cause{}, "updated", want{stored: "this", previous: causeText, links: []string{causeText}}},
		{"a change of what had no stamp", asked{old: notes{}, oldSpec: "2"}, Cause{}, "updated", want{stored: "this"}},
		{"the same, not sampled", asked{old: notes{}, oldSpec: "2", unsampled: true}, Cause{}, "updated", want{}},
		{"a change in the trace of the one before", asked{object: ours(testTraceparent, hour), old: ours(testTraceparent, hour), oldSpec: "2"}, Cause{}, "updated", want{stored: "this", previous: testTraceparent, links: []string{testTraceparent}}},
		{"in one trace, an old stamp comes back with a change (rollout undo)", asked{object: oursHere(testTraceparent, 2*time.Second), old: oursHere(inTheSameTrace, time.Second), oldSpec: "2"}, Cause{}, "returned",
			want{stored: "this", previous: inTheSameTrace, links: []string{testTraceparent, inTheSameTrace}}},
		{"the same, minutes ago", asked{object: oursHere(testTraceparent, hour), old: oursHere(inTheSameTrace, time.Minute), oldSpec: "2"}, Cause{}, "returned",
			want{stored: "this", previous: inTheSameTrace, links: []string{testTraceparent, inTheSameTrace}}},
		{"in one trace, a client creates what it has exported and deleted", asked{object: oursHere(testTraceparent, time.Minute)}, Cause{}, "returned", want{stored: "this", previous: testTraceparent, links: []string{testTraceparent}}},
		{"a client sets the context of the trace that it is in", asked{object: ours(causeText, hour).and(DefaultAnnotationKey, testTraceparent).and("tracehook.dev/tracestate", "a=1"), old: ours(causeText, hour).and("tracehook.dev/tracestate", "a=1")}, Cause{},
			"same_trace", want{stored: testTraceparent, previous: causeText, links: []string{causeText}}},
		{"a change of what an unsampled request had changed", asked{object: ours(unsampledOther, hour).and(previously, thirdText), old: ours(unsampledOther, hour).and(previously, thirdText), oldSpec: "2"}, Cause{},
			"updated", want{stored: "this", previous: thirdText, links: []string{unsampledOther}}},
		{"a change by a client that leaves the stamp out", asked{old: ours(causeText, hour), oldSpec: "2"}, Cause{}, "updated", want{stored: "this", previous: causeText, links: []string{causeText}}},
		{"nothing is changed but metadata", asked{object: ours(causeText, hour), old: ours(causeText, hour), oldMetadata: `,"labels":{}`}, Cause{}, "untouched", want{stored: causeText, age: hour}},
		{"a client removes the stamp", asked{old: ours(causeText, hour)}, Cause{}, "untouched", want{}},
		{"a client sets a context that it has chosen", asked{object: ours(causeText, hour).and(DefaultAnnotationKey, othersText), old: ours(causeText, hour)}, Cause{}, "kept",
			want{stored: othersText, previous: causeText, links: []string{othersText, causeText}}},
		{"the same, with a change", asked{object: ours(causeText, hour).and(DefaultAnnotationKey, othersText), old: ours(causeText, hour), oldSpec: "2"}, Cause{}, "kept",
			want{stored: othersText, previous: causeText, links: []string{othersText, causeText}}},
		{"a client sets what is none", asked{object: ours(causeText, hour).and(DefaultAnnotationKey, "x"), old: ours(causeText, hour)}, Cause{}, "restored", want{stored: causeText, age: hour}},
		{"the same, with a change", asked{object: ours(causeText, hour).and(DefaultAnnotationKey, "x"), old: ours(causeText, hour), oldSpec: "2"}, Cause{}, "invalid", want{stored: "this", previous: causeText, links: []string{causeText}}},
		{"the same, not sampled", asked{object: chosen("x"), old: ours(causeText, hour), oldSpec: "2", unsampled: true}, Cause{}, "invalid", want{stored: "this", previous: causeText, links: []string{causeText}}},
		{"a client sets what is none, where there was none", asked{object: chosen("x"), old: notes{}}, Cause{}, "invalid", want{stored: "this"}},
		{"an old stamp comes back with a change (rollout undo)", asked{object: ours(othersText, 2*hour), old: ours(causeText, hour), oldSpec: "2"}, Cause{}, "returned",
			want{stored: "this", previous: causeText, links: []string{othersText, causeText}}},
		{"an old stamp comes back without a change (an exported manifest)", asked{object: ours(othersText, 2*hour), old: ours(causeText, hour).and(previously, thirdText)}, Cause{}, "restored",
			want{stored: causeText, previous: thirdText, age: hour}},
		{"an old stamp comes back without a change, where there was none", asked{object: ours(othersText, 2*hour), old: notes{}}, Cause{}, "kept", want{stored: othersText, age: 2 * hour, links: []string{othersText}}},

		{"an autoscaler writes replicas", asked{object: ours(causeText, hour), old: ours(causeText, hour), spec: `{"replicas":3,"a":[1]}`, oldSpec: `{"a":[1]}`}, Cause{}, "untouched", want{stored: causeText, age: hour}},
		{"and something else", asked{object: ours(causeText, hour), old: ours(causeText, hour), spec: `{"replicas":3,"a":[1]}`, oldSpec: `{"replicas":2,"a":[2]}`}, Cause{}, "updated", want{stored: "this", previous: causeText, links: []string{causeText}}},
		{"a queue lets a Job go", asked{resource: "batch/jobs", object: ours(causeText, hour), old: ours(causeText, hour), spec: `{"suspend":false,"nodeSelector":{}}`, oldSpec: `{"suspend":true}`}, Cause{}, "untouched", want{stored: causeText, age: hour}},
		{"not sampled", asked{resource: "batch/jobs", object: ours(causeText, hour), old: ours(causeText, hour), spec: `{"suspend":false}`, oldSpec: `{"suspend":true}`, unsampled: true}, Cause{}, "untouched", want{stored: causeText, age: hour}},
		{"a Job is changed otherwise", asked{resource: "batch/jobs", object: ours(causeText, hour), old: ours(causeText, hour), oldSpec: "2"}, Cause{}, "untouched", want{stored: causeText, age: hour}},
		{"an old stamp comes back to a Job", asked{resource: "batch/jobs", object: ours(othersText, hour), old: ours(causeText, hour), oldSpec: "2"}, Cause{}, "restored", want{stored: causeText, age: hour}},
		{"a client sets a Job's", asked{resource: "batch/jobs", object: chosen(othersText), old: ours(causeText, hour)}, Cause{}, "kept", want{stored: othersText, previous: causeText, links: []string{othersText, causeText}}},
		{"a Pod is changed", asked{resource: "/pods", object: ours(causeText, hour), old: ours(causeText, hour), oldSpec: "2"}, Cause{}, "untouched", want{stored: causeText, age: hour}},

		{"a change of what a controller owns", asked{owner: "Deployment", object: ours(causeText, hour), old: ours(othersText, hour), oldSpec: "2"}, owners(0), "untouched", want{stored: causeText, age: hour}},
		{"a subresource", asked{subResource: "scale", object: ours(causeText, hour), old: ours(causeText, hour), oldSpec: "2"}, Cause{}, "excluded", want{stored: causeText, age: hour}},
		{"a mirror Pod", asked{resource: "/pods", object: notes{mirrorAnnotation: "x"}}, Cause{}, "excluded", want{}},
	} {
		t.Run(test.stamp+": "+test.name, func(t *testing.T) {
			handler, rec := handlerOf(t, TraceContextOptions{Causes: causesFunc(func(context.Context, string, metav1.OwnerReference) (Cause, error) {
				if test.owners == (Cause{}) {
					return Cause{}, errors.New("not found")
				}
				return test.owners, nil
			})})
			header := testTraceparent
			if test.asked.unsampled {
				header = unsampledTraceparent
			}
			got := annotationsAfter(t, handler, test.asked.review(t), map[string]string{"Traceparent": header})
			stored := test.want.stored
			if stored == "this" {
				if stored = fmt.Sprintf("00-%s-0000000000000001-01", testTraceID); test.asked.unsampled {
					stored = strings.TrimSuffix(stored, "1") + "0"
				}
			}
			if got[DefaultAnnotationKey] != stored || got[previously] != test.want.previous {
				t.Errorf("stored %q, before it %q\nwant   %q, before it %q", got[DefaultAnnotationKey], got[previously], stored, test.want.previous)
			}
			c := Cause{Traceparent: stored}
			if c.readCausedAt(got[causedAt]); stored == "" && got[causedAt] != "" || stored != "" && (!c.vouched || !c.At.Equal(testNow.Add(-test.want.age))) {
				t.Errorf("%s says %q, want what was stored, %s ago", causedAt, got[causedAt], test.want.age)
			}
			if test.asked.unsampled {
				return // no spans
			}
			if stamp := attribute.NewSet(rec.span(t, "mutate trace-context").Attributes()...); !stamp.HasValue(keyStamp) {
				t.Error("the span has no attribute tracehook.stamp")
			} else if value, _ := stamp.Value(keyStamp); value.AsString() != test.stamp {
				t.Errorf("tracehook.stamp is %s", value.AsString())
			}
			links := map[string]bool{}
			for _, link := range rec.span(t, "POST /mutate").Links() {
				links[formatTraceparent(link.SpanContext)] = true
			}
			want := map[string]bool{}
			for _, link := range test.want.links {
				want[link] = true
			}
			if !maps.Equal(links, want) {
				t.Errorf("links to %v, want %v", links, want)
			}

			// Called again in the same request, as it is now.
			again := test.asked
			again.object = got
			if after := annotationsAfter(t, handler, again.review(t), map[string]string{"Traceparent": header}); !maps.Equal(after, got) {
				t.Errorf("a second call changed %v\nto %v", got, after)
			}
			// The same where the API server hands no context on, so that the second call is in another trace.
			first := annotationsAfter(t, handler, test.asked.review(t), nil)
			again.object = first
			if after := annotationsAfter(t, handler, again.review(t), nil); !maps.Equal(after, first) {
				t.Errorf("without a common trace a second call changed %v\nto %v", first, after)
			}
		})
	}
}

const inTheSameTrace = "00-" + testTraceID + "-7777777777777777-01"

const unsampledOther = "00-55555555555555555555555555555555-6666666666666666-00"
