package explain

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// Traces of the tests.
const (
	create = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-1111111111111111-01"
	change = "00-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-2222222222222222-01"
	later  = "00-cccccccccccccccccccccccccccccccc-3333333333333333-01"
)

// stampYAML is what tracehook stores, as annotations.
func stampYAML(traceparent, at, previous string) string {
	hash := fnv.New32a()
	_, _ = hash.Write(append([]byte(traceparent), 0xff))
	text := `{tracehook.dev/traceparent: ` + traceparent
	if at != "" {
		text += `, tracehook.dev/caused-at: "2026-11-28T` + at + `Z ` + hex.EncodeToString(hash.Sum(nil)) + `00000000"`
	}
	if previous != "" {
		text += `, tracehook.dev/previous-traceparent: ` + previous
	}
	return text + `}`
}

func object(t testing.TB, text string) *unstructured.Unstructured {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var o unstructured.Unstructured
	if err := o.UnmarshalJSON(data); err != nil { // numbers as clients have them
		t.Fatal(err)
	}
	return &o
}

func link(t testing.TB, text string) Link {
	t.Helper()
	o := object(t, text)
	return Link{Ref: refOf(o), Object: o, Controller: true}
}

// Objects of the tests; %s is their annotations.
func deployment(t testing.TB, annotations string) Link {
	return link(t, `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop, uid: d, creationTimestamp: "2026-11-28T10:00:00Z", annotations: `+annotations+`,
  managedFields: [
    {manager: kubectl-create, operation: Update, time: "2026-11-28T10:00:00Z", fieldsType: FieldsV1, fieldsV1: {"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {"f:replicas": {}, "f:paused": {}, "f:selector": {}, "f:strategy": {}}}},
    {manager: kube-controller-manager, operation: Update, subresource: status, time: "2026-11-28T14:02:11Z", fieldsType: FieldsV1, fieldsV1: {"f:status": {"f:replicas": {}}}},
    {manager: kubectl-set, operation: Update, time: "2026-11-28T14:02:11Z", fieldsType: FieldsV1, fieldsV1: {"f:spec": {"f:template": {"f:spec": {"f:containers": {'k:{"name":"web"}': {"f:image": {}}}}}}}}]},
  spec: {replicas: 1}, status: {observedGeneration: 1, updatedReplicas: 1}}`)
}

func replicaSet(t testing.TB, created, annotations string) Link {
	return link(t, `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: web-7d9c4, namespace: shop, uid: r, creationTimestamp: "2026-11-28T`+created+`Z", annotations: `+annotations+`}, spec: {replicas: 1}}`)
}

func pod(t testing.TB, created, annotations, status string) Link {
	node := "worker"
	if strings.Contains(status, "Unschedulable") {
		node = `""`
	}
	return link(t, `{apiVersion: v1, kind: Pod, metadata: {name: web-7d9c4-x2k, namespace: shop, uid: p, creationTimestamp: "2026-11-28T`+created+`Z", annotations: `+annotations+`}, spec: {nodeName: `+node+`}, status: `+status+`}`)
}

const ready = `{phase: Running, conditions: [
  {type: PodScheduled, status: "True", lastTransitionTime: "2026-11-28T14:02:12Z"},
  {type: Ready, status: "True", lastTransitionTime: "2026-11-28T14:02:17Z"}],
  containerStatuses: [{name: web, state: {running: {startedAt: "2026-11-28T14:02:16Z"}}}]}`

func TestTheStoryIsWhatWasRead(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Group: "apps", Resource: "deployments"}, "web", errors.New("no rights"))
	installed, absent := true, false
	for _, test := range []struct {
		name  string
		known Known
		want  string
	}{{
		name: "a Pod of a Deployment that was changed",
		known: Known{Chain: []Link{
			pod(t, "14:02:11", stampYAML(change, "14:02:11.204", ""), ready),
			replicaSet(t, "14:02:11", stampYAML(change, "14:02:11.204", "")),
			deployment(t, stampYAML(change, "14:02:11.204", create)),
		}},
		want: `
Pod web-7d9c4-x2k exists because of
  kubectl-set   14:02:11   trace bbbbbbbb…
  └ Deployment web          changed  spec.template.spec.containers[web].image  0 of 1 ready, 1 up to date
    └ ReplicaSet web-7d9c4  created  +0 s
      └ Pod                 created  +0 s      scheduled +1 s · started +5 s · ready +6 s
slowest      start container web 4.0 s (Pod web-7d9c4-x2k)
`}, {
		name:  "the Deployment itself, which was created",
		known: Known{Chain: []Link{deployment(t, stampYAML(create, "10:00:00.100", ""))}},
		want: `
Deployment web exists because of
  kubectl-create   10:00:00   trace aaaaaaaa…
  └ Deployment web  created  +0 s      0 of 1 ready, 1 up to date
written      10:00:00  kubectl-create (update)  5 fields of metadata and spec
             14:02:11  kube-controller-manager (update status)  status.replicas
             14:02:11  kubectl-set (update)  spec.template.spec.containers[web].image
`}, {
		name: "a Pod whose Deployment has been changed since",
		known: Known{Chain: []Link{
			pod(t, "10:00:01", stampYAML(create, "10:00:00.100", ""), ready),
			replicaSet(t, "10:00:00", stampYAML(create, "10:00:00.100", "")),
			deployment(t, stampYAML(change, "14:02:11.204", create)),
		}},
		want: `
Pod web-7d9c4-x2k exists because of
  kubectl-create   10:00:00   trace aaaaaaaa…
  └ Deployment web          changed since  14:02:11 by kubectl-set, trace bbbbbbbb…  0 of 1 ready, 1 up to date
    └ ReplicaSet web-7d9c4  created        +0 s
      └ Pod                 created        +1 s      scheduled +4 h · started +4 h · ready +4 h
slowest      schedule 4 h (Pod web-7d9c4-x2k)
`}, {
		name: "a Pod that its ReplicaSet made long after",
		known: Known{Chain: []Link{
			pod(t, "14:02:11", stampYAML(later, "14:02:11.300", ""), `{phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: Unschedulable, message: "0/3 nodes are available"}]}`),
			replicaSet(t, "10:00:00", stampYAML(create, "10:00:00.100", "")),
			deployment(t, stampYAML(create, "10:00:00.100", "")),
		}},
		want: `
Pod web-7d9c4-x2k exists because of
  kubectl-create   10:00:00   trace aaaaaaaa…
  └ Deployment web          created  +0 s      0 of 1 ready, 1 up to date
    └ ReplicaSet web-7d9c4  created  +0 s
      └ made by the controller of ReplicaSet web-7d9c4, 4 h later   a request   14:02:11   trace cccccccc…
        └ Pod               created  +0 s      schedule: Unschedulable: 0/3 nodes are available
not known    which request it was: managedFields have no write of that time: whoever wrote has written again since (--audit-log)
`}, {
		name: "a Job of a CronJob",
		known: Known{Chain: []Link{
			link(t, `{apiVersion: batch/v1, kind: Job, metadata: {name: nightly-1, namespace: shop, uid: j, creationTimestamp: "2026-11-28T14:00:00Z", annotations: `+stampYAML(change, "14:00:00.300", "")+`,
				managedFields: [{manager: kube-controller-manager, operation: Update, time: "2026-11-28T14:00:00Z"}]}, status: {conditions: [{type: Complete, status: "True", lastTransitionTime: "2026-11-28T14:00:12Z"}]}}`),
			link(t, `{apiVersion: batch/v1, kind: CronJob, metadata: {name: nightly, namespace: shop, uid: c, creationTimestamp: "2026-11-28T10:00:00Z", annotations: `+stampYAML(create, "10:00:00.100", "")+`,
				managedFields: [{manager: kubectl-create, operation: Update, time: "2026-11-28T10:00:00Z"}]}, spec: {schedule: "0 14 * * *"}}`),
		}},
		want: `
Job nightly-1 exists because of
  kubectl-create   10:00:00   trace aaaaaaaa…
  └ CronJob nightly  created  +0 s
    └ schedule "0 14 * * *" of CronJob nightly   kube-controller-manager   14:00:00   trace bbbbbbbb…
      └ Job          created  +0 s      complete +12 s
written      14:00:00  kube-controller-manager (update)
`}, {
		name:  "an owner that is gone",
		known: Known{Chain: []Link{pod(t, "14:02:11", stampYAML(change, "14:02:11.204", ""), `{}`), {Ref: Ref{Kind: "ReplicaSet", Name: "web-7d9c4"}, Err: errGone, Controller: true}}},
		want: `
Pod web-7d9c4-x2k exists because of
  a request   14:02:11   trace bbbbbbbb…
  └ ReplicaSet web-7d9c4  deleted since
    └ Pod                 created        +0 s
note         ReplicaSet web-7d9c4, its owner: it has been deleted
not known    which request it was: managedFields have no write of that time: whoever wrote has written again since (--audit-log)
`}, {
		name:  "an owner that may not be read",
		known: Known{Chain: []Link{replicaSet(t, "14:02:11", stampYAML(change, "14:02:11.204", "")), {Ref: Ref{Kind: "Deployment", Name: "web"}, Err: forbidden, Controller: true}}},
		want: `
ReplicaSet web-7d9c4 exists because of
  a request   14:02:11   trace bbbbbbbb…
  └ Deployment web  not read
    └ ReplicaSet    created   +0 s
not known    the owner Deployment web: you may not read it: deployments.apps "web" is forbidden: no rights
             which request it was: managedFields have no write of that time: whoever wrote has written again since (--audit-log)
`}, {
		name:  "objects that own each other",
		known: Known{Chain: []Link{replicaSet(t, "14:02:11", `{}`), deployment(t, `{}`), {Ref: Ref{Kind: "ReplicaSet", Name: "web-7d9c4"}, Err: errCycle, Controller: true}}, Installed: &installed},
		want: `
ReplicaSet web-7d9c4: its cause is not known
  ReplicaSet web-7d9c4  not read
  └ Deployment web      created   0 of 1 ready, 1 up to date
    └ ReplicaSet        created
not known    the owner ReplicaSet web-7d9c4: it is owned by what it owns
             the cause: neither the object nor an owner carries one: it was made before tracehook was installed or while it did not answer, in a namespace or of a kind that it is not called for, or by a request th …
`}, {
		name:  "a cluster without tracehook",
		known: Known{Chain: []Link{replicaSet(t, "14:02:11", `{}`)}, Installed: &absent},
		want: `
ReplicaSet web-7d9c4: its cause is not known
  ReplicaSet web-7d9c4  created
not known    the cause: the object carries none: tracehook is not installed in this cluster (no webhook configuration has its label)
`}, {
		name: "an annotation that is no trace context, and an owner that is no controller",
		known: Known{Installed: &installed, Chain: []Link{
			replicaSet(t, "14:02:11", `{tracehook.dev/traceparent: "\u001b[31mred"}`),
			func() Link { l := deployment(t, stampYAML(create, "10:00:00.100", "")); l.Controller = false; return l }(),
		}},
		want: `
ReplicaSet web-7d9c4 exists because of
  kubectl-create   10:00:00   trace aaaaaaaa…
  └ Deployment web  created  +0 s      0 of 1 ready, 1 up to date
    └ ReplicaSet    created  +4 h
note         ReplicaSet web-7d9c4: what stands in its annotation is no trace context (invalid trace context: annotation tracehook.dev/traceparent)
             Deployment web is an owner of web-7d9c4, and not its controller: a cause is not handed down from there
             ReplicaSet web-7d9c4 itself carries no cause: what is told is its owner's
`}, {
		name:  "an audit log of more than is kept",
		known: Known{Chain: []Link{replicaSet(t, "14:02:11", `{}`)}, Installed: &absent, Audit: &AuditLog{LeftOut: 7}},
		want: `
ReplicaSet web-7d9c4: its cause is not known
  ReplicaSet web-7d9c4  created
not known    older writes: 7 of them in the audit log are left out: the newest 10000 about the object and its owners are kept
             the cause: the object carries none: tracehook is not installed in this cluster (no webhook configuration has its label)
`}, {
		name:  "a cause without a time, not sampled",
		known: Known{Chain: []Link{replicaSet(t, "14:02:11", stampYAML("00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-1111111111111111-00", "", ""))}},
		want: `
ReplicaSet web-7d9c4 exists because of
  a request   14:02:11   trace aaaaaaaa…
  └ ReplicaSet web-7d9c4  created  +0 s
not known    which request it was: managedFields have no write of that time: whoever wrote has written again since (--audit-log)
             the trace aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: the request was not sampled, so that no store has it
`}, {
		name: "a Pod that cannot start",
		known: Known{Chain: []Link{pod(t, "14:02:11", stampYAML(change, "14:02:11.204", ""),
			`{phase: Running, conditions: [{type: Ready, status: "False"}], containerStatuses: [{name: web, restartCount: 3, state: {waiting: {reason: CrashLoopBackOff, message: "back-off 40s"}},
			  lastState: {terminated: {exitCode: 137, reason: OOMKilled, startedAt: "2026-11-28T14:02:14Z", finishedAt: "2026-11-28T14:02:15Z"}}}]}`)}},
		want: `
Pod web-7d9c4-x2k exists because of
  a request   14:02:11   trace bbbbbbbb…
  └ Pod web-7d9c4-x2k  created  +0 s      restart container web: CrashLoopBackOff: back-off 40s; before: run container web: OOMKilled (exit code 137); 3 restarts
not known    which request it was: managedFields have no write of that time: whoever wrote has written again since (--audit-log)
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.known.Keys = DefaultKeys()
			var b strings.Builder
			story := Join(test.known)
			story.NotKnown = slices.DeleteFunc(story.NotKnown, func(u Unknown) bool {
				return strings.Contains(u.Why, "no trace store given") || strings.Contains(u.Why, "no audit log given")
			})
			if err := Text(&b, TextOptions{Now: time.Date(2026, 11, 28, 15, 0, 0, 0, time.UTC)}, story); err != nil {
				t.Fatal(err)
			}
			if got, want := b.String(), strings.TrimPrefix(test.want, "\n"); got != want {
				t.Errorf("the text is\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Whatever objects hold, there is an answer that a terminal can show and JSON can carry.
func FuzzEveryObjectHasAnAnswer(f *testing.F) {
	f.Add(`{"metadata":{"name":"a","annotations":{"tracehook.dev/traceparent":"`+create+`"}}}`, `{}`, `[]`)
	f.Add(`{"kind":"Pod","apiVersion":"v1","status":{"conditions":[1,{"type":2}]}}`, `{"metadata":{"managedFields":[{"fieldsV1":{"f:a":{"k:{}":{}}}},{"time":"x"}]}}`, `[{"reason":"\u001b[2J"}]`)
	f.Add(`{"kind":"Deployment","apiVersion":"apps/v1","spec":{"replicas":"x"}}`, `{"metadata":{"creationTimestamp":1}}`, `[{"series":{}}]`)
	f.Fuzz(func(t *testing.T, target, owner, events string) {
		var a, b unstructured.Unstructured
		var about []corev1.Event
		if json.Unmarshal([]byte(target), &a.Object) != nil || json.Unmarshal([]byte(owner), &b.Object) != nil || json.Unmarshal([]byte(events), &about) != nil {
			return
		}
		if a.Object == nil || b.Object == nil {
			return
		}
		k := Known{Keys: DefaultKeys(), Chain: []Link{{Ref: refOf(&a), Object: &a, Controller: true}, {Ref: refOf(&b), Object: &b}}, Made: []*unstructured.Unstructured{&b}}
		k.Events = map[types.UID][]corev1.Event{a.GetUID(): about}
		s := Join(k)
		if _, err := json.Marshal(s); err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		if err := Text(&text, TextOptions{}, s); err != nil {
			t.Fatal(err)
		}
		for _, r := range text.String() {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Fatalf("%q is in the text\n%s", r, text.String())
			}
		}
	})
}

// managedFields have whole seconds: a change in the second of the creation.
func TestOfTwoWritesInOneSecondTheChangeIsNotTheCreation(t *testing.T) {
	entries := `[{manager: creator, operation: Update, time: "2026-11-28T10:00:00Z", fieldsType: FieldsV1, fieldsV1: {"f:spec": {"f:a": {}, "f:b": {}}}},
		{manager: changer, operation: Update, time: "2026-11-28T10:00:00Z", fieldsType: FieldsV1, fieldsV1: {"f:spec": {"f:c": {}}}},
		{manager: status, operation: Update, subresource: status, time: "2026-11-28T10:00:00Z"},
		{manager: later, operation: Apply, time: "2026-11-28T10:00:09Z", fieldsType: FieldsV1, fieldsV1: {"f:spec": {"f:d": {}}}}]`
	o := object(t, `{apiVersion: v1, kind: X, metadata: {name: x, creationTimestamp: "2026-11-28T10:00:00Z", managedFields: `+entries+`}}`)
	second := func(s int) time.Time { return time.Date(2026, 11, 28, 10, 0, s, 5e8, time.UTC) }
	for _, test := range []struct {
		at      time.Time
		changed bool
		want    string
	}{{second(0), false, "creator [changer]"}, {second(0), true, "changer [creator]"}, {second(8), true, "later []"}, {second(30), true, ""}} {
		got := ""
		if r := requestOf(o, test.at, test.changed); r != nil {
			got = fmt.Sprint(r.Manager, " ", r.Or)
		}
		if got != test.want {
			t.Errorf("at %s, changed: %t: %q, want %q", test.at, test.changed, got, test.want)
		}
	}
}
