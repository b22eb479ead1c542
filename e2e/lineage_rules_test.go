package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// stampsOf are the traces that the Pods with a label were caused by, by name.
func stampsOf(t *testing.T, selector string) map[string]string {
	t.Helper()
	stamps := map[string]string{}
	for line := range strings.Lines(mustKubectl(t, "get", "pods", "-l", selector, "--no-headers", "-o", `custom-columns=:.metadata.name,:.metadata.annotations.tracehook\.dev/traceparent`)) {
		fields := strings.Fields(line)
		stamps[fields[0]] = traceOfStamp(fields[1])
	}
	return stamps
}

// podsOf waits for so many Pods and returns their stamps.
func podsOf(t *testing.T, selector string, n int) (stamps map[string]string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if stamps = stampsOf(t, selector); len(stamps) != n {
			return fmt.Errorf("%s has the pods %v, want %d", selector, stamps, n)
		}
		return nil
	})
	return stamps
}

// makeOlder turns the clock of an object's cause back. Its checksums stay those of the traceparent.
func makeOlder(t *testing.T, object string, by time.Duration) {
	t.Helper()
	const layout = "2006-01-02T15:04:05.000Z"
	causedAt := mustKubectl(t, "get", object, "-o", `jsonpath={.metadata.annotations.tracehook\.dev/caused-at}`)
	if len(causedAt) < len(layout) {
		t.Fatalf("%s was caused at %q", object, causedAt)
	}
	at, err := time.Parse(layout, causedAt[:len(layout)])
	if err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "annotate", "--overwrite", object, "tracehook.dev/caused-at="+at.Add(-by).Format(layout)+causedAt[len(layout):])
	time.Sleep(300 * time.Millisecond) // as long as what was looked up is remembered
}

// createOf is the trace of the request that created a Pod.
func createOf(t *testing.T, pod string) (traceID string) {
	t.Helper()
	event, err := installed.WaitAuditEvent(story.Within(t, 30*time.Second), func(e cluster.AuditEvent) bool {
		return e.Verb == "create" && e.ObjectRef.Resource == "pods" && e.ObjectRef.Name == pod
	})
	if err != nil {
		t.Fatalf("nobody has created pod/%s: %v", pod, err)
	}
	return event.Annotations[cluster.WebhookName+"/trace-id"]
}

// The Pods of a rollout continue it. A Pod that is made months later, because a node was drained, does not.
func TestWhatAControllerMakesLaterHasACauseOfItsOwn(t *testing.T) {
	id, _, _ := traced(t, installed.Kubeconfig, "create", "-f", manifest(t, `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: aging}
spec:
  replicas: 1
  serviceName: aging
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: aging}}
  template:
    metadata: {labels: {app: aging}}
    spec: {containers: [{name: main, image: "app:1"}]}
`))
	t.Cleanup(func() { mustKubectl(t, "delete", "statefulset/aging", "--wait=false") })
	if first := podsOf(t, "app=aging", 1); first["aging-0"] != id {
		t.Errorf("the first Pod was caused by %v, want %s", first, id)
	}
	// What was made within the hour continues; so does what `kubectl scale` makes then.
	makeOlder(t, "statefulset/aging", 55*time.Minute)
	mustKubectl(t, "scale", "statefulset/aging", "--replicas=2")
	if second := podsOf(t, "app=aging", 2); second["aging-1"] != id {
		t.Errorf("the second Pod was caused by %v, want %s", second, id)
	}
	makeOlder(t, "statefulset/aging", 10*time.Minute)
	mustKubectl(t, "scale", "statefulset/aging", "--replicas=3")
	third := podsOf(t, "app=aging", 3)["aging-2"]
	if own := createOf(t, "aging-2"); third != own || third == id {
		t.Errorf("the third Pod was caused by trace %s, want its own create %s", third, own)
	}
	stamp := traceparent.FindStringSubmatch(mustKubectl(t, "get", "statefulset/aging", "-o", stampPath))
	wantTrace(t, third, tree.Want{Name: "POST /mutate", Service: "tracehook", Descendant: true, Links: []tracestore.Link{{TraceID: id, SpanID: stamp[2]}},
		Children: []tree.Want{{Name: "mutate trace-context", Attributes: map[string]any{"tracehook.stamp": "linked"}}}})
	wantStamp(t, "statefulset/aging", id, "two scalings")
}

// A Job is one piece of work, however long it waits in a queue.
func TestAJobsPodsContinueItHoweverLateTheyAreMade(t *testing.T) {
	id, _, _ := traced(t, installed.Kubeconfig, "create", "-f", manifest(t, queuedJob))
	t.Cleanup(func() { mustKubectl(t, "delete", "job/train", "--cascade=foreground", "--wait=false") })
	makeOlder(t, "job/train", 30*24*time.Hour)

	// The queue lets it go, and says where it runs: in a trace of its own, and not sampled.
	for _, queue := range []string{"00-0000000000000000000000000000abcd-00000000000000ef-01", "00-0000000000000000000000000000abce-00000000000000ef-00"} {
		patchAs(t, queue, "batch/v1", "jobs", "train", `{"spec":{"suspend":true}}`)
		patchAs(t, queue, "batch/v1", "jobs", "train", `{"spec":{"suspend":false,"template":{"spec":{"nodeSelector":{"pool":"team"}}}}}`)
		wantStamp(t, "job/train", id, "the queue has let it go")
	}
	for pod, stamp := range podsOf(t, "job-name=train", 1) {
		if stamp != id {
			t.Errorf("%s was caused by %s, want %s", pod, stamp, id)
		}
		wantEnvironments(t, getPod(t, "pod/"+pod), map[string][]string{"c": {"TRACEPARENT=" + storedIn(t, getPod(t, "pod/"+pod))}})
	}
}

const queuedJob = `
apiVersion: batch/v1
kind: Job
metadata: {name: train, labels: {kueue.x-k8s.io/queue-name: team}}
spec:
  suspend: true
  template:
    metadata: {annotations: {tracehook.dev/inject-env: "true"}}
    spec: {restartPolicy: Never, containers: [{name: c, image: "app:1"}]}
`

// An operator's ClusterPolicy makes a DaemonSet in a namespace: the owner is in none, and its plural is none that anybody would guess.
func TestTheCauseOfAnOwnerInNoNamespaceWithAnOddPluralIsFound(t *testing.T) {
	mustKubectl(t, "apply", "-f", manifest(t, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: clusterpolicyen.example.net}
spec:
  group: example.net
  scope: Cluster
  names: {plural: clusterpolicyen, singular: clusterpolicy, kind: ClusterPolicy}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: lineage-of-policies}
rules: [{apiGroups: [example.net], resources: [clusterpolicyen], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: lineage-of-policies}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lineage-of-policies}
subjects: [{kind: ServiceAccount, namespace: tracehook-system, name: tracehook}]
`))
	t.Cleanup(func() {
		mustKubectl(t, "delete", "crd/clusterpolicyen.example.net", "clusterrole/lineage-of-policies", "clusterrolebinding/lineage-of-policies")
	})
	mustKubectl(t, "wait", "--for=condition=Established", "crd/clusterpolicyen.example.net")
	const id = "0102030405060708090a0b0c0d0e0f20"
	mustKubectl(t, "create", "-f", manifest(t, `
apiVersion: example.net/v1
kind: ClusterPolicy
metadata: {name: gpu, annotations: {tracehook.dev/traceparent: 00-`+id+`-0102030405060708-01}}
`))
	uid := mustKubectl(t, "get", "clusterpolicy/gpu", "-o", "jsonpath={.metadata.uid}")
	daemonSet := manifest(t, `
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: driver
  ownerReferences: [{apiVersion: example.net/v1, kind: ClusterPolicy, name: gpu, uid: `+uid+`, controller: true}]
spec:
  selector: {matchLabels: {app: driver}}
  template: {metadata: {labels: {app: driver}}, spec: {containers: [{name: main, image: "app:1"}]}}
`)
	t.Cleanup(func() { mustKubectl(t, "delete", "daemonset/driver", "--ignore-not-found") })
	// The first look-up may run out of time before the API server has told of its kinds.
	eventually(t, 30*time.Second, func() error {
		mustKubectl(t, "delete", "daemonset/driver", "--ignore-not-found")
		mustKubectl(t, "create", "-f", daemonSet)
		if got := stampOf(t, "daemonset/driver"); got != id {
			return fmt.Errorf("daemonset/driver was caused by trace %s, want %s", got, id)
		}
		return nil
	})
}

// The webhook is asked before the quota is, every time that the controller tries again.
func TestAPodThatAQuotaRefusesAgainAndAgainDoesNotFillTheTrace(t *testing.T) {
	installWithLineage(t, "parent")
	mustKubectl(t, "create", "namespace", "refused")
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace/refused", "--wait=false") })
	mustKubectl(t, "-n", "refused", "create", "quota", "none", "--hard=pods=0")
	mustKubectl(t, "-n", "refused", "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	eventually(t, 30*time.Second, func() error {
		if hard := mustKubectl(t, "-n", "refused", "get", "quota/none", "-o", "jsonpath={.status.hard.pods}"); hard != "0" {
			return errors.New("the quota is not in force")
		}
		return nil
	})
	id, _, _ := traced(t, installed.Kubeconfig, "-n", "refused", "create", "deployment", "web", "--image=app:1", "--replicas=2")
	const tries = 8
	eventually(t, time.Minute, func() error {
		events, err := installed.AuditEvents()
		if err != nil {
			return err
		}
		refused := 0
		for _, e := range events {
			if e.ObjectRef.Namespace == "refused" && e.ObjectRef.Resource == "pods" && e.Verb == "create" {
				refused++
			}
		}
		if refused < tries {
			return fmt.Errorf("the controller has tried %d times, want %d", refused, tries)
		}
		return nil
	})
	wantTrace(t, id, tree.Want{Name: "create ReplicaSet", Service: "tracehook", Descendant: true, Children: []tree.Want{{Name: "create Pod", Service: "tracehook"}}})
	time.Sleep(2 * time.Second) // what was made last arrives, too
	jaeger := tracestore.Client{BaseURL: installed.JaegerURL}
	trace, err := jaeger.Trace(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	for _, span := range trace.Spans {
		if span.Name == "create Pod" {
			made++
		}
	}
	if made > 2 {
		t.Errorf("%d spans `create Pod` of a Deployment that wants 2 Pods and got none", made)
	}
}
