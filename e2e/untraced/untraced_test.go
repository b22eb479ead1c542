// Package untraced tests what is left of tracehook where the API server does not trace its requests, as on managed
// clusters: EKS, GKE, AKS.
package untraced

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

var shared struct {
	*cluster.Cluster
	tracehook string // path of the binary
}

func TestMain(m *testing.M) {
	os.Exit(story.Run(m, cluster.Options{Controllers: true, Untraced: true}, install))
}

// install installs tracehook with the component that calls it twice.
func install(ctx context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.tracehook, err = c.Binary("tracehook"); err != nil {
		return err
	}
	certs := filepath.Join(c.Dir, "serving-certs")
	bundle, err := certificates.Issue(ctx, shared.tracehook, certificates.Service, certs)
	if err != nil {
		return err
	}
	webhook, err := c.StartWebhook(ctx, cluster.WebhookOptions{CertDir: certs})
	if err != nil {
		return err
	}
	if err := c.InstallWebhookWith(ctx, cluster.InstallOptions{Port: webhook.Port, CABundle: bundle, Components: []string{"env-injection", "lifecycle"}}); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p", fmt.Sprintf(
		`[{"op":"add","path":"/webhooks/1/clientConfig/caBundle","value":%q},{"op":"replace","path":"/webhooks/1/clientConfig/service/port","value":%d}]`,
		base64.StdEncoding.EncodeToString(bundle), webhook.Port)); err != nil {
		return err
	}
	return c.WaitInForce(ctx)
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, shared.Cluster, args...)
}

var traceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-01$`)

func stampOf(t *testing.T, object string) (traceID, spanID string) {
	t.Helper()
	stamp := mustKubectl(t, "get", object, "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
	match := traceparent.FindStringSubmatch(stamp)
	if match == nil {
		t.Fatalf("%s is stamped %q, want a sampled traceparent", object, stamp)
	}
	return match[1], match[2]
}

// The API server passes any user's traceparent on, so the stamp leads to the client's span, on all that comes of it.
func TestADeploymentAndAllThatComesOfItCarryTheClientsTrace(t *testing.T) {
	mustKubectl(t, "create", "clusterrolebinding", "alice", "--clusterrole=edit", "--user=alice")
	t.Cleanup(func() { mustKubectl(t, "delete", "clusterrolebinding/alice") })
	alice, err := shared.User("alice", "developers") // not of system:masters
	if err != nil {
		t.Fatal(err)
	}
	kubectl, err := shared.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(story.Within(t, time.Minute), shared.tracehook, "trace", "--", kubectl, "create", "deployment", "web", "--image=app:1", "--replicas=2")
	cmd.Env = append(os.Environ(), append(shared.Env(), "KUBECONFIG="+alice)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("tracehook trace: %v\n%s", err, &errs)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", "deployment/web") })
	match := regexp.MustCompile(`(?m)^trace id: ([0-9a-f]{32})$`).FindStringSubmatch(errs.String())
	if match == nil {
		t.Fatalf("no trace id in\n%s", &errs)
	}
	id := match[1]

	deadline := time.Now().Add(30 * time.Second)
	var objects []string
	for len(objects) < 3 { // a ReplicaSet and two Pods
		if time.Now().After(deadline) {
			t.Fatalf("after 30s there are only %v", objects)
		}
		time.Sleep(100 * time.Millisecond)
		objects = strings.Fields(mustKubectl(t, "get", "replicasets,pods", "-l", "app=web", "-o", "name"))
	}
	_, server := stampOf(t, "deployment/web")
	for _, object := range append(objects, "deployment/web") {
		if trace, span := stampOf(t, object); trace != id || span != server {
			t.Errorf("%s was caused by span %s of trace %s, want %s of the client's trace %s", object, span, trace, server, id)
		}
	}
	wantExplained(t, id)
	wantChecked(t, alice)
	wantLifecycle(t, id, objects)
	// The span that is stored hangs below the client's: nothing of the API server lies between.
	client := tracestore.Client{BaseURL: shared.JaegerURL}
	want := tree.Want{Name: "kubectl create", Service: "kubectl", Children: []tree.Want{
		{Service: "kubectl", Kind: tracestore.KindClient, Name: "POST /apis/apps/v1/namespaces/{namespace}/deployments", Children: []tree.Want{
			{Name: "POST /mutate", Service: "tracehook", Kind: tracestore.KindServer},
		}},
	}}
	if _, err := client.Wait(story.Within(t, 30*time.Second), id, func(got tracestore.Trace) error { return tree.Match(got, want) }); err != nil {
		t.Fatalf("trace %s: %v", id, err)
	}
}

// wantExplained wants `explain` to lead from the Deployment to the client's trace, and back.
func wantExplained(t *testing.T, id string) {
	t.Helper()
	for _, args := range [][]string{{"explain", "deployment/web"}, {"explain", "--trace", id}} {
		out, err := tracehook(t, shared.Kubeconfig, args...)
		if err != nil || !strings.Contains(out, id[:8]) && args[1] != "--trace" || !strings.Contains(out, "web") {
			t.Errorf("tracehook %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// wantChecked wants `check` to say that everybody's traces go on, and to stamp.
func wantChecked(t *testing.T, kubeconfig string) {
	t.Helper()
	out, err := tracehook(t, shared.Kubeconfig, "check", "--installed")
	if err != nil || !regexp.MustCompile(`(?m)^ok +stamped `).MatchString(out) {
		t.Errorf("tracehook check: %v\n%s", err, out)
	}
	// Who may edit, and not read the webhook configuration, learns which right is missing.
	if out, err := tracehook(t, kubeconfig, "check"); err != nil || !regexp.MustCompile(`(?m)^skip +stamped +may not list mutatingwebhookconfigurations`).MatchString(out) {
		t.Errorf("tracehook check as alice: %v\n%s", err, out)
	}
	mustKubectl(t, "create", "clusterrole", "reads-webhooks", "--verb=list", "--resource=mutatingwebhookconfigurations.admissionregistration.k8s.io")
	mustKubectl(t, "create", "clusterrolebinding", "reads-webhooks", "--clusterrole=reads-webhooks", "--user=alice")
	t.Cleanup(func() { mustKubectl(t, "delete", "clusterrole/reads-webhooks", "clusterrolebinding/reads-webhooks") })
	story.Eventually(t, 30*time.Second, 200*time.Millisecond, func(context.Context) error {
		out, err := tracehook(t, kubeconfig, "check")
		if err != nil || !regexp.MustCompile(`(?m)^ok +continued +everybody's`).MatchString(out) || !regexp.MustCompile(`(?m)^ok +api-server-tracing +it does not`).MatchString(out) {
			return fmt.Errorf("%w:\n%s", err, out)
		}
		return nil
	})
}

// wantLifecycle wants what became of a Pod in the client's trace.
func wantLifecycle(t *testing.T, id string, objects []string) {
	t.Helper()
	ports, err := cluster.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	teller, err := shared.StartTracehook(story.Within(t, time.Minute), cluster.TracehookOptions{
		Name: "lifecycle", ServiceAccount: "tracehook-lifecycle", Env: []string{"POD_NAME=teller"},
		Args: []string{"lifecycle", fmt.Sprintf("--health-probe-bind-address=127.0.0.1:%d", ports[0]), fmt.Sprintf("--metrics-bind-address=127.0.0.1:%d", ports[1])},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = teller.Stop() })
	for _, object := range objects {
		if !strings.HasPrefix(object, "pod/") {
			continue
		}
		now := time.Now().UTC().Format(time.RFC3339) // what a kubelet writes
		mustKubectl(t, "patch", object, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(
			`{"status":{"phase":"Running","startTime":%[1]q,"conditions":[{"type":"PodScheduled","status":"True","lastTransitionTime":%[1]q},{"type":"Initialized","status":"True","lastTransitionTime":%[1]q},{"type":"Ready","status":"True","lastTransitionTime":%[1]q}]}}`, now))
	}
	client := tracestore.Client{BaseURL: shared.JaegerURL}
	if _, err := client.Wait(story.Within(t, time.Minute), id, func(got tracestore.Trace) error {
		for _, span := range got.Spans {
			if span.Name == "start Pod" {
				return nil
			}
		}
		return fmt.Errorf("no span `start Pod` among %d", len(got.Spans))
	}); err != nil {
		t.Errorf("trace %s: %v", id, err)
	}
}

// tracehook runs the built program with a kubeconfig. The error is the command's own.
func tracehook(t *testing.T, kubeconfig string, args ...string) (out string, err error) {
	t.Helper()
	cmd := exec.CommandContext(story.Within(t, time.Minute), shared.tracehook, args...)
	cmd.Env = append(os.Environ(), append(shared.Env(), "KUBECONFIG="+kubeconfig, "HOME="+filepath.Join(shared.Dir, "home"))...)
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// Each call is a trace of its own where nobody hands a context on. What the first one has stored still counts for
// the others in the same request, so that the Pod and the processes in it agree.
func TestAPodAndItsProcessesAgreeThoughEveryCallIsATraceOfItsOwn(t *testing.T) {
	mustKubectl(t, "create", "namespace", "batch")
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace/batch", "--wait=false") })
	mustKubectl(t, "-n", "batch", "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	mustKubectl(t, "label", "namespace/batch", "tracehook.dev/inject-env=true")
	for i := range 5 {
		name := fmt.Sprint("task-", i)
		mustKubectl(t, "-n", "batch", "run", name, "--image=app:1", "--restart=Never")
		var pod corev1.Pod
		if err := json.Unmarshal([]byte(mustKubectl(t, "-n", "batch", "get", "pod", name, "-o", "json")), &pod); err != nil {
			t.Fatal(err)
		}
		stored := pod.Annotations["tracehook.dev/traceparent"]
		env := pod.Spec.Containers[0].Env
		if !traceparent.MatchString(stored) || len(env) != 1 || env[0].Name != "TRACEPARENT" || env[0].Value != stored {
			t.Errorf("the Pod stores %q, its process gets %v", stored, env)
		}
	}
}
