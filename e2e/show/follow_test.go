package show

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

const nodeName = "worker"

// startKubelet adds a node on which, as far as the API server can see, Pods with the image app:1 become
// ready, or succeed, and others cannot pull theirs.
func startKubelet(t *testing.T) {
	t.Helper()
	clients, err := kubernetes.NewForConfig(shared.RESTConfig)
	if err != nil {
		t.Fatal(err)
	}
	plenty := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100"), corev1.ResourceMemory: resource.MustParse("100Gi"), corev1.ResourcePods: resource.MustParse("100")}
	if _, err := clients.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Status: corev1.NodeStatus{Capacity: plenty, Allocatable: plenty},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background()) // cleaning up needs a node, too
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for beat := 0; ctx.Err() == nil; beat++ {
			if err := actAsKubelet(ctx, clients, beat%100 == 0); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				t.Errorf("kubelet: %v", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-stopped
		story.Kubectl(t, shared.Cluster, "delete", "node", nodeName)
	})
}

func actAsKubelet(ctx context.Context, clients kubernetes.Interface, heartbeat bool) error {
	if heartbeat {
		node, err := clients.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
		if _, err := clients.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
			return err
		}
	}
	pods, err := clients.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		switch {
		case pod.DeletionTimestamp != nil:
			err = clients.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *metav1.NewDeleteOptions(0))
		case pod.Status.Phase != corev1.PodPending || len(pod.Status.ContainerStatuses) > 0:
			continue
		case pod.Spec.Containers[0].Image != "app:1":
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: pod.Spec.Containers[0].Name, State: corev1.ContainerState{
				Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such image\n\x1b[2Jin the registry"}}}}
			_, err = clients.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, &pod, metav1.UpdateOptions{})
		default:
			pod.Status.Phase = corev1.PodRunning
			ready := corev1.ConditionTrue
			if pod.Spec.RestartPolicy == corev1.RestartPolicyNever {
				pod.Status.Phase, ready = corev1.PodSucceeded, corev1.ConditionFalse
			}
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: pod.Spec.Containers[0].Name}}
			pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.Now()})
			_, err = clients.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, &pod, metav1.UpdateOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // seen again in a moment
			return err
		}
	}
	return nil
}

func deleted(t *testing.T, object string) {
	t.Cleanup(func() {
		story.Kubectl(t, shared.Cluster, "delete", object, "--ignore-not-found", "--cascade=background", "--wait=false")
	})
}

func wantLine(t *testing.T, text, pattern string) {
	t.Helper()
	if !regexp.MustCompile("(?m)" + pattern).MatchString(text) {
		t.Errorf("no line like %s in\n%s", pattern, text)
	}
}

func TestFollowGoesOnUntilWhatTheCommandWroteIsReady(t *testing.T) {
	startKubelet(t)
	for _, object := range []string{"deployment/web", "job/task", "pod/alone", "deployment/broken", "deployment/applied"} {
		deleted(t, object)
	}

	// On a terminal the lines are written over. kubectl create speaks protobuf.
	coloured := onTerminal(t, 120, 0, command(t, "trace", "--follow", "--", shared.kubectl, "create", "deployment", "web", "--image=app:1", "--replicas=2"))
	if !strings.Contains(coloured, "\x1b[J") {
		t.Errorf("nothing is written over:\n%s", coloured)
	}
	screen := regexp.MustCompile("\x1b\\[[0-9;]*[a-zA-Z]|\r").ReplaceAllString(coloured, "")
	wantLine(t, screen, `^✓ Deployment web  2 of 2 ready$`)
	wantLine(t, screen, `^  ✓ Pod web-[a-z0-9]+-[a-z0-9]+  ready after \d+s$`)
	lineWith(t, screen, "Create etcd3") // the tree comes after it
	t.Logf("\n%s", screen)

	// Elsewhere there is one line for each change.
	manifest := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(manifest, []byte(story.Kubectl(t, shared.Cluster, "create", "deployment", "applied", "--image=app:1", "--dry-run=client", "-o", "yaml")), 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr := run(t, 0, command(t, "trace", "--wait-ready", "--", shared.kubectl, "apply", "-f", manifest))
	wantLine(t, stderr, `^✓ Deployment applied  1 of 1 ready$`)
	if strings.Count(stderr, "✓ Deployment applied") != 1 || strings.Contains(stderr, "\x1b") {
		t.Errorf("it repeats itself, or steers a terminal:\n%s", stderr)
	}
	// A change of it, by its subresource.
	_, stderr = run(t, 0, command(t, "trace", "--wait-ready", "--", shared.kubectl, "scale", "deployment/applied", "--replicas=3"))
	wantLine(t, stderr, `^✓ Deployment applied  3 of 3 ready$`)

	_, stderr = run(t, 0, command(t, "trace", "--wait-ready", "--", shared.kubectl, "create", "job", "task", "--image=app:1"))
	wantLine(t, stderr, `^✓ Job task  1 of 1 complete$`)
	wantLine(t, stderr, `^  ✓ Pod task-[a-z0-9]+  completed$`)
	_, stderr = run(t, 0, command(t, "trace", "--wait-ready", "--", shared.kubectl, "run", "alone", "--image=app:1"))
	wantLine(t, stderr, `^✓ Pod alone  ready after \d+s$`)

	// What cannot become ready says why; the exit code is the command's, unless it is asked for.
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	yaml := strings.Replace(story.Kubectl(t, shared.Cluster, "create", "deployment", "broken", "--image=nowhere:1", "--dry-run=client", "-o", "yaml"), "spec:\n", "spec:\n  progressDeadlineSeconds: 3\n", 1)
	if err := os.WriteFile(broken, []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr = run(t, 1, command(t, "trace", "--wait-ready", "--", shared.kubectl, "apply", "-f", broken))
	wantLine(t, stderr, `^✗ Deployment broken  0 of 1 ready  ProgressDeadlineExceeded: `)
	wantLine(t, stderr, `^tracehook: Deployment broken \(ProgressDeadlineExceeded: .*\), because of Pod broken-\S+ \(ErrImagePull: no such image .+in the registry\): it has failed$`)
	if strings.Contains(stderr, "\x1b") {
		t.Errorf("a message steers the terminal: %q", stderr)
	}
	_, stderr = run(t, 0, command(t, "trace", "--follow", "--", shared.kubectl, "annotate", "deployment/broken", "a=b"))
	lineWith(t, stderr, "it has failed")

	// The time is over, or a signal comes.
	_, stderr = run(t, 1, command(t, "trace", "--wait-ready", "--follow-timeout=2s", "--", shared.kubectl, "run", "hopeless", "--image=nowhere:1"))
	deleted(t, "pod/hopeless")
	wantLine(t, stderr, `^tracehook: Pod hopeless \(ErrImagePull: .*\) is not ready: context deadline exceeded \(after 2s\)$`)
	cmd := command(t, "trace", "--follow", "--", shared.kubectl, "label", "pod/hopeless", "a=b")
	var seen output
	cmd.Stderr = &seen
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(seen.String(), "… Pod hopeless"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is not followed:\n%s", &seen)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v, want the command's 0\n%s", err, &seen)
	}
	lineWith(t, seen.String(), "tracehook: no longer followed: a signal came")
	printedID(t, seen.String())
}

func TestFollowEndsAtOnceWhereThereIsNothingToWaitFor(t *testing.T) {
	deleted(t, "configmap/only")
	_, stderr := run(t, 0, command(t, "trace", "--wait-ready", "--", shared.kubectl, "create", "configmap", "only"))
	if strings.Contains(stderr, "✓") || strings.Contains(stderr, "…") {
		t.Errorf("it follows something:\n%s", stderr)
	}
	// A command that fails has failed, whatever was written.
	run(t, 7, command(t, "trace", "--wait-ready", "--", "sh", "-c", shared.kubectl+" get configmap/only; exit 7"))
}
