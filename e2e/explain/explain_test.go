package explain

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// What every answer has in common.
const (
	clock  = `\d\d:\d\d:\d\d`
	offset = `\+\d+(\.\d+)? s`
)

// short is a trace id as text has it.
func short(traceID string) string { return traceID[:8] + "…" }

// podsOf returns the names of an app's Pods, the oldest first.
func podsOf(t *testing.T, namespace, app string) []string {
	t.Helper()
	return strings.Fields(mustKubectl(t, "-n", namespace, "get", "pods", "-l", "app="+app, "--sort-by=.metadata.creationTimestamp", "-o", "jsonpath={.items[*].metadata.name}"))
}

// Where no node is, a Pod cannot start, and the scheduler says so.
func TestAPodIsExplainedByTheCommandThatChangedItsDeployment(t *testing.T) {
	ns := namespace(t, "chain")
	first := traced(t, "-n", ns, "create", "deployment", "web", "--image=app:1")
	mustKubectl(t, "-n", ns, "wait", "--for=condition=PodScheduled=false", "pod", "-l", "app=web", "--timeout=30s")
	mustKubectl(t, "-n", ns, "wait", "--for=create", "pod", "-l", "app=web", "--timeout=30s")
	old := podsOf(t, ns, "web")[0]

	unschedulable := `schedule: Unschedulable: no nodes available to schedule pods`
	want(t, explained(t, "-n", ns, "pod/"+old),
		`Pod `+old+` exists because of`,
		`  kubectl-create   `+clock+`   trace `+short(first),
		`  └ Deployment web +created  `+offset+` +0 of 1 ready, 1 up to date`,
		`    └ ReplicaSet web-\w+ +created  `+offset,
		`      └ Pod +created  `+offset+` +`+unschedulable,
		`written      .* kube-controller-manager \(update\).*`,
		`events       `+clock+`  Warning FailedScheduling: no nodes available to schedule pods`,
	)
	second := traced(t, "-n", ns, "set", "image", "deployment/web", "app=app:2")
	mustKubectl(t, "-n", ns, "wait", "--for=jsonpath={.status.updatedReplicas}=1", "deployment/web", "--timeout=30s")
	young := podsOf(t, ns, "web")[1]

	want(t, explained(t, "-n", ns, "pod", young),
		`Pod `+young+` exists because of`,
		`  kubectl-set   `+clock+`   trace `+short(second),
		`  └ Deployment web +changed  spec.template.spec.containers\[app\].image  0 of 1 ready, 1 up to date`,
		`    └ ReplicaSet web-\w+ +created  `+offset,
		`      └ Pod +created  `+offset+` +`+unschedulable,
	)
	// The other one still is there for the first command.
	want(t, explained(t, "-n", ns, "pod/"+old),
		`  kubectl-create   `+clock+`   trace `+short(first),
		`  └ Deployment web +changed since  `+clock+` by kubectl-set, trace `+short(second)+`  .*`,
		`    └ ReplicaSet web-\w+ +created        `+offset,
		`      └ Pod +created        `+offset+` +`+unschedulable,
	)
	// Downwards: what the Deployment made, and what keeps it from starting.
	want(t, explained(t, "-n", ns, "deploy", "web"),
		`Deployment web exists because of`,
		`  kubectl-set   `+clock+`   trace `+short(second),
		`made         ReplicaSet web-\w+  1 of 1 Pods  trace `+short(first),
		`               Pod `+old+`  `+unschedulable,
		`             ReplicaSet web-\w+  1 of 1 Pods`,
		`               Pod `+young+`  `+unschedulable,
	)
	t.Run("as JSON", func(t *testing.T) {
		var story struct {
			APIVersion, Kind string
			Object           struct{ Name string }
			Causes           []struct {
				TraceID, PreviousTraceID string
				Request                  struct{ Manager string }
			}
			Chain []struct {
				Kind, Change string
				Cause        int
				Failing      bool
				Stages       []struct{ Name, Reason string }
			}
		}
		if err := json.Unmarshal([]byte(explained(t, "-n", ns, "pod/"+young, "-o", "json")), &story); err != nil {
			t.Fatal(err)
		}
		if story.APIVersion != "tracehook.dev/v1alpha1" || story.Kind != "Explanation" || story.Object.Name != young ||
			len(story.Causes) != 1 || story.Causes[0].TraceID != second || story.Causes[0].PreviousTraceID != first || story.Causes[0].Request.Manager != "kubectl-set" ||
			len(story.Chain) != 3 || story.Chain[0].Change != "changed" || story.Chain[2].Kind != "Pod" || !story.Chain[2].Failing || len(story.Chain[2].Stages) == 0 {
			t.Errorf("the story is %+v", story)
		}
		if got := explained(t, "-n", ns, "pod/"+young, "-o", "jsonpath={.causes[0].traceID}"); got != second {
			t.Errorf("jsonpath gives %q, want %q", got, second)
		}
		if got := explained(t, "-n", ns, "pods", "-l", "app=web", "-o", "jsonpath={.kind} {.items[*].kind}"); got != "ExplanationList Explanation Explanation" {
			t.Errorf("two Pods are %q", got)
		}
	})
	t.Run("the other way round", func(t *testing.T) {
		text := explained(t, "-n", ns, "--trace", second)
		want(t, text,
			`trace `+second+` is carried in namespace chain by`,
			`  Deployment web +created `+clock,
			`  └ ReplicaSet web-\w+ +created `+clock,
			`    └ Pod `+young+` +created `+clock,
			`looked at    \d+ objects of \d+ kinds; not at other namespaces, nor at what has none \(-A\)`,
		)
		if strings.Contains(text, old) {
			t.Errorf("the Pod of before is in\n%s", text)
		}
		want(t, explained(t, "-n", ns, "--trace", first), `  Deployment web +created `+clock+`  as its cause before the present one`, `  ReplicaSet web-\w+ .*|  └ ReplicaSet web-\w+ .*`)
		want(t, explained(t, "-A", "--trace", second), `  Deployment chain/web +created .*`)
		want(t, explained(t, "-n", "default", "--trace", second), `no object in namespace default carries trace `+second)
	})
}

// What a kubelet writes of a Pod that becomes ready, and how it is told.
func TestAPodThatBecameReadyIsToldWithItsStages(t *testing.T) {
	ns := namespace(t, "ready")
	mustKubectl(t, "create", "-f", manifest(t, "apiVersion: v1\nkind: Node\nmetadata: {name: worker}\nspec: {taints: [{key: only, value: ready, effect: NoSchedule}]}\n"))
	t.Cleanup(func() { mustKubectl(t, "delete", "node", "worker", "--wait=false") })
	mustKubectl(t, "patch", "node", "worker", "--subresource=status", "--type=merge", "-p",
		`{"status":{"capacity":{"cpu":"8","memory":"8Gi","pods":"50"},"allocatable":{"cpu":"8","memory":"8Gi","pods":"50"},"conditions":[{"type":"Ready","status":"True"}]}}`)
	id := traced(t, "-n", ns, "create", "-f", manifest(t, `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {tolerations: [{operator: Exists}], containers: [{name: web, image: "app:1"}]}}
`))
	mustKubectl(t, "-n", ns, "wait", "--for=create", "pod", "-l", "app=web", "--timeout=30s")
	mustKubectl(t, "-n", ns, "wait", "--for=condition=PodScheduled", "pod", "-l", "app=web", "--timeout=30s")
	pod := podsOf(t, ns, "web")[0]
	uid := uidOf(t, ns, "pod/"+pod)
	created, err := time.Parse(time.RFC3339, mustKubectl(t, "-n", ns, "get", "pod", pod, "-o", "jsonpath={.metadata.creationTimestamp}"))
	if err != nil {
		t.Fatal(err)
	}
	in := func(seconds int) string {
		return created.Add(time.Duration(seconds) * time.Second).Format(time.RFC3339)
	}
	mustKubectl(t, "-n", ns, "create", "-f", manifest(t, `apiVersion: v1
kind: Event
metadata: {name: pulled}
involvedObject: {kind: Pod, name: `+pod+`, namespace: `+ns+`, uid: `+uid+`, fieldPath: "spec.containers{web}"}
type: Normal
reason: Pulled
message: 'Successfully pulled image "app:1" in 4.8s (4.8s including waiting). Image size: 12345678 bytes.'
source: {component: kubelet}
firstTimestamp: "`+in(5)+`"
lastTimestamp: "`+in(5)+`"
count: 1
`))
	mustKubectl(t, "-n", ns, "patch", "pod", pod, "--subresource=status", "-p", `{"status":{"phase":"Running","startTime":"`+in(0)+`","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"`+in(6)+`"}],
		"containerStatuses":[{"name":"web","image":"app:1","imageID":"app@1","ready":true,"restartCount":0,"started":true,"state":{"running":{"startedAt":"`+in(5)+`"}}}]}}`)
	want(t, explained(t, "-n", ns, "pod/"+pod),
		`  kubectl-create   `+clock+`   trace `+short(id),
		`      └ Pod +created  `+offset+` +scheduled `+offset+` · pulled `+offset+` · started `+offset+` · ready `+offset,
		`slowest      pull image web 4\.8 s \(Pod `+pod+`\)`,
	)
	// With every source nothing is left open.
	text := eventually(t, func() string { return explained(t, withStore("-n", ns, "pod/"+pod, "--audit-log", shared.AuditLog)...) },
		`  kubectl create   `+clock+`   trace `+short(id)+`   [\d.]+ m?s   by admin with kubectl/.*`,
		`  └ Deployment web +created  \+\d+\.\d\d s +rolled out `+offset,
		`    └ ReplicaSet web-\w+ +created  \+\d+\.\d\d s`,
		`      └ Pod +created  \+\d+\.\d\d s +scheduled `+offset+` · pulled `+offset+` · started `+offset+` · ready `+offset,
		`slowest      .* of the .*`,
	)
	if strings.Contains(text, "not known") {
		t.Errorf("something is not known in\n%s", text)
	}
	// And one that ran out of memory again and again.
	mustKubectl(t, "-n", ns, "patch", "pod", pod, "--subresource=status", "-p", `{"status":{"conditions":[{"type":"Ready","status":"False","lastTransitionTime":"`+in(9)+`"}],
		"containerStatuses":[{"name":"web","image":"app:1","imageID":"app@1","ready":false,"restartCount":2,"started":false,"state":{"waiting":{"reason":"CrashLoopBackOff","message":"back-off 20s restarting failed container"}},
		"lastState":{"terminated":{"exitCode":137,"reason":"OOMKilled","startedAt":"`+in(7)+`","finishedAt":"`+in(9)+`"}}}]}}`)
	want(t, explained(t, "-n", ns, "deployment", "web"),
		`Deployment web exists because of`,
		`made         ReplicaSet web-\w+  1 of 1 Pods`,
		`               Pod `+pod+`  restart container web: CrashLoopBackOff: back-off 20s restarting failed container; before: run container web: OOMKilled \(exit code 137\); 2 restarts`,
	)
}
