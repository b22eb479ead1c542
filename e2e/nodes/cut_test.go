//go:build linux

package nodes

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// longestCreate is what a create may take when packets to a replica vanish.
const longestCreate = 2 * time.Second

// The node's link is cut, and both sides keep their state: nobody is told that connections are dead.
func TestANodeThatVanishesHoldsNoCreateUpForLongAndIsGotOver(t *testing.T) {
	collectorOnHost(t)
	t.Cleanup(func() { uninstall(t) })
	kubectl(t, "apply", "-f", filepath.Join(shared.root, "deploy", "install.yaml"))
	rolledOut(t, "tracehook", "tracehook-authority")
	proven(t)
	// Not node1: the host's way to Services is through it.
	node := shared.nodes[1]
	if on := nodesOf(t, "app.kubernetes.io/name=tracehook"); len(on) != 2 || on[0] == on[1] {
		t.Fatalf("the replicas are on %v, so that a cut would show nothing", on)
	}
	loads := startLoads(t)
	if err := loads[admissionv1.Ignore].Await(t.Context(), 200); err != nil {
		t.Fatal(err)
	}
	before, begin := loads.sofar(), time.Now()
	if err := node.Cut(); err != nil {
		t.Fatal(err)
	}
	mended := false
	mend := func() {
		if !mended {
			mended = true
			if err := node.Mend(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(mend)

	// By itself: the node controller hears nothing for its grace period, and kube-proxy sends nobody there any more.
	ready := func(wanted bool) func(context.Context) error {
		return func(ctx context.Context) error {
			found, err := shared.clients.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, condition := range found.Status.Conditions {
				if condition.Type == corev1.NodeReady && (condition.Status == corev1.ConditionTrue) != wanted {
					return fmt.Errorf("%s is Ready: %s", node.Name, condition.Status)
				}
			}
			return nil
		}
	}
	story.Eventually(t, patience, 200*time.Millisecond, ready(false))
	t.Logf("the node is not Ready %.0fs after the cut", time.Since(begin).Seconds())
	time.Sleep(longestCreate) // what is under way
	for policy, now := range loads.sofar() {
		failed := now.Failures - before[policy].Failures
		t.Logf("%s: %d of %d creates failed or came back unstamped, the slowest took %.2fs", policy, failed, now.Requests-before[policy].Requests, now.Slowest.Seconds())
		if now.Slowest > longestCreate {
			t.Errorf("%s: a create took %s, want %s at most", policy, now.Slowest, longestCreate)
		}
	}
	t.Run("got over", func(t *testing.T) {
		before, begin := loads.sofar(), time.Now()
		if err := loads[admissionv1.Ignore].Await(t.Context(), 300); err != nil {
			t.Fatal(err)
		}
		loads.none(t, before, begin)
	})
	t.Run("mended", func(t *testing.T) {
		mend()
		story.Eventually(t, patience, 200*time.Millisecond, ready(true))
		rolledOut(t, "tracehook", "tracehook-authority")
		before, begin := loads.sofar(), time.Now()
		if err := loads[admissionv1.Ignore].Await(t.Context(), 300); err != nil {
			t.Fatal(err)
		}
		loads.none(t, before, begin)
	})
}
