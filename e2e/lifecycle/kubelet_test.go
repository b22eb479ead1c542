package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
)

// limit is for whatever is waited for. It is long: the machine may be busy.
const limit = 90 * time.Second

// kubelet writes what a kubelet writes. It has no clock of its own: seconds are counted from the Pod's creation.
type kubelet struct{ t *testing.T }

// node makes a node on which the scheduler puts Pods.
func (k kubelet) node(name string) {
	k.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := shared.clients.CoreV1().Nodes().Create(k.t.Context(), node, metav1.CreateOptions{}); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() {
		_ = shared.clients.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	capacity := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourcePods: resource.MustParse("1000")}
	status := corev1.NodeStatus{Capacity: capacity, Allocatable: capacity, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}}
	// A patch, and no update: controllers write it, too.
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := shared.clients.CoreV1().Nodes().PatchStatus(k.t.Context(), name, patch); err != nil {
		k.t.Fatal(err)
	}
}

// status writes a status.
func (k kubelet) status(p *corev1.Pod, status corev1.PodStatus) {
	k.t.Helper()
	if err := writeStatus(k.t.Context(), p, status); err != nil {
		k.t.Fatal(err)
	}
}

func writeStatus(ctx context.Context, p *corev1.Pod, status corev1.PodStatus) error {
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	_, err = shared.clients.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: "kubelet"}, "status")
	return err
}

func at(p *corev1.Pod, seconds int) metav1.Time {
	return metav1.NewTime(p.CreationTimestamp.Add(time.Duration(seconds) * time.Second))
}

func met(p *corev1.Pod, kind corev1.PodConditionType, seconds int) corev1.PodCondition {
	return corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: at(p, seconds)}
}

// prepared is the status of a Pod whose containers can start.
func prepared(p *corev1.Pod, containers ...corev1.ContainerStatus) corev1.PodStatus {
	start := at(p, 1)
	for i := range containers {
		containers[i].Image, containers[i].ImageID = "app:1", "app@sha256:0"
	}
	return corev1.PodStatus{
		Phase: corev1.PodPending, StartTime: &start, ContainerStatuses: containers,
		Conditions: []corev1.PodCondition{met(p, corev1.PodReadyToStartContainers, 2), met(p, corev1.PodInitialized, 1), {Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: at(p, 1)}},
	}
}

// running is the status of a Pod that is ready.
func running(p *corev1.Pod) corev1.PodStatus {
	s := prepared(p, corev1.ContainerStatus{Name: p.Spec.Containers[0].Name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(p, 6)}}})
	s.Phase = corev1.PodRunning
	s.Conditions[2] = met(p, corev1.PodReady, 7)
	return s
}

func waiting(name, reason string, restarts int32, last *corev1.ContainerStateTerminated) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, RestartCount: restarts,
		State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "because of " + reason}},
		LastTerminationState: corev1.ContainerState{Terminated: last}}
}

// event writes an Event about a container.
func (k kubelet) event(p *corev1.Pod, reason, message string, seconds int) {
	k.t.Helper()
	if err := writeEvent(k.t.Context(), p, reason, message, seconds); err != nil {
		k.t.Fatal(err)
	}
}

func writeEvent(ctx context.Context, p *corev1.Pod, reason, message string, seconds int) error {
	_, err := shared.clients.CoreV1().Events(p.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: p.Name + "." + rand.String(10)},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID, FieldPath: "spec.containers{" + p.Spec.Containers[0].Name + "}"},
		Reason:         reason, Message: message, Type: "Normal", Count: 1, FirstTimestamp: at(p, seconds), LastTimestamp: at(p, seconds), Source: corev1.EventSource{Component: "kubelet"},
	}, metav1.CreateOptions{})
	return err
}

// pod makes a Pod that says what caused it, and that no scheduler has to look at where a node is given.
func newPod(name, node, traceID string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{"tracehook.dev/traceparent": fmt.Sprintf("00-%s-%016x-01", traceID, 7)}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}
}

func (k kubelet) pod(name, node, traceID string) *corev1.Pod {
	k.t.Helper()
	p, err := shared.clients.CoreV1().Pods("default").Create(k.t.Context(), newPod(name, node, traceID), metav1.CreateOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { k.remove(p) })
	return p
}

// remove deletes a Pod as a kubelet does when its containers have ended.
func (k kubelet) remove(p *corev1.Pod) {
	now := int64(0)
	_ = shared.clients.CoreV1().Pods(p.Namespace).Delete(context.Background(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
}

// eventually asks until there is no complaint.
func eventually(t *testing.T, what func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = what(); err == nil {
			return
		}
	}
	t.Fatal(err)
}
