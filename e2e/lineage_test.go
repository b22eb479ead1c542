package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// workloads is one of each kind that makes Pods.
const workloads = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: main, image: "app:1"}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: main, image: "app:1"}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {containers: [{name: main, image: "app:1"}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  completions: 2
  parallelism: 2
  template:
    metadata: {labels: {app: once}}
    spec: {restartPolicy: Never, containers: [{name: main, image: "app:1"}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        metadata: {labels: {app: nightly}}
        spec: {restartPolicy: Never, containers: [{name: main, image: "app:1"}]}
`

// The life of every kind of workload, under the real controllers: whatever they make
// remembers the request that wanted it. And what they make, and how often, is what they
// make where there is no webhook.
func TestWhatControllersMakeRemembersWhoWantedItAndIsNoMoreThanWithoutUs(t *testing.T) {
	node := startKubelet(t)
	var without, link, parent map[string]int

	t.Run("link and none", func(t *testing.T) {
		leaveOut(t, "lineage-none")
		t.Cleanup(func() { reinstall(t) })
		t.Run("at once", func(t *testing.T) { // returns when both have
			t.Run("link", func(t *testing.T) {
				t.Parallel()
				link = live(t, node, "lineage-link", installed.webhook, true)
				wantLookUpsInTraces(t, "lineage-link")
			})
			t.Run("none", func(t *testing.T) {
				t.Parallel()
				without = live(t, node, "lineage-none", nil, false)
			})
		})
	})
	t.Run("parent", func(t *testing.T) {
		parent = live(t, node, "lineage-parent", installWithLineage(t, "parent"), false)
	})
	for mode, got := range map[string]map[string]int{"link": link, "parent": parent} {
		if !maps.Equal(got, without) {
			t.Errorf("--lineage %s: the controllers made %v, without the webhook %v", mode, got, without)
		}
	}
}

// live leads the workloads through their life in a namespace of their own, for which
// that webhook is called or none, and returns what their controllers made, by name.
// With schedule it waits for the CronJob's minute.
func live(t *testing.T, node *kubelet, namespace string, webhook *cluster.Webhook, schedule bool) (made map[string]int) {
	mustKubectl(t, "create", "namespace", namespace)
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace", namespace) })
	var before map[string]int
	if webhook != nil {
		before = lookUps(t, webhook)
	}
	n := &life{T: t, Clientset: node.Clientset, namespace: namespace, stamped: webhook != nil, seen: map[types.UID]string{}, wanted: map[string]string{}}

	n.do("create", "-f", manifest(t, workloads))("web", "db", "agent", "once", "nightly")
	n.do("set", "image", "deployment/web", "statefulset/db", "daemonset/agent", "main=app:2")("web", "db", "agent")
	// `kubectl scale` writes another object, the Deployment's scale, which nothing can
	// be stored on: what made the Deployment as it is stays the cause, and the new Pods'.
	n.do("scale", "deployment/web", "--replicas=5")()
	n.do("patch", "deployment/web", "-p", `{"spec":{"replicas":6}}`)() // the same, written directly
	n.do("label", "deployment/web", "statefulset/db", "a=b")()
	n.do("rollout", "undo", "deployment/web", "statefulset/db", "daemonset/agent")("web", "db", "agent")
	n.do("create", "job", "by-hand", "--from=cronjob/nightly")("by-hand")

	if schedule {
		eventually(t, 90*time.Second, func() error {
			jobs, err := n.BatchV1().Jobs(namespace).List(t.Context(), metav1.ListOptions{})
			if err == nil && !slices.ContainsFunc(jobs.Items, func(j batchv1.Job) bool { return strings.HasPrefix(j.Name, "nightly-") }) {
				err = errors.New("the CronJob has made no Job")
			}
			return err
		})
		n.settle()
	}
	n.do("patch", "cronjob/nightly", "-p", `{"spec":{"suspend":true}}`)()
	n.wantQuiet()
	if webhook != nil {
		n.wantLookUps(before, lookUps(t, webhook))
	}
	return n.made(node)
}

// life is what has happened in a namespace.
type life struct {
	*testing.T
	*kubernetes.Clientset
	namespace string
	stamped   bool                 // the webhook is called for this namespace
	seen      map[types.UID]string // cause of each Pod and Job, by its first sighting
	wanted    map[string]string    // cause of what is made from now on, by app
	lost      []string             // Pods and Jobs that do not remember their owner's cause
}

// do runs kubectl. What it returns is told for which apps that was the cause, waits
// until the controllers are done and checks who remembers what.
func (n *life) do(args ...string) func(apps ...string) {
	n.Helper()
	id, _, _ := traced(n.T, installed.Kubeconfig, append([]string{"-n", n.namespace}, args...)...)
	return func(apps ...string) {
		n.Helper()
		for _, app := range apps {
			n.wanted[app] = id
		}
		n.settle()
		for _, object := range []struct{ name, app string }{
			{"deployment/web", "web"}, {"statefulset/db", "db"}, {"daemonset/agent", "agent"}, {"job/once", "once"}, {"cronjob/nightly", "nightly"},
		} {
			n.wantCause("kubectl "+strings.Join(args, " "), object.name, mustKubectl(n.T, "-n", n.namespace, "get", object.name, "-o", stampPath), object.app)
		}
	}
}

func (n *life) wantCause(after, name, stamp, app string) {
	n.Helper()
	want := n.wanted[app]
	if !n.stamped {
		want = ""
	}
	if traceOfStamp(stamp) != want {
		n.Errorf("after %s: %s/%s has cause %q, want %q", after, n.namespace, name, stamp, want)
	}
}

func traceOfStamp(stamp string) (traceID string) {
	if match := traceparent.FindStringSubmatch(stamp); match != nil {
		return match[1]
	}
	return ""
}

// settle waits until the controllers have made what is wanted, and checks what is new:
// it remembers the cause of its kind, and goes on doing so.
func (n *life) settle() {
	n.Helper()
	eventually(n.T, time.Minute, n.settled)
	pods, err := n.CoreV1().Pods(n.namespace).List(n.Context(), metav1.ListOptions{})
	if err != nil {
		n.Fatal(err)
	}
	jobs, err := n.BatchV1().Jobs(n.namespace).List(n.Context(), metav1.ListOptions{})
	if err != nil {
		n.Fatal(err)
	}
	look := func(name string, object metav1.Object, want string) {
		n.Helper()
		stamp := object.GetAnnotations()["tracehook.dev/traceparent"]
		first, known := n.seen[object.GetUID()]
		switch {
		case known && stamp != first:
			n.Errorf("%s/%s: the stamp changed from %s to %s", n.namespace, name, first, stamp)
		case !known && n.stamped && traceOfStamp(stamp) != want:
			n.lost = append(n.lost, fmt.Sprintf("%s has cause %q, want %q", name, stamp, want))
		case !known && !n.stamped && stamp != "":
			n.Errorf("%s/%s is stamped %s", n.namespace, name, stamp)
		}
		n.seen[object.GetUID()] = stamp
	}
	for _, job := range jobs.Items {
		want := n.wanted[job.Spec.Template.Labels["app"]]
		switch owner := metav1.GetControllerOf(&job); {
		case job.Name == "by-hand":
			want = n.wanted["by-hand"]
		case owner != nil && n.stamped: // each run is a trace of its own, which leads to the CronJob's
			want = n.wantOwnCause(&job)
		}
		look("job/"+job.Name, &job, want)
	}
	for _, pod := range pods.Items {
		want := n.wanted[pod.Labels["app"]]
		if owner := metav1.GetControllerOf(&pod); owner.Kind == "Job" {
			want = traceOfStamp(n.seen[owner.UID])
		}
		look("pod/"+pod.Name, &pod, want)
	}
	// A ReplicaSet's is the Deployment's of the time when it was the one in use: the
	// deployment controller copies it.
	sets, err := n.AppsV1().ReplicaSets(n.namespace).List(n.Context(), metav1.ListOptions{})
	if err != nil {
		n.Fatal(err)
	}
	for _, set := range sets.Items {
		if *set.Spec.Replicas > 0 {
			n.wantCause("the rollout", "replicaset/"+set.Name, set.Annotations["tracehook.dev/traceparent"], "web")
		}
	}
}

// wantOwnCause wants that a CronJob's Job has its own create as its cause, linked to what caused
// the CronJob, and returns the trace of that create.
func (n *life) wantOwnCause(job *batchv1.Job) (traceID string) {
	n.Helper()
	event, err := installed.WaitAuditEvent(story.Within(n.T, 30*time.Second), func(e cluster.AuditEvent) bool {
		return e.Verb == "create" && e.ObjectRef.Resource == "jobs" && e.ObjectRef.Namespace == n.namespace && e.ObjectRef.Name == job.Name
	})
	if err != nil {
		n.Fatalf("nobody has created job/%s: %v", job.Name, err)
	}
	traceID = event.Annotations[cluster.WebhookName+"/trace-id"]
	if _, known := n.seen[job.UID]; known || traceOfStamp(job.Annotations["tracehook.dev/traceparent"]) != traceID {
		return traceID
	}
	if cronJob := traceparent.FindStringSubmatch(mustKubectl(n.T, "-n", n.namespace, "get", "cronjob/nightly", "-o", stampPath)); cronJob != nil {
		wantTrace(n.T, traceID, tree.Want{Name: "POST /mutate", Service: "tracehook", Descendant: true, Links: []tracestore.Link{{TraceID: cronJob[1], SpanID: cronJob[2]}},
			Children: []tree.Want{{Name: "mutate trace-context", Attributes: map[string]any{"tracehook.stamp": "linked"}}}})
	}
	return traceID
}

// settled says what is still to be done.
func (n *life) settled() error {
	web, err := n.AppsV1().Deployments(n.namespace).Get(n.Context(), "web", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if s, want := web.Status, *web.Spec.Replicas; s.ObservedGeneration < web.Generation || s.UpdatedReplicas != want || s.AvailableReplicas != want || s.Replicas != want {
		return fmt.Errorf("deployment web of generation %d wants %d replicas and has %+v", web.Generation, want, s)
	}
	db, err := n.AppsV1().StatefulSets(n.namespace).Get(n.Context(), "db", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if s, want := db.Status, *db.Spec.Replicas; s.ObservedGeneration < db.Generation || s.UpdatedReplicas != want || s.AvailableReplicas != want || s.CurrentRevision != s.UpdateRevision {
		return fmt.Errorf("statefulset db of generation %d wants %d replicas and has %+v", db.Generation, want, s)
	}
	agent, err := n.AppsV1().DaemonSets(n.namespace).Get(n.Context(), "agent", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if s := agent.Status; s.ObservedGeneration < agent.Generation || s.DesiredNumberScheduled != 1 || s.UpdatedNumberScheduled != 1 || s.NumberAvailable != 1 {
		return fmt.Errorf("daemonset agent of generation %d wants a Pod on one node and has %+v", agent.Generation, s)
	}
	jobs, err := n.BatchV1().Jobs(n.namespace).List(n.Context(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, job := range jobs.Items {
		if job.Status.Succeeded != *job.Spec.Completions {
			return fmt.Errorf("job %s wants %d Pods to succeed and has %+v", job.Name, *job.Spec.Completions, job.Status)
		}
	}
	pods, err := n.CoreV1().Pods(n.namespace).List(n.Context(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp != nil {
			return fmt.Errorf("pod %s has yet to go", pod.Name)
		}
	}
	return nil
}

// wantQuiet wants that, once things have settled, nobody writes anything any more: a
// write that changes nothing would leave the resource versions alone, but not the audit
// log. A webhook and a controller that undo each other's work never come to that.
func (n *life) wantQuiet() {
	n.Helper()
	const quiet = 5 * time.Second
	eventually(n.T, 30*time.Second, func() error {
		events, err := installed.AuditEvents()
		if err != nil {
			return err
		}
		for _, e := range slices.Backward(events) {
			if time.Since(e.RequestReceivedTimestamp) > quiet {
				break
			}
			if e.ObjectRef.Namespace == n.namespace && e.ObjectRef.Resource != "events" && slices.Contains([]string{"create", "update", "patch", "delete"}, e.Verb) {
				return fmt.Errorf("less than %s ago %s did %s %s %s", quiet, e.User.Username, e.Verb, e.ObjectRef.Resource, e.ObjectRef.Name)
			}
		}
		return nil
	})
	before := n.versions()
	time.Sleep(quiet)
	if after := n.versions(); !maps.Equal(before, after) {
		n.Errorf("%s: resource versions do not stand still: %v, %s later %v", n.namespace, before, quiet, after)
	}
}

// versions are the resource versions of everything in the namespace.
func (n *life) versions() map[string]string {
	n.Helper()
	versions := map[string]string{}
	for line := range strings.Lines(mustKubectl(n.T, "-n", n.namespace, "get", "deployments,replicasets,statefulsets,daemonsets,jobs,cronjobs,pods", "--no-headers",
		"-o", "custom-columns=:.kind,:.metadata.name,:.metadata.resourceVersion")) {
		fields := strings.Fields(line)
		versions[fields[0]+"/"+fields[1]] = fields[2]
	}
	return versions
}

// made counts what the controllers have made, less what the time of day makes.
func (n *life) made(node *kubelet) map[string]int {
	n.Helper()
	made := node.ran(n.namespace)
	delete(made, "Pods of nightly")
	count := func(what string) {
		made[what] = len(strings.Fields(mustKubectl(n.T, "-n", n.namespace, "get", what, "-o", "name")))
	}
	count("replicasets")
	count("controllerrevisions")
	for _, object := range []string{"deployment/web", "statefulset/db", "daemonset/agent"} {
		generation, err := strconv.Atoi(mustKubectl(n.T, "-n", n.namespace, "get", object, "-o", "jsonpath={.metadata.generation}"))
		if err != nil {
			n.Fatal(err)
		}
		made["generation of "+object] = generation
	}
	return made
}

// wantLookUps wants that owners were found, and that what is lost is lost for want of
// time and counted so. On a machine as busy as one that runs this test, 50ms may be over
// before the API server has had its turn; nothing else is an excuse. (None forbidden: the
// ClusterRole of the manifests is enough.)
func (n *life) wantLookUps(before, after map[string]int) {
	n.Helper()
	ended := map[string]int{}
	for result := range after {
		if count := after[result] - before[result]; count > 0 {
			ended[result] = count
		}
	}
	if len(n.lost) > ended["timeout"] || len(n.lost) > len(n.seen)/2 {
		n.Errorf("%d of %d Pods and Jobs do not remember what their owners do, but look-ups ended so: %v\n%s", len(n.lost), len(n.seen), ended, strings.Join(n.lost, "\n"))
	} else if len(n.lost) > 0 {
		n.Logf("lost for want of time: %s", strings.Join(n.lost, ", "))
	}
	if ended["found"] == 0 {
		n.Errorf("look-ups ended so: %v, want most of them found", ended)
	}
	delete(ended, "found")
	delete(ended, "timeout")
	if len(ended) > 0 {
		n.Errorf("look-ups ended so, too: %v", ended)
	}
}

// lookUps is how many of a webhook's look-ups have ended how.
func lookUps(t *testing.T, webhook *cluster.Webhook) map[string]int {
	t.Helper()
	resp, err := http.Get(webhook.MetricsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	ended := map[string]int{}
	for _, match := range lookUpsLine.FindAllStringSubmatch(string(page), -1) {
		count, err := strconv.Atoi(match[2])
		if err != nil {
			t.Fatal(err)
		}
		ended[match[1]] += count
	}
	return ended
}

var lookUpsLine = regexp.MustCompile(`(?m)^tracehook_lineage_lookups_total\{.*tracehook_lineage_result="(\w+)".*\} (\d+)$`)

// wantLookUpsInTraces wants the look-ups in the traces of the creates that needed them.
func wantLookUpsInTraces(t *testing.T, namespace string) {
	t.Helper()
	events, err := installed.AuditEvents()
	if err != nil {
		t.Fatal(err)
	}
	jaeger := tracestore.Client{BaseURL: installed.JaegerURL}
	missing := map[string]bool{
		"GET /apis/apps/v1/namespaces/{namespace}/replicasets/{name}":  true,
		"GET /apis/apps/v1/namespaces/{namespace}/statefulsets/{name}": true,
		"GET /apis/apps/v1/namespaces/{namespace}/daemonsets/{name}":   true,
		"GET /apis/batch/v1/namespaces/{namespace}/jobs/{name}":        true,
		"GET /apis/batch/v1/namespaces/{namespace}/cronjobs/{name}":    true,
	}
	eventually(t, 30*time.Second, func() error {
		for _, e := range events {
			id := e.Annotations[cluster.WebhookName+"/trace-id"]
			if e.ObjectRef.Namespace != namespace || e.Verb != "create" || id == "" {
				continue
			}
			trace, err := jaeger.Trace(t.Context(), id)
			if errors.Is(err, tracestore.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			for name := range missing {
				want := tree.Want{Name: "POST /mutate", Service: "tracehook", Kind: tracestore.KindServer, Descendant: true, Children: []tree.Want{
					{Name: "mutate trace-context", Attributes: map[string]any{"tracehook.lineage.result": nil, "tracehook.lineage.cached": false}, Children: []tree.Want{
						{Name: name, Service: "tracehook", Kind: tracestore.KindClient},
					}},
				}}
				if tree.Match(trace, want) == nil {
					delete(missing, name)
				}
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("in no trace of a create in %s: %v", namespace, slices.Sorted(maps.Keys(missing)))
		}
		return nil
	})
}

// With --lineage parent the trace of one `kubectl create` is one tree from there down
// to the Pods, although the controllers' own requests are traces of their own.
func TestTheTraceOfADeploymentIsOneTreeDownToItsPods(t *testing.T) {
	webhook := installWithLineage(t, "parent")
	id := family(t, webhook)
	pod := tree.Want{Name: "create Pod", Service: "tracehook", Kind: tracestore.KindInternal,
		Attributes: map[string]any{"admission.request.kind": "v1/Pod", "admission.request.operation": "CREATE"}}
	trace := wantTrace(t, id, tree.Want{Name: "kubectl create", Service: "kubectl", Children: []tree.Want{
		{Name: "POST /mutate", Service: "tracehook", Kind: tracestore.KindServer, Descendant: true, Attributes: map[string]any{"admission.request.kind": "apps/v1/Deployment"}, Children: []tree.Want{
			{Name: "create ReplicaSet", Service: "tracehook", Kind: tracestore.KindInternal, Attributes: map[string]any{"admission.request.kind": "apps/v1/ReplicaSet"},
				Children: []tree.Want{pod, pod, pod}},
		}},
	}})

	// Each object stores its own span of that tree, and each span leads to the request
	// that made the object.
	stored := map[string]string{}
	for _, stamp := range strings.Fields(mustKubectl(t, "get", "pods", "-l", "app=family", "-o", `jsonpath={.items[*].metadata.annotations.tracehook\.dev/traceparent}`)) {
		if match := traceparent.FindStringSubmatch(stamp); match != nil && match[1] == id {
			stored[match[2]] = "create Pod"
		}
	}
	set := mustKubectl(t, "get", "replicasets", "-l", "app=family", "-o", `jsonpath={.items[*].metadata.annotations.tracehook\.dev/create-traceparent}`)
	if match := traceparent.FindStringSubmatch(set); match != nil {
		stored[match[2]] = "create ReplicaSet"
	}
	made := map[string]string{}
	for _, span := range trace.Spans {
		if !strings.HasPrefix(span.Name, "create ") {
			continue
		}
		made[span.ID] = span.Name
		if len(span.Links) != 1 {
			t.Errorf("%s has links %v, want one", span.Name, span.Links)
			continue
		}
		link := span.Links[0]
		request := wantTrace(t, link.TraceID, tree.Want{Name: "POST /mutate", Service: "tracehook", Descendant: true,
			Attributes: map[string]any{"admission.request.uid": span.Attributes["admission.request.uid"]}})
		if !slices.ContainsFunc(request.Spans, func(s tracestore.Span) bool { return s.ID == link.SpanID && s.Name == "POST /mutate" }) {
			t.Errorf("%s links to span %s, which is no POST /mutate", span.Name, link.SpanID)
		}
	}
	if !maps.Equal(stored, made) {
		t.Errorf("stored on the objects: %v, in the trace: %v", stored, made)
	}
	if got, want := stampOf(t, "deployment/family"), id; got != want {
		t.Errorf("the Deployment has cause %s, want %s", got, want)
	}
}

// family creates a Deployment and returns its trace once there are three Pods of it:
// anew if the webhook says that a look-up has run out of time.
func family(t *testing.T, webhook *cluster.Webhook) (traceID string) {
	t.Helper()
	for {
		before := lookUps(t, webhook)["timeout"]
		id, _, _ := traced(t, installed.Kubeconfig, "create", "deployment", "family", "--image=app:1", "--replicas=3")
		eventually(t, 30*time.Second, func() error {
			if pods := mustKubectl(t, "get", "pods", "-l", "app=family", "-o", "name"); len(strings.Fields(pods)) != 3 {
				return fmt.Errorf("want three Pods, got %q", pods)
			}
			return nil
		})
		if lookUps(t, webhook)["timeout"] == before {
			t.Cleanup(func() { mustKubectl(t, "delete", "deployment/family") })
			return id
		}
		t.Log("a look-up has run out of time; once more")
		mustKubectl(t, "delete", "deployment/family", "--cascade=foreground")
	}
}

// Without the lineage a Pod remembers only the request of the controller that made it.
func TestWithoutLineageAPodRemembersItsControllersRequest(t *testing.T) {
	installWithLineage(t, "off")
	id, _, _ := traced(t, installed.Kubeconfig, "create", "job", "orphan", "--image=app:1")
	t.Cleanup(func() { mustKubectl(t, "delete", "job/orphan") })
	var stamp string
	eventually(t, 30*time.Second, func() error {
		if stamp = mustKubectl(t, "get", "pods", "-l", "job-name=orphan", "-o", `jsonpath={.items[*].metadata.annotations.tracehook\.dev/traceparent}`); stamp == "" {
			return errors.New("there is no Pod, or it has no stamp")
		}
		return nil
	})
	event, err := installed.WaitAuditEvent(story.Within(t, 30*time.Second), func(e cluster.AuditEvent) bool {
		return e.Annotations[cluster.WebhookName+"/trace-id"] == traceOfStamp(stamp)
	})
	if err != nil {
		t.Fatalf("no request has trace %s: %v", traceOfStamp(stamp), err)
	}
	if traceOfStamp(stamp) == id || event.ObjectRef.Resource != "pods" || event.User.Username != "system:kube-controller-manager" {
		t.Errorf("the Pod was caused by %s of %s (trace %s), want the controller's create", event.Verb, event.ObjectRef.Resource, traceOfStamp(stamp))
	}
}

// installWithLineage installs another webhook in the place of the shared one.
func installWithLineage(t *testing.T, lineage string) *cluster.Webhook {
	t.Helper()
	ctx := story.Within(t, time.Minute)
	webhook, err := installed.StartWebhook(ctx, cluster.WebhookOptions{CertDir: installed.certDir, Name: "tracehook-lineage-" + lineage, Args: []string{"--lineage=" + lineage}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		reinstall(t)
		if code, err := webhook.Stop(); code != 0 || err != nil {
			t.Errorf("the webhook ended with code %d, %v", code, err)
		}
	})
	if err := installed.InstallWebhook(ctx, webhook.Port, installed.caBundle); err != nil {
		t.Fatal(err)
	}
	return webhook
}

// leaveOut keeps the webhook away from a namespace, until the next installation.
func leaveOut(t *testing.T, namespace string) {
	t.Helper()
	mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p",
		`[{"op":"add","path":"/webhooks/0/namespaceSelector/matchExpressions/0/values/-","value":"`+namespace+`"}]`)
	if err := installed.SetCABundle(story.Within(t, time.Minute), installed.caBundle); err != nil { // waits until it is in force
		t.Fatal(err)
	}
}

// eventually waits until check is content.
func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s: %v", limit, err)
		}
	}
}

// kubelet is all of a node that a controller sees, for without one no rollout goes on:
// a Pod that is scheduled there becomes ready, a Job's has succeeded, and one that is
// to go is gone.
type kubelet struct {
	*kubernetes.Clientset

	mu   sync.Mutex
	pods map[types.UID][2]string // namespace and app of all that have run
}

const nodeName = "worker"

// startKubelet adds a node to the cluster, until the test is over.
func startKubelet(t *testing.T) *kubelet {
	t.Helper()
	clients, err := kubernetes.NewForConfig(installed.RESTConfig)
	if err != nil {
		t.Fatal(err)
	}
	k := &kubelet{Clientset: clients, pods: map[types.UID][2]string{}}
	plenty := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100"), corev1.ResourceMemory: resource.MustParse("100Gi"), corev1.ResourcePods: resource.MustParse("100")}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Status: corev1.NodeStatus{Capacity: plenty, Allocatable: plenty}}
	if _, err := clients.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background()) // not the test's: cleaning up needs a node, too
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for beat := 0; ; beat++ {
			err := k.run(ctx)
			if err == nil && beat%100 == 0 { // a node is given up without a sign of life for 50s
				err = k.heartbeat(ctx)
			}
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				t.Errorf("kubelet: %v", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-stopped
		mustKubectl(t, "delete", "node", nodeName)
	})
	return k
}

func (k *kubelet) heartbeat(ctx context.Context) error {
	node, err := k.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
	_, err = k.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return k.heartbeat(ctx) // a controller has written
	}
	return err
}

func (k *kubelet) run(ctx context.Context) error {
	pods, err := k.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		k.mu.Lock()
		k.pods[pod.UID] = [2]string{pod.Namespace, pod.Labels["app"]}
		k.mu.Unlock()
		switch {
		case pod.DeletionTimestamp != nil:
			now := metav1.NewDeleteOptions(0)
			now.Preconditions = metav1.NewUIDPreconditions(string(pod.UID))
			err = k.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *now)
		case pod.Status.Phase == corev1.PodPending:
			pod.Status.Phase, pod.Status.StartTime = corev1.PodRunning, new(metav1.Now())
			ready := corev1.ConditionTrue
			if pod.Spec.RestartPolicy == corev1.RestartPolicyNever {
				pod.Status.Phase, ready = corev1.PodSucceeded, corev1.ConditionFalse
			}
			pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.Now()})
			_, err = k.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, &pod, metav1.UpdateOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // seen again in a moment
			return err
		}
	}
	return nil
}

// ran counts the Pods of a namespace that have run, by app.
func (k *kubelet) ran(namespace string) map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	counts := map[string]int{}
	for _, pod := range k.pods {
		if pod[0] == namespace {
			counts["Pods of "+pod[1]]++
		}
	}
	return counts
}
