//go:build linux

package nodes

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/e2e/internal/load"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// Whatever is done to the Pods on purpose costs nobody a request or a stamp, whether the webhook's failures are ignored
// or fail the request. Two loads run at the same time, one for each, of 100 creates a second.
func TestNoCreateFailsOrIsMissedWhileReplicasComeAndGo(t *testing.T) {
	collectorOnHost(t)
	t.Cleanup(func() { uninstall(t) })
	kubectl(t, "apply", "-f", filepath.Join(shared.root, "deploy", "install.yaml"))
	rolledOut(t, "tracehook", "tracehook-authority")
	proven(t)
	loads := startLoads(t)
	release, err := released()
	if err != nil {
		t.Fatal(err)
	}

	for _, act := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"rollout restart", func(t *testing.T) {
			kubectl(t, "-n", namespace, "rollout", "restart", "deployment/tracehook", "deployment/tracehook-authority")
		}},
		{"the last commit's image", func(t *testing.T) {
			kubectl(t, "-n", namespace, "set", "image", "deployment/tracehook", "tracehook="+tracehookImage+":previous")
		}},
		{"this image again", func(t *testing.T) {
			kubectl(t, "-n", namespace, "set", "image", "deployment/tracehook", "tracehook="+tracehookImage+":"+release)
		}},
		{"scale to 4", func(t *testing.T) { scale(t, 4) }},
		{"scale to 1", func(t *testing.T) { scale(t, 1) }},
		{"scale to 2", func(t *testing.T) { scale(t, 2) }},
		{"drain node1", func(t *testing.T) { drain(t, "node1") }},
		{"drain node2", func(t *testing.T) { drain(t, "node2") }},
	} {
		t.Run(act.name, func(t *testing.T) {
			before := loads.sofar()
			begin := time.Now()
			act.do(t)
			rolledOut(t, "tracehook", "tracehook-authority")
			gone(t)
			loads.none(t, before, begin)
		})
	}

	t.Run("kill -9 of a replica", func(t *testing.T) {
		before := loads.sofar()
		kill9(t, pods(t, "app.kubernetes.io/name=tracehook")[0])
		time.Sleep(time.Second) // kubelet has to notice
		rolledOut(t, "tracehook")
		for policy, l := range loads {
			lost := l.Sofar().Failures - before[policy].Failures
			t.Logf("%s: %d of %d failed or unstamped", policy, lost, l.Sofar().Requests-before[policy].Requests)
			// One load has 2 requests under way; what is sent before kube-proxy learns of it is refused too.
			if lost > 100 {
				t.Errorf("%s: %s", policy, l.Sofar())
			}
		}
	})
	for policy, l := range loads {
		t.Logf("%s: %s", policy, l.Stop())
	}
}

// loads run by failure policy.
type loads map[admissionv1.FailurePolicyType]*load.Load

// startLoads has ConfigMaps stamped, in one namespace by the shipped webhook and in another by one that fails requests.
func startLoads(t *testing.T) loads {
	t.Helper()
	ctx := story.Within(t, time.Minute)
	apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: load-ignore}
---
apiVersion: v1
kind: Namespace
metadata: {name: load-fail, labels: {tracehook.dev/exclude: "true"}}
`)
	client := shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations()
	configuration, err := client.Get(ctx, "tracehook", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	webhook := &configuration.Webhooks[0]
	scope := admissionv1.NamespacedScope
	webhook.Rules = append(webhook.Rules, admissionv1.RuleWithOperations{
		Operations: []admissionv1.OperationType{admissionv1.Create},
		Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}, Scope: &scope},
	})
	if configuration, err = client.Update(ctx, configuration, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	webhook = &configuration.Webhooks[0]
	fail := admissionv1.Fail
	webhook.FailurePolicy = &fail
	webhook.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: "load-fail"}}
	strict := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "tracehook-strict"}, Webhooks: configuration.Webhooks[:1]}
	if _, err := client.Create(ctx, strict, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := shared.WaitInForce(ctx); err != nil {
		t.Fatal(err)
	}
	all := loads{}
	for policy, namespace := range map[admissionv1.FailurePolicyType]string{admissionv1.Ignore: "load-ignore", admissionv1.Fail: "load-fail"} {
		l, err := load.Start(t.Context(), load.Options{
			Through: map[string]*rest.Config{string(policy): shared.RESTConfig}, Workers: 2, Every: 20 * time.Millisecond, Namespace: namespace,
		})
		if err != nil {
			t.Fatal(err)
		}
		all[policy] = l
	}
	t.Cleanup(func() {
		for _, l := range all {
			l.Stop()
		}
		kubectl(t, "delete", "mutatingwebhookconfiguration/tracehook-strict", "namespace/load-ignore", "namespace/load-fail", "--wait=false")
	})
	return all
}

func (l loads) sofar() map[admissionv1.FailurePolicyType]load.Result {
	results := map[admissionv1.FailurePolicyType]load.Result{}
	for policy, one := range l {
		results[policy] = one.Sofar()
	}
	return results
}

// none wants no failure since.
func (l loads) none(t *testing.T, before map[admissionv1.FailurePolicyType]load.Result, begin time.Time) {
	t.Helper()
	requests := 0
	for policy, now := range l.sofar() {
		requests += now.Requests - before[policy].Requests
		if now.Failures != before[policy].Failures {
			t.Errorf("%s: %d failed or came back unstamped: %s", policy, now.Failures-before[policy].Failures, now)
		}
	}
	t.Logf("%d creates in %.1fs", requests, time.Since(begin).Seconds())
}

func scale(t *testing.T, replicas int) {
	t.Helper()
	kubectl(t, "-n", namespace, "scale", "deployment/tracehook", "--replicas="+strconv.Itoa(replicas))
}

func drain(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() { kubectl(t, "uncordon", name) })
	kubectl(t, "drain", name, "--ignore-daemonsets", "--timeout=55s")
}

// gone returns when every Pod that was about to end has ended.
func gone(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, 200*time.Millisecond, func(ctx context.Context) error {
		list, err := shared.clients.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, pod := range list.Items {
			if pod.DeletionTimestamp != nil {
				return fmt.Errorf("%s is still there", pod.Name)
			}
		}
		return nil
	})
}

// kill9 ends a Pod's tracehook as the kernel does when memory is short.
func kill9(t *testing.T, pod corev1.Pod) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range processes {
		cgroups, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(cgroups, []byte(pod.UID)) {
			continue // ended meanwhile, or another
		}
		name, err := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
		if err != nil || strings.TrimSpace(string(name)) != "tracehook" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no process of %s found", pod.Name)
}
