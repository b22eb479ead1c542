//go:build linux

package nodes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/e2e/internal/flood"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// The attacker has what a Pod of a tenant may have: at most half a processor, and where processors are short as much as
// a replica asks for.
const attacker = `
apiVersion: v1
kind: Pod
metadata: {name: attacker, labels: {tracehook.dev/exclude: "true"}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: flood
    image: IMAGE
    args: ["WEBHOOK", "PROBES", "2s"]
    resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {cpu: 500m, memory: 2Gi}}
`

// The memory limit is the shipped one, and the kernel enforces it. What a process beside the API server withstands, in
// e2e/hostile, Pods behind a Service withstand too, and the API server gets its answers.
func TestAPodThatFloodsTheServiceEndsNoReplicaAndHoldsNobodyUp(t *testing.T) {
	install(t, "overlays/split")
	rolledOut(t, "tracehook")
	ctx := story.Within(t, 2*patience)
	service, err := shared.clients.CoreV1().Services(namespace).Get(ctx, "tracehook", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	replicas := pods(t, "app.kubernetes.io/name=tracehook")
	webhook := service.Spec.ClusterIP + ":443"
	body, err := os.ReadFile("../../webhook/testdata/bench/pod.json")
	if err != nil {
		t.Fatal(err)
	}
	well := flood.WellBehaved{Address: webhook, Review: body, PerSecond: 50}
	stop := well.Start(ctx)
	time.Sleep(5 * time.Second) // a measurement, of so long
	before := stop()
	limit := unlessBusy(t, 5*time.Second) // by others than the attacker

	t.Cleanup(func() { kubectl(t, "delete", "pod/attacker", "--grace-period=1") })
	apply(t, strings.NewReplacer("IMAGE", floodImage, "WEBHOOK", webhook, "PROBES", replicas[0].Status.PodIP+":8081").Replace(attacker))
	kubectl(t, "wait", "pod/attacker", "--for=jsonpath={.status.phase}=Running", "--timeout=150s")
	stop = well.Start(ctx)
	story.Eventually(t, patience, 500*time.Millisecond, func(ctx context.Context) error {
		pod, err := shared.clients.CoreV1().Pods(metav1.NamespaceDefault).Get(ctx, "attacker", metav1.GetOptions{})
		if err == nil && pod.Status.Phase == corev1.PodRunning {
			err = errors.New("the attacker has not ended")
		}
		return err
	})
	beside := stop()

	met := kubectl(t, "logs", "attacker")
	if !strings.HasSuffix(met, "\ndone\n") {
		t.Errorf("the attacker did not get to its end; it may have been ended for its own memory:\n%s", met)
	}
	t.Logf("the attacks, by a Pod with half a processor:\n%s\nothers before: %s\nothers beside: %s", met, before, beside)
	if beside.Failed > 0 || beside.Patched != beside.Calls {
		t.Errorf("of %d calls beside the attacks %d failed, and %d were stamped: %s", beside.Calls, beside.Failed, beside.Patched, beside.Error)
	}
	// The figures above are what the machine made of it, with all else that it does. Whoever waits for what an attacker
	// holds waits as long as the attacker likes, and the API server for no longer than this, as shipped.
	if beside.P99 > limit {
		t.Errorf("beside the attacks 1 %% of the calls take longer than %s, want %s at most", beside.P99, limit)
	}
	now := pods(t, "app.kubernetes.io/name=tracehook")
	if len(now) != len(replicas) {
		t.Errorf("there were %d replicas, and there are %d", len(replicas), len(now))
	}
	for _, pod := range now {
		for _, status := range pod.Status.ContainerStatuses {
			if status.RestartCount > 0 {
				t.Errorf("%s was restarted %d times, at last after %+v", pod.Name, status.RestartCount, status.LastTerminationState.Terminated)
			}
		}
		t.Logf("%s has used at most %s of its %s", pod.Name, mostMemory(pod), pod.Spec.Containers[0].Resources.Limits.Memory())
	}
}

// mostMemory is the most that a Pod's tracehook has used, as the kernel counts against the limit.
func mostMemory(pod corev1.Pod) string {
	for _, pattern := range []string{
		"/sys/fs/cgroup/memory/" + filepath.Base(shared.dir) + "/*/kubepods/*/pod*/*/memory.max_usage_in_bytes",
		"/sys/fs/cgroup/" + filepath.Base(shared.dir) + "/*/kubepods/*/pod*/*/memory.peak",
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err.Error()
		}
		most := 0
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil && strings.Contains(file, string(pod.UID)) {
				n, _ := strconv.Atoi(string(bytes.TrimSpace(text)))
				most = max(most, n)
			}
		}
		if most > 0 {
			return fmt.Sprintf("%d MiB", most>>20)
		}
	}
	return "nobody knows how much"
}
