package show

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/cmd/tracehook/explain"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// A kubelet's trace is one of its own. `trace --follow` finds it by the Pod's UID, and draws it below the Pod. The Pod becomes ready
// when the trace has arrived: here a test writes and sends what a kubelet does.
func TestFollowDrawsWhatTheNodeDidBelowThePod(t *testing.T) {
	deleted(t, "deployment/told")
	clients, err := kubernetes.NewForConfig(shared.RESTConfig)
	if err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(t.TempDir(), "trace.html")
	cmd := command(t, "trace", "--follow", "-o", "html="+page, "--", shared.kubectl, "create", "deployment", "told", "--image=app:1")
	var stderr output
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // no more than where it has ended

	var pod corev1.Pod
	story.Eventually(t, time.Minute, 100*time.Millisecond, func(ctx context.Context) error {
		list, err := clients.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=told"})
		if err != nil || len(list.Items) != 1 {
			return fmt.Errorf("%d Pods: %w", len(list.Items), err)
		}
		pod = list.Items[0]
		return nil
	})
	story.SendAsKubelet(t, shared.Cluster, string(pod.UID), pod.Name, pod.Namespace)
	jaeger := &tracestore.Client{BaseURL: shared.JaegerURL}
	var node string // the trace's id
	story.Eventually(t, time.Minute, 100*time.Millisecond, func(ctx context.Context) error {
		traces, err := explain.PodTraces(ctx, jaeger, string(pod.UID), pod.CreationTimestamp.Time, time.Time{})
		if err != nil || len(traces) != 1 || len(traces[0].Spans) != 2 {
			return fmt.Errorf("the store has %v: %w", traces, err)
		}
		node = traces[0].ID
		return nil
	})
	story.Eventually(t, time.Minute, 100*time.Millisecond, func(ctx context.Context) error {
		now, err := clients.CoreV1().Pods("default").Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		now.Status.Phase = corev1.PodRunning
		now.Status.Conditions = append(now.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
		_, err = clients.CoreV1().Pods("default").UpdateStatus(ctx, now, metav1.UpdateOptions{})
		return err
	})
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	wantLine(t, stderr.String(), `^  ✓ Pod `+pod.Name+`  ready after \d+s\n    ✓ kubelet syncPod  22 ms  slowest: PullImage in containerd 20 ms  trace `+node[:8]+`…$`)

	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`>syncPod</span>`, `>PullImage</span>`, `pods/` + pod.Name + ` in default, trace ` + node, `<dt>kubelet syncPod</dt>`} {
		if !strings.Contains(string(text), part) {
			t.Errorf("the page does not have %s", part)
		}
	}
}
