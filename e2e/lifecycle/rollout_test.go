package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What controllers write into the status of their objects is what ends a roll-out, so real ones write it here. The Deployment is in
// TestADeploymentIsToldFromTheCommandToReadyPods.
func TestRollOutsAndJobsAreToldByWhatTheirControllersSay(t *testing.T) {
	k := kubelet{t}
	k.node("n6")
	to := newSink(t, "")
	start(t, "rollouts", to, "--leader-elect-resource-name=tracehook-lifecycle")
	runPods(t, "n6", map[string]corev1.PodPhase{"set": corev1.PodRunning, "daemon": corev1.PodRunning, "good": corev1.PodSucceeded, "bad": corev1.PodFailed})

	traceID := func(i int) string { return fmt.Sprintf("%032x", 0x70110000+i) }
	meta := func(name string, i int) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{"tracehook.dev/traceparent": "00-" + traceID(i) + "-0000000000000007-01"}}
	}
	template := func(name string, restart corev1.RestartPolicy) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"rolls": name}}, Spec: corev1.PodSpec{
			RestartPolicy: restart, Containers: []corev1.Container{{Name: "app", Image: "app:1"}},
			TerminationGracePeriodSeconds: new(int64), // nobody has to end it first
		}}
	}
	selector := func(name string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"rolls": name}}
	}
	t.Cleanup(func() {
		mustKubectl(t, "delete", "statefulset/set", "daemonset/daemon", "job/good", "job/bad", "--ignore-not-found", "--wait=false")
	})
	two, none := int32(2), int32(0)
	apps, batch := shared.clients.AppsV1(), shared.clients.BatchV1()
	_, errSet := apps.StatefulSets("default").Create(t.Context(), &appsv1.StatefulSet{ObjectMeta: meta("set", 0), Spec: appsv1.StatefulSetSpec{
		Replicas: &two, Selector: selector("set"), Template: template("set", corev1.RestartPolicyAlways), PodManagementPolicy: appsv1.ParallelPodManagement,
	}}, metav1.CreateOptions{})
	_, errDaemon := apps.DaemonSets("default").Create(t.Context(), &appsv1.DaemonSet{ObjectMeta: meta("daemon", 1), Spec: appsv1.DaemonSetSpec{
		Selector: selector("daemon"), Template: template("daemon", corev1.RestartPolicyAlways),
	}}, metav1.CreateOptions{})
	_, errGood := batch.Jobs("default").Create(t.Context(), &batchv1.Job{ObjectMeta: meta("good", 2), Spec: batchv1.JobSpec{Template: template("good", corev1.RestartPolicyNever)}}, metav1.CreateOptions{})
	_, errBad := batch.Jobs("default").Create(t.Context(), &batchv1.Job{ObjectMeta: meta("bad", 3), Spec: batchv1.JobSpec{BackoffLimit: &none, Template: template("bad", corev1.RestartPolicyNever)}}, metav1.CreateOptions{})
	if err := errors.Join(errSet, errDaemon, errGood, errBad); err != nil {
		t.Fatal(err)
	}
	told := func(i int, name, kind, object, failure string) {
		t.Helper()
		eventually(t, func() error {
			for _, s := range to.of(traceID(i), "") {
				if s.Name != name {
					continue
				}
				if got := attribute(s, "k8s."+kind+".name"); got != object || attribute(s, "error.type") != failure || s.EndTimeUnixNano < s.StartTimeUnixNano {
					t.Fatalf("%s of %s fails with %q: %v", s.Name, got, attribute(s, "error.type"), s)
				}
				return nil
			}
			return fmt.Errorf("no %q of %s; told of its trace\n%s", name, object, lines(to.of(traceID(i), "")))
		})
	}
	told(0, "roll out", "statefulset", "set", "")
	told(1, "roll out", "daemonset", "daemon", "")
	told(2, "run Job", "job", "good", "")
	told(3, "run Job", "job", "bad", "BackoffLimitExceeded")

	// A change is a roll-out of its own, in the trace of the change.
	patch := func(i int) []byte {
		return fmt.Appendf(nil, `{"metadata": {"annotations": {"tracehook.dev/traceparent": "00-%s-0000000000000008-01"}}, "spec": {"template": {"spec": {"containers": [{"name": "app", "image": "app:2"}]}}}}`, traceID(i))
	}
	_, errSet = apps.StatefulSets("default").Patch(t.Context(), "set", types.StrategicMergePatchType, patch(4), metav1.PatchOptions{})
	_, errDaemon = apps.DaemonSets("default").Patch(t.Context(), "daemon", types.StrategicMergePatchType, patch(5), metav1.PatchOptions{})
	if err := errors.Join(errSet, errDaemon); err != nil {
		t.Fatal(err)
	}
	told(4, "roll out", "statefulset", "set", "")
	told(5, "roll out", "daemonset", "daemon", "")
}

// runPods does what kubelets do for Pods with the label rolls, until the test ends: they get to the phase that is given for its value.
// The node stays ready as long.
func runPods(t *testing.T, node string, phases map[string]corev1.PodPhase) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for beat := 0; ctx.Err() == nil; beat++ {
			if beat%50 == 49 { // it is given up after 50 s
				alive := fmt.Appendf(nil, `{"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": %q}]}}`, time.Now().UTC().Format(time.RFC3339))
				if _, err := shared.clients.CoreV1().Nodes().PatchStatus(ctx, node, alive); err != nil && ctx.Err() == nil {
					t.Errorf("act as kubelet: %v", err)
				}
			}
			if err := runPodsOnce(ctx, phases); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				t.Errorf("act as kubelet: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() { stop(); <-stopped })
}

func runPodsOnce(ctx context.Context, phases map[string]corev1.PodPhase) error {
	list, err := shared.clients.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "rolls"})
	if err != nil {
		return err
	}
	for i := range list.Items {
		p := &list.Items[i]
		switch phase := phases[p.Labels["rolls"]]; {
		case p.DeletionTimestamp != nil:
			kubelet{}.remove(p)
		case p.Spec.NodeName == "" || p.Status.Phase == phase:
		default:
			status := running(p)
			if status.Phase = phase; phase != corev1.PodRunning {
				code := map[corev1.PodPhase]int32{corev1.PodFailed: 3}[phase]
				status.Conditions[2] = corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: at(p, 7)}
				status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, StartedAt: at(p, 2), FinishedAt: at(p, 3)}}
			}
			if err := writeStatus(ctx, p, status); err != nil {
				return err
			}
		}
	}
	return nil
}

// A Service is told of until its first endpoint is ready: by the slices that the real controller writes.
func TestAServiceIsToldUntilItHasAReadyEndpoint(t *testing.T) {
	k := kubelet{t}
	k.node("n7") // an endpoint has one
	to := newSink(t, "")
	start(t, "service", to, "--leader-elect-resource-name=tracehook-lifecycle")
	traceID := fmt.Sprintf("%032x", 0x5e41ce)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "front", Namespace: "default", Annotations: map[string]string{"tracehook.dev/traceparent": "00-" + traceID + "-0000000000000007-01"}},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"serves": "front"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	service, err := shared.clients.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", "service/front", "--wait=false") })
	p := newPod("front-1", "n7", fmt.Sprintf("%032x", 0x5e41cf))
	p.Labels = map[string]string{"serves": "front"}
	if p, err = shared.clients.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.remove(p) })
	status := running(p)
	status.PodIP, status.PodIPs = "10.9.8.7", []corev1.PodIP{{IP: "10.9.8.7"}}
	k.status(p, status)
	eventually(t, func() error {
		for _, s := range to.of(traceID, "") {
			if s.Name != "get endpoint" {
				continue
			}
			if attribute(s, "k8s.service.name") != "front" || attribute(s, "k8s.service.uid") != string(service.UID) || s.parent != "0000000000000007" || attribute(s, "tracehook.time.resolution") != "1" {
				t.Fatalf("the span is %v", s)
			}
			if end := int64(s.EndTimeUnixNano); end != at(p, 7).UnixNano() {
				t.Fatalf("it ends at %s, want when the Pod became ready, %s", time.Unix(0, end), at(p, 7))
			}
			return nil
		}
		return fmt.Errorf("told of its trace\n%s", lines(to.of(traceID, "")))
	})
}
