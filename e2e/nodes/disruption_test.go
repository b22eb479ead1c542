//go:build linux

package nodes

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/e2e/internal/load"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// Whatever is done to the Pods on purpose costs nobody a request or a stamp, whether the webhook's failures are ignored
// or fail the request. Two loads run at the same time, one for each, of 100 creates a second where the machine has time for them.
// Two processors do not quite have it: a create costs them 13 ms. 6.7 ms are the API server's, which traces and audits every
// request, 1.7 the Collector's, 1.4 etcd's, 1.1 tracehook's, 1.0 the load's and 0.8 Jaeger's.
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
		// quietly: nothing is logged at WARN or above and no Warning event is left, by Pods that begin or by all of them.
		quietly string
	}{
		{"rollout restart", func(t *testing.T) {
			kubectl(t, "-n", namespace, "rollout", "restart", "deployment/tracehook", "deployment/tracehook-authority")
		}, "all"},
		{"back to the last commit", func(t *testing.T) {
			previous, err := os.ReadFile(filepath.Join(shared.dir, "previous", "deploy", "install.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			apply(t, strings.ReplaceAll(string(previous), tracehookImage+":"+release, tracehookImage+":previous"))
		}, ""},
		{"an upgrade from the last commit", func(t *testing.T) {
			kubectl(t, "apply", "-f", filepath.Join(shared.root, "deploy", "install.yaml"))
		}, "those that begin"},
		{"scale to 4", func(t *testing.T) { scale(t, 4) }, "those that begin"},
		{"scale to 1", func(t *testing.T) { scale(t, 1) }, "all"},
		{"scale to 2", func(t *testing.T) { scale(t, 2) }, "all"},
		{"drain node1", func(t *testing.T) { drain(t, "node1") }, ""},
		{"drain node2", func(t *testing.T) { drain(t, "node2") }, ""},
	} {
		t.Run(act.name, func(t *testing.T) {
			kubectl(t, "-n", namespace, "delete", "events", "--all")
			before, begin := loads.sofar(), time.Now()
			said := listen(t)
			act.do(t)
			rolledOut(t, "tracehook", "tracehook-authority")
			gone(t)
			loads.none(t, before, begin)
			switch act.quietly {
			case "all":
				said(t)
				quiet(t)
				noWarnings(t, func(event corev1.Event) bool { return !probedTooLate(t, event) })
			case "those that begin":
				quiet(t)
				there := pods(t, "")
				noWarnings(t, func(event corev1.Event) bool {
					return slices.ContainsFunc(there, func(pod corev1.Pod) bool { return pod.UID == event.InvolvedObject.UID })
				})
			}
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
			// One load has 4 requests under way; what is sent before kube-proxy learns of it is refused too.
			if lost > 100 {
				t.Errorf("%s: %s", policy, l.Sofar())
			}
		}
	})
	for policy, l := range loads {
		t.Logf("%s: %s", policy, l.Stop())
	}
}

// probedTooLate says of an event that kubelet has probed a container that had just ended: it asks on until its sandbox is gone.
// No program can help that.
func probedTooLate(t *testing.T, event corev1.Event) bool {
	t.Helper()
	_, err := shared.clients.CoreV1().Pods(namespace).Get(story.Within(t, patience), event.InvolvedObject.Name, metav1.GetOptions{})
	late := apierrors.IsNotFound(err) && event.Reason == "Unhealthy" && strings.HasPrefix(event.Message, "Readiness probe failed") && strings.Contains(event.Message, "connection refused")
	if late {
		t.Logf("%s had ended when kubelet asked whether it is ready", event.InvolvedObject.Name)
	}
	return late
}

// loads run by failure policy.
type loads map[admissionv1.FailurePolicyType]*load.Load

// startLoads has ConfigMaps stamped, in one namespace by a webhook whose failures are ignored and in another by one that
// fails requests. Both are copies of the shipped one, in a configuration that no apply of a manifest touches.
func startLoads(t *testing.T) loads {
	t.Helper()
	ctx := story.Within(t, patience)
	client := shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations()
	shipped, err := client.Get(ctx, "tracehook", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	scope := admissionv1.NamespacedScope
	// No two alike, so that nobody has to wait until they have gone.
	ours := strings.ToLower(rand.Text())
	namespaceOf := func(policy admissionv1.FailurePolicyType) string { return strings.ToLower(string(policy)) + "-" + ours }
	own := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "tracehook-loads"}}
	for _, policy := range []admissionv1.FailurePolicyType{admissionv1.Ignore, admissionv1.Fail} {
		webhook := shipped.Webhooks[0].DeepCopy()
		webhook.Name = strings.ToLower(string(policy)) + ".loads.tracehook.dev"
		webhook.FailurePolicy = &policy
		webhook.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: namespaceOf(policy)}}
		webhook.Rules = []admissionv1.RuleWithOperations{{
			Operations: []admissionv1.OperationType{admissionv1.Create},
			Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}, Scope: &scope},
		}}
		own.Webhooks = append(own.Webhooks, *webhook)
	}
	for _, webhook := range own.Webhooks {
		kubectl(t, "create", "namespace", webhook.NamespaceSelector.MatchLabels[corev1.LabelMetadataName])
	}
	if _, err := client.Create(ctx, own, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := shared.WaitInForce(ctx); err != nil {
		t.Fatal(err)
	}
	all := loads{}
	for _, webhook := range own.Webhooks {
		policy := *webhook.FailurePolicy
		l, err := load.Start(t.Context(), load.Options{
			Through: map[string]*rest.Config{string(policy): shared.RESTConfig}, Workers: 4, Every: 40 * time.Millisecond, Namespace: namespaceOf(policy),
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
		kubectl(t, "delete", "mutatingwebhookconfiguration/tracehook-loads", "--wait=false")
		kubectl(t, "delete", "namespace", namespaceOf(admissionv1.Ignore), namespaceOf(admissionv1.Fail), "--wait=false")
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
	took := time.Since(begin).Seconds()
	t.Logf("%d creates in %.1fs, %.0f a second", requests, took, float64(requests)/took)
}

// listen takes the logs of the Pods that there are now, to be looked at when they have ended or at the end.
func listen(t *testing.T) (said func(*testing.T)) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	now := metav1.Now()
	var listening sync.WaitGroup
	var mu sync.Mutex
	var warnings []string
	for _, pod := range pods(t, ours) {
		listening.Go(func() {
			log, err := shared.clients.CoreV1().Pods(namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Follow: true, SinceTime: &now}).Stream(ctx)
			if err != nil {
				return // it has ended
			}
			defer log.Close()
			lines := bufio.NewScanner(log)
			for lines.Scan() {
				if !strings.Contains(lines.Text(), `"level":"INFO"`) {
					mu.Lock()
					warnings = append(warnings, pod.Name+": "+lines.Text())
					mu.Unlock()
				}
			}
		})
	}
	return func(t *testing.T) {
		t.Helper()
		stop()
		listening.Wait()
		for _, line := range warnings {
			t.Error(line)
		}
	}
}

func scale(t *testing.T, replicas int) {
	t.Helper()
	kubectl(t, "-n", namespace, "scale", "deployment/tracehook", "--replicas="+strconv.Itoa(replicas))
}

func drain(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() { kubectl(t, "uncordon", name) })
	kubectl(t, "drain", name, "--ignore-daemonsets", "--timeout=150s")
}

// gone returns when every Pod that was about to end has ended.
func gone(t *testing.T) {
	t.Helper()
	story.Eventually(t, patience, 200*time.Millisecond, func(ctx context.Context) error {
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
	if err := syscall.Kill(processOf(t, pod, "tracehook"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
