//go:build linux

package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// workloads are one of each kind, in the namespace that wants the environment.
const workloads = `
apiVersion: v1
kind: Namespace
metadata: {name: injected, labels: {tracehook.dev/inject-env: "true"}}
---
apiVersion: v1
kind: Pod
metadata: {name: pod, namespace: injected, labels: {app: pod}}
spec: SERVE
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: deployment, namespace: injected}
spec: {selector: {matchLabels: {app: deployment}}, template: {metadata: {labels: {app: deployment}}, spec: SERVE}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: statefulset, namespace: injected}
spec: {serviceName: none, selector: {matchLabels: {app: statefulset}}, template: {metadata: {labels: {app: statefulset}}, spec: SERVE}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: daemonset, namespace: injected}
spec: {selector: {matchLabels: {app: daemonset}}, template: {metadata: {labels: {app: daemonset}}, spec: SERVE}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: job, namespace: injected}
spec: {template: {metadata: {labels: {app: job}}, spec: WORK}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: cronjob, namespace: injected}
spec: {schedule: "0 0 1 1 *", jobTemplate: {spec: {template: {metadata: {labels: {app: cronjob}}, spec: WORK}}}}
`

func TestTheProcessInAPodSeesTheTraceOfWhoeverMadeIt(t *testing.T) {
	install(t, "overlays/split", "components/env-injection")
	container := func(verb string) string {
		return fmt.Sprintf(`{restartPolicy: %s, terminationGracePeriodSeconds: 1, containers: [{name: workload, image: %q, args: [%s], env: [{name: OTEL_TRACES_EXPORTER, value: none}]}]}`,
			map[string]string{"serve": "Always", "work": "Never"}[verb], workloadImage, verb)
	}
	t.Cleanup(func() { kubectl(t, "delete", "namespace/injected", "--wait=false") })
	apply(t, strings.NewReplacer("SERVE", container("serve"), "WORK", container("work")).Replace(workloads))
	kubectl(t, "-n", "injected", "create", "job", "now", "--from=cronjob/cronjob")

	for app, count := range map[string]int{"pod": 1, "deployment": 1, "statefulset": 1, "daemonset": 2, "job": 1, "cronjob": 1} {
		t.Run(app, func(t *testing.T) {
			for _, pod := range started(t, "injected", "app="+app, count) {
				sees(t, pod, pod.Annotations[stamp])
			}
		})
	}
	t.Run("an ephemeral container", func(t *testing.T) {
		kubectl(t, "-n", "injected", "debug", "pod/pod", "--image="+workloadImage, "--image-pull-policy=IfNotPresent", "--container=debugger",
			"--profile=general", "--", "/ko-app/workload", "work")
		story.Eventually(t, patience, 200*time.Millisecond, func(ctx context.Context) error {
			pod, err := shared.clients.CoreV1().Pods("injected").Get(ctx, "pod", metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, status := range pod.Status.EphemeralContainerStatuses {
				if status.State.Terminated != nil {
					return nil
				}
			}
			return errors.New("it has not run")
		})
		// It is no create of a Pod, so no webhook of ours is called.
		if got := environment(t, "injected", "pod", "debugger"); got.Traceparent != "" {
			t.Errorf("it sees %+v, want nothing", got)
		}
	})
	t.Run("a static Pod and its mirror", func(t *testing.T) {
		node := shared.nodes[0]
		file := filepath.Join(node.Manifests, "static.yaml")
		text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: static, namespace: injected, labels: {app: static}}\nspec: %s\n", container("serve"))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(file)
		for _, pod := range started(t, "injected", "app=static", 1) {
			// kubelet runs the file, not the mirror: to write on that would tell of something that is not so.
			if pod.Annotations[stamp] != "" {
				t.Errorf("the mirror is stamped %s", pod.Annotations[stamp])
			}
			sees(t, pod, "")
		}
	})
}

// started are the Pods of a selector once as many as count have started.
func started(t *testing.T, namespace, selector string, count int) (pods []corev1.Pod) {
	t.Helper()
	story.Eventually(t, patience, 200*time.Millisecond, func(ctx context.Context) error {
		list, err := shared.clients.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		pods = nil
		for _, pod := range list.Items {
			if pod.Status.Phase == corev1.PodRunning || pod.Status.Phase == corev1.PodSucceeded {
				pods = append(pods, pod)
			}
		}
		if len(pods) != count {
			return fmt.Errorf("%d Pods of %s have started, want %d", len(pods), selector, count)
		}
		return nil
	})
	return pods
}

// sees wants the process of a Pod to have seen this traceparent.
func sees(t *testing.T, pod corev1.Pod, traceparent string) {
	t.Helper()
	if got := environment(t, pod.Namespace, pod.Name, "workload"); got.Traceparent != traceparent {
		t.Errorf("the process in %s sees %q, want %q", pod.Name, got.Traceparent, traceparent)
	}
}

// environment is what a workload says that its environment holds.
func environment(t *testing.T, namespace, pod, container string) (seen struct{ Traceparent, Tracestate string }) {
	t.Helper()
	story.Eventually(t, patience, 200*time.Millisecond, func(context.Context) error {
		log := kubectl(t, "-n", namespace, "logs", pod, "-c", container)
		line, _, _ := strings.Cut(log, "\n")
		if err := json.Unmarshal([]byte(line), &seen); err != nil {
			return fmt.Errorf("read what the workload says, %q: %w", log, err)
		}
		return nil
	})
	return seen
}
