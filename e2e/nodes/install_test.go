//go:build linux

package nodes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/node"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// ours selects the Pods of our own program.
const ours = "app.kubernetes.io/name in (tracehook, tracehook-authority)"

// stamp is the annotation that tracehook leaves on what it was called for.
const stamp = "tracehook.dev/traceparent"

func TestOneFileInstallsEverything(t *testing.T) {
	collectorOnHost(t)
	t.Cleanup(func() { uninstall(t) })
	begin := time.Now()
	kubectl(t, "apply", "-f", filepath.Join(shared.root, "deploy", "install.yaml"))
	firstStamp(t)
	soon(t, begin)
	rolledOut(t, "tracehook", "tracehook-authority")
	t.Logf("all replicas Ready after %.1fs", time.Since(begin).Seconds())

	if on := nodesOf(t, "app.kubernetes.io/name=tracehook"); len(on) != 2 || on[0] == on[1] {
		t.Errorf("the replicas are on %v, want one on each node", on)
	}
	proven(t)
	audited(t)
	var id string
	for attempt := 1; ; attempt++ {
		name := fmt.Sprintf("installed-%d", attempt)
		id = traced(t, "create", "deployment", name, "--image="+workloadImage)
		t.Cleanup(func() { kubectl(t, "delete", "deployment/"+name, "--grace-period=1") })
		kubectl(t, "rollout", "status", "deployment/"+name, "--timeout=60s")
		stamps := kubectl(t, "get", "deployments,replicasets,pods", "-l", "app="+name, "-o", `jsonpath={range .items[*]}{.kind} {.metadata.annotations.tracehook\.dev/traceparent}{"\n"}{end}`)
		if strings.Count(stamps, id) == 3 {
			break
		}
		// A look-up of the owner has 50 ms, which a busy machine may need for the first connection.
		t.Logf("the Deployment, its ReplicaSet and its Pod are stamped\n%swant trace %s on all", stamps, id)
		if attempt == 5 {
			t.Fatal("not once in 5 times")
		}
	}
	spansOfPods(t, id)
	well(t)
}

// collectorOnHost puts the run's Collector, which is a process beside the API server, behind the Service that the
// manifests name. So the spans of all come to one store.
func collectorOnHost(t *testing.T) {
	t.Helper()
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: tracehook-system}
---
apiVersion: v1
kind: Service
metadata: {name: otel-collector, namespace: tracehook-system}
spec: {ports: [{name: otlp-grpc, port: 4317}, {name: otlp-http, port: 4318}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: otel-collector-host, namespace: tracehook-system, labels: {kubernetes.io/service-name: otel-collector}}
addressType: IPv4
ports: [{name: otlp-grpc, port: 4317}, {name: otlp-http, port: 4318}]
endpoints: [{addresses: [%s]}]
`, node.HostAddress))
}

// uninstall removes everything of tracehook, without the patience that its Pods would have with callers. The namespace stays,
// empty: its controller waits 5 s before it begins to delete one.
func uninstall(t *testing.T) {
	t.Helper()
	left := func() bool {
		uids := strings.Fields(kubectl(t, "-n", namespace, "get", "pods", "--output=jsonpath={.items[*].metadata.uid}"))
		for _, uid := range uids {
			shared.uninstalled = append(shared.uninstalled, types.UID(uid))
		}
		return len(uids) > 0
	}
	left()
	kubectl(t, "delete", "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings",
		"-l", "app.kubernetes.io/part-of=tracehook", "--wait=false")
	kubectl(t, "delete", "roles,rolebindings", "-A", "-l", "app.kubernetes.io/part-of=tracehook", "--wait=false")
	kubectl(t, "-n", namespace, "delete", "deployments,cronjobs,jobs,replicasets,services,endpointslices,networkpolicies,poddisruptionbudgets,"+
		"limitranges,leases,roles,rolebindings,serviceaccounts,secrets,configmaps,events",
		"--field-selector=metadata.name!=default,metadata.name!=kube-root-ca.crt", "--wait=false")
	// A ReplicaSet's controller may not know yet that it has gone, and make another one.
	for range 5 {
		kubectl(t, "-n", namespace, "delete", "pods", "--all", "--grace-period=1", "--timeout=150s")
		if !left() {
			return
		}
	}
	t.Errorf("Pods in %s come again and again", namespace)
}

// firstStamp returns when an object comes back stamped.
func firstStamp(t *testing.T) {
	t.Helper()
	story.Eventually(t, patience, 20*time.Millisecond, func(ctx context.Context) error {
		created, err := shared.clients.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, examplePod(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && created.Annotations[stamp] == "" {
			err = errors.New("a Pod comes back without a stamp")
		}
		return err
	})
}

// examplePod is one to be created in dry runs: stamped, and never there.
func examplePod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "example-"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "workload", Image: workloadImage}}},
	}
}

func rolledOut(t *testing.T, deployments ...string) {
	t.Helper()
	for _, name := range deployments {
		kubectl(t, "-n", namespace, "rollout", "status", "deployment/"+name, "--timeout=150s")
	}
}

// nodesOf are the nodes of the Pods in tracehook's namespace that are not about to end.
func nodesOf(t *testing.T, selector string) (nodes []string) {
	t.Helper()
	for _, pod := range pods(t, selector) {
		nodes = append(nodes, pod.Spec.NodeName)
	}
	slices.Sort(nodes)
	return nodes
}

func pods(t *testing.T, selector string) (pods []corev1.Pod) {
	t.Helper()
	list, err := shared.clients.CoreV1().Pods(namespace).List(story.Within(t, patience), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			pods = append(pods, pod)
		}
	}
	return pods
}

// proven returns when the authority says that the API server is known to trust the CA.
func proven(t *testing.T) {
	t.Helper()
	ctx := story.Within(t, patience)
	var last certs.Status
	if err := certs.WatchStatus(ctx, shared.clients, namespace, certs.DefaultServingSecret, func(s certs.Status) bool {
		last = s
		return !s.Settled || s.Proof == nil || s.Proof.Certainty != certs.Proven
	}); err != nil || ctx.Err() != nil {
		t.Fatalf("no settled proof: %v, %v, the last status is %+v", err, ctx.Err(), last)
	}
	if !slices.Contains(last.Proof.Servers, shared.RESTConfig.Host) {
		t.Errorf("proven at %v, want %s", last.Proof.Servers, shared.RESTConfig.Host)
	}
}

// audited dials every replica as the API server does.
func audited(t *testing.T) {
	t.Helper()
	if out, err := tracehook(t, "certs", "audit", "--fail-on=warning"); err != nil {
		t.Errorf("tracehook certs audit: %v\n%s", err, out)
	}
}

// tracehook runs the built program as a member of system:masters.
func tracehook(t *testing.T, args ...string) (output string, err error) {
	t.Helper()
	program, err := shared.Binary("tracehook")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(story.Within(t, patience), program, args...)
	cmd.Env = append(append(os.Environ(), shared.Env()...), "KUBECONFIG="+shared.Kubeconfig)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var traceID = regexp.MustCompile(`(?m)^trace id: ([0-9a-f]{32})$`)

// traced runs kubectl under `tracehook trace`.
func traced(t *testing.T, args ...string) (id string) {
	t.Helper()
	program, err := shared.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	out, err := tracehook(t, append([]string{"trace", "--", program}, args...)...)
	match := traceID.FindStringSubmatch(out)
	if err != nil || match == nil {
		t.Fatalf("tracehook trace -- kubectl %v: %v\n%s", args, err, out)
	}
	return match[1]
}

// spansOfPods wants tracehook's spans in the trace, each with the resource attributes of a Pod that is there.
func spansOfPods(t *testing.T, id string) {
	t.Helper()
	running := map[string]corev1.Pod{}
	for _, pod := range pods(t, "app.kubernetes.io/name=tracehook") {
		running[pod.Name] = pod
	}
	client := tracestore.Client{BaseURL: shared.JaegerURL}
	trace, err := client.Wait(story.Within(t, patience), id, func(trace tracestore.Trace) error {
		if !slices.ContainsFunc(trace.Spans, func(s tracestore.Span) bool { return s.Service == "tracehook" }) {
			return errors.New("no span of tracehook")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, span := range trace.Spans {
		if span.Service != "tracehook" {
			continue
		}
		pod, found := running[fmt.Sprint(span.Resource["k8s.pod.name"])]
		if !found {
			t.Errorf("span %q is of Pod %v, want one of %d that run", span.Name, span.Resource["k8s.pod.name"], len(running))
			continue
		}
		for key, want := range map[string]string{
			"k8s.pod.uid": string(pod.UID), "k8s.node.name": pod.Spec.NodeName, "k8s.namespace.name": namespace,
			"k8s.deployment.name": "tracehook", "k8s.container.name": "tracehook",
		} {
			if got := fmt.Sprint(span.Resource[key]); got != want {
				t.Errorf("span %q has %s=%s, want %s", span.Name, key, got, want)
			}
		}
	}
}

// well wants no record at WARN or above of any Pod of tracehook's, and no Warning event in its namespace.
func well(t *testing.T) {
	t.Helper()
	quiet(t)
	noWarnings(t, func(corev1.Event) bool { return true })
}

// quiet wants no record at WARN or above of any Pod of tracehook's that is there now.
func quiet(t *testing.T) {
	t.Helper()
	for _, pod := range pods(t, ours) {
		log := kubectl(t, "-n", namespace, "logs", pod.Name, "--all-containers")
		if !strings.Contains(log, `"level":"INFO"`) {
			t.Errorf("%s says nothing that can be read as a log:\n%s", pod.Name, log)
		}
		for line := range strings.Lines(log) {
			switch {
			case strings.Contains(line, `"level":"INFO"`):
			case strings.Contains(line, `"reason":"bad_certificate"`) && unlessBusy(t, time.Second) > 4*time.Second:
				// The API server calls by what it knows of caBundle, and hears of a change when it has time.
				t.Logf("%s: %s", pod.Name, line)
			default:
				t.Errorf("%s: %s", pod.Name, line)
			}
		}
		for _, status := range pod.Status.ContainerStatuses {
			if status.RestartCount > 0 {
				t.Errorf("%s was restarted %d times", pod.Name, status.RestartCount)
			}
		}
	}
}

// noWarnings wants no Warning event among those that are looked at.
func noWarnings(t *testing.T, lookedAt func(corev1.Event) bool) {
	t.Helper()
	events, err := shared.clients.CoreV1().Events(namespace).List(story.Within(t, patience), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range events.Items {
		if event.Type != corev1.EventTypeWarning || slices.Contains(shared.uninstalled, event.InvolvedObject.UID) || !lookedAt(event) {
			continue
		}
		if ofBusyMachine(event) {
			t.Logf("kubelet was held up: event %s about %s: %s", event.Reason, event.InvolvedObject.Name, event.Message)
		} else {
			t.Errorf("event %s about %s: %s (%d times)", event.Reason, event.InvolvedObject.Name, event.Message, event.Count)
		}
	}
}

// ofBusyMachine says of a Warning event that kubelet gave up waiting: for a list of its own from the API server, which has a second, or
// for the answer to a probe. A machine that has much else to do causes that whatever the Pod does.
func ofBusyMachine(event corev1.Event) bool {
	switch event.Reason {
	case "FailedMount":
		return strings.HasSuffix(event.Message, "cache: timed out waiting for the condition")
	case "Unhealthy":
		return strings.Contains(event.Message, "context deadline exceeded") || strings.Contains(event.Message, "Client.Timeout exceeded")
	}
	return false
}
