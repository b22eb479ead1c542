package deploy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/load"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// node is a node whose pods are processes: it runs a tracehook for each of our pods that the real scheduler
// gives it, says "ready" when that is, and stops it when the real controllers want the pod gone.
type node struct {
	*testing.T
	balancer *cluster.Balancer // what kube-proxy would be

	mu      sync.Mutex
	pods    map[string]*cluster.Webhook // by name; nil: starting or stopping
	drained map[string]int              // by name: calls that a pod had answered when it was told to stop
	crashed bool
}

const nodeName = "processes"

// startNode adds the node until the test is over.
func startNode(t *testing.T, balancer *cluster.Balancer) *node {
	t.Helper()
	n := &node{T: t, balancer: balancer, pods: map[string]*cluster.Webhook{}, drained: map[string]int{}}
	plenty := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100"), corev1.ResourceMemory: resource.MustParse("100Gi"), corev1.ResourcePods: resource.MustParse("100")}
	if _, err := shared.clients.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{corev1.LabelOSStable: "linux"}},
		Status: corev1.NodeStatus{Capacity: plenty, Allocatable: plenty, Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}, // good for 50s
		}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background()) // not the test's: pods have to go, too
	var loop sync.WaitGroup
	loop.Go(func() {
		for ctx.Err() == nil {
			if err := n.look(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("node: %v", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	t.Cleanup(func() {
		defer loop.Wait()
		defer cancel()
		// Whatever else is deleted at the end of the test still goes through this node.
		mustKubectl(t, "-n", namespace, "delete", "deployment/tracehook")
		eventuallyAtTheEnd(t, n.empty)
		mustKubectl(t, "delete", "node", nodeName)
	})
	return n
}

func (n *node) look(ctx context.Context) error {
	pods, err := shared.clients.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName, LabelSelector: "app.kubernetes.io/name=tracehook"})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, pod := range pods.Items {
		process, known := n.pods[pod.Name]
		switch {
		case !known:
			n.pods[pod.Name] = nil
			go n.start(pod)
		case pod.DeletionTimestamp != nil && process != nil:
			n.pods[pod.Name] = nil
			go n.stop(pod, process)
		}
	}
	return nil
}

func (n *node) start(pod corev1.Pod) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	process, err := shared.StartWebhook(ctx, cluster.WebhookOptions{Name: pod.Name, CertDir: shared.certDir, Args: []string{"--stamp=always", "--shutdown-delay=1s"}})
	if err != nil {
		n.Errorf("node: start %s: %v", pod.Name, err)
		return
	}
	n.mu.Lock()
	n.pods[pod.Name] = process
	n.lead(ctx)
	n.mu.Unlock()
	pod.Status.Phase, pod.Status.StartTime = corev1.PodRunning, new(metav1.Now())
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
	for {
		_, err := shared.clients.CoreV1().Pods(namespace).UpdateStatus(ctx, &pod, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			var newer *corev1.Pod
			if newer, err = shared.clients.CoreV1().Pods(namespace).Get(ctx, pod.Name, metav1.GetOptions{}); err == nil {
				pod.ResourceVersion = newer.ResourceVersion
				continue
			}
		}
		switch {
		case apierrors.IsNotFound(err): // an earlier test's, which was bound while it was being deleted
			_, _ = process.Stop()
			n.mu.Lock()
			delete(n.pods, pod.Name)
			n.lead(ctx)
			n.mu.Unlock()
		case err != nil:
			n.Errorf("node: report %s: %v", pod.Name, err)
		}
		return
	}
}

func (n *node) stop(pod corev1.Pod, process *cluster.Webhook) {
	n.mu.Lock()
	crashed := n.crashed
	n.mu.Unlock()
	answered := 0
	if !crashed {
		answered = n.answered(process)
	}
	if code, err := process.Stop(); (code != 0 || err != nil) && !crashed {
		n.Errorf("node: pod %s ended with code %d: %v", pod.Name, code, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := shared.clients.CoreV1().Pods(namespace).Delete(ctx, pod.Name, *metav1.NewDeleteOptions(0)); err != nil && !apierrors.IsNotFound(err) {
		n.Errorf("node: remove %s: %v", pod.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pods, pod.Name)
	n.drained[pod.Name] = answered
	n.lead(ctx)
}

// answered is how many calls a process says that it has answered.
func (n *node) answered(process *cluster.Webhook) (calls int) {
	resp, err := http.Get(process.MetricsURL)
	if err != nil {
		n.Errorf("node: %v", err)
		return 0
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		n.Errorf("node: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "tracehook_admission_duration_seconds_count{") {
			var count int
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' '):], &count); err != nil {
				n.Errorf("node: %s: %v", line, err)
			}
			calls += count
		}
	}
	return calls
}

// crash ends all processes with kill -9; their pods do not notice.
func (n *node) crash() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.crashed = true
	for name, process := range n.pods {
		if process == nil {
			n.Errorf("node: pod %s is not running", name)
		} else if err := process.Kill(); err != nil {
			n.Errorf("node: %v", err)
		}
	}
}

// lead tells the balancer who is there; who of them is ready it asks for itself.
func (n *node) lead(ctx context.Context) {
	var running []*cluster.Webhook
	for _, process := range n.pods {
		if process != nil {
			running = append(running, process)
		}
	}
	n.balancer.Lead(ctx, running...)
}

func (n *node) running() (pods []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, process := range n.pods {
		if process != nil {
			pods = append(pods, name)
		}
	}
	return pods
}

func (n *node) gone(pod string) (answered int, yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	answered, yes = n.drained[pod]
	return answered, yes
}

func (n *node) empty() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.pods) > 0 {
		return fmt.Errorf("%d pods are left", len(n.pods))
	}
	return nil
}

func eventuallyAtTheEnd(t *testing.T, ask func() error) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// The shipped Deployment, rolled over by the real deployment controller, with a real process for each pod: of all that is
// created meanwhile nothing is refused and nothing goes unstamped.
func TestTheDeploymentRollsOverWithoutAFailedOrAnUnstampedCreate(t *testing.T) {
	install(t, kustomization(t, "base", "certs-files"))
	balancer, err := cluster.StartBalancer(cluster.BalancerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(balancer.Close)
	n := startNode(t, balancer)
	ctx := story.Within(t, 2*time.Minute)
	available := func(ctx context.Context) error {
		d, err := shared.clients.AppsV1().Deployments(namespace).Get(ctx, "tracehook", metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := d.Status
		if s.ObservedGeneration != d.Generation || s.UpdatedReplicas != 2 || s.AvailableReplicas != 2 || s.Replicas != 2 || balancer.Ready() != 2 {
			return fmt.Errorf("of 2 replicas %d are new, %d available, %d in all, %d called", s.UpdatedReplicas, s.AvailableReplicas, s.Replicas, balancer.Ready())
		}
		return nil
	}
	eventually(t, time.Minute, available)
	old := n.running()

	lead(t, balancer.Port) // the Deployment stays: overlays/local only does not have it
	through := map[string]*rest.Config{"kube-apiserver": shared.RESTConfig}
	running, err := load.Start(ctx, load.Options{Through: through, Every: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := running.Await(ctx, 100); err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "-n", namespace, "rollout", "restart", "deployment/tracehook")
	eventually(t, time.Minute, func(ctx context.Context) error {
		// A Deployment has rolled over when its old pods are told to go; their processes serve on for a moment.
		for _, name := range old {
			if _, gone := n.gone(name); !gone {
				return fmt.Errorf("pod %s of %q is still there", name, old)
			}
		}
		return available(ctx)
	})
	if err := running.Await(ctx, 100); err != nil {
		t.Fatal(err)
	}
	result := running.Stop()
	t.Log(result)
	if result.Failures > 0 || result.Requests < 200 {
		t.Errorf("want no failure of hundreds: %s", result)
	}
	for _, name := range old {
		if answered, _ := n.gone(name); answered == 0 {
			t.Errorf("of the old pods %q, %s had answered no call: its end shows nothing", old, name)
		}
	}

	// The same load notices when processes go without a word.
	if running, err = load.Start(ctx, load.Options{Through: through, Every: 20 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if err := running.Await(ctx, 20); err != nil {
		t.Fatal(err)
	}
	n.crash()
	if err := running.Await(ctx, 20); err != nil {
		t.Fatal(err)
	}
	if result := running.Stop(); result.Failures == 0 {
		t.Errorf("nobody noticed that both processes were killed: %s", result)
	}
}
