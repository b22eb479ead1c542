package follow

// What is said of an object. In: objects as the API server has them. Out: lines. Pure.

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/cmd/tracehook/explain"
	"github.com/tracehook/tracehook/webhook/cause"
	"github.com/tracehook/tracehook/webhook/cause/lifecycle"
)

// State is how far an object is.
type State string

const (
	Waiting State = "waiting"
	Ready   State = "ready"
	Failed  State = "failed"
	// Gone is what somebody has deleted before it was seen to be ready.
	Gone State = "gone"
)

// Line is what there is to say of one object now. Its texts are others', and may hold anything.
type Line struct {
	Namespace string
	Object    string // "Pod web-7d9c4-x2k"
	Depth     int    // 0 for a root
	State     State
	Text      string      // "pulling image", "2 of 3 ready"
	Since     time.Time   // since when; zero where it is not known, and for what is over
	Reason    string      // why it does not go on, in the cluster's words; "" for none
	Pod       explain.Pod // of a Pod, what its node is asked for with
}

func deploymentLine(d *appsv1.Deployment) Line {
	wanted := replicas(d.Spec.Replicas)
	return rollOutLine(Line{Namespace: d.Namespace, Object: "Deployment " + d.Name}, lifecycle.Deployment(d, time.Time{}), counted(d.Status.ReadyReplicas, wanted))
}

func statefulSetLine(d *appsv1.StatefulSet) Line {
	return rollOutLine(Line{Namespace: d.Namespace, Object: "StatefulSet " + d.Name}, lifecycle.StatefulSet(d, time.Time{}), counted(d.Status.ReadyReplicas, replicas(d.Spec.Replicas)))
}

func daemonSetLine(d *appsv1.DaemonSet) Line {
	return rollOutLine(Line{Namespace: d.Namespace, Object: "DaemonSet " + d.Name}, lifecycle.DaemonSet(d, time.Time{}), counted(d.Status.NumberReady, d.Status.DesiredNumberScheduled))
}

func jobLine(j *batchv1.Job) Line {
	completions := int32(1)
	if j.Spec.Completions != nil {
		completions = *j.Spec.Completions
	}
	if j.Spec.Suspend != nil && *j.Spec.Suspend {
		return Line{Namespace: j.Namespace, Object: "Job " + j.Name, State: Ready, Text: "suspended"}
	}
	return rollOutLine(Line{Namespace: j.Namespace, Object: "Job " + j.Name}, lifecycle.Job(j, time.Time{}), fmt.Sprintf("%d of %d complete", j.Status.Succeeded, completions))
}

func counted(ready, wanted int32) string { return fmt.Sprintf("%d of %d ready", ready, wanted) }

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// rollOutLine reads the one stage of a roll-out; without one (the strategy OnDelete) nothing is
// rolled out that could be waited for.
func rollOutLine(line Line, stages []lifecycle.Stage, text string) Line {
	line.State, line.Text = Waiting, text
	switch {
	case len(stages) == 0:
		line.State = Ready
	case stages[0].Failed():
		line.State, line.Reason = Failed, reasonOf(stages[0].Failure)
	case stages[0].Ended():
		line.State = Ready
	}
	return line
}

// doing are a Pod's stages as what goes on while they last.
var doing = map[lifecycle.Name]string{
	lifecycle.Schedule: "waiting for a node", lifecycle.PrepareSandbox: "preparing its sandbox", lifecycle.MountVolumes: "mounting volumes",
	lifecycle.PullImage: "pulling image", lifecycle.StartInitContainer: "starting init container", lifecycle.RunInitContainer: "running init container",
	lifecycle.StartContainer: "starting container", lifecycle.RestartContainer: "restarting container", lifecycle.BecomeReady: "becoming ready",
	lifecycle.BackOff: "waiting to try again", lifecycle.Probe: "becoming ready", lifecycle.DeletePod: "being deleted", lifecycle.EvictPod: "being evicted", lifecycle.PreemptPod: "being preempted",
}

func podLine(pod *corev1.Pod, events []*corev1.Event) Line {
	line := Line{Namespace: pod.Namespace, Object: "Pod " + pod.Name, State: Waiting}
	line.Pod = explain.Pod{UID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name, Created: pod.CreationTimestamp.Time}
	line.Pod.Cause, _ = cause.Of(pod) // none: it carries none that can be read
	if pod.Status.Phase == corev1.PodSucceeded {
		line.State, line.Text = Ready, "completed"
		return line
	}
	stages := lifecycle.Pod(pod, events...)
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && pod.Status.Phase != corev1.PodFailed {
			line.State, line.Text = Ready, "ready after "+seconds(c.LastTransitionTime.Sub(pod.CreationTimestamp.Time))
			return line
		}
	}
	// The latest that goes on says where it is, the latest failure why it does not go on.
	line.Text, line.Since = "starting", pod.CreationTimestamp.Time
	for _, s := range stages {
		if text := doing[s.Name]; text != "" && !s.Ended() && !s.Start.Before(line.Since) {
			line.Text, line.Since = text, s.Start
			if s.Container != "" {
				line.Text += " of " + s.Container
			}
		}
		if s.Failed() {
			line.Reason = reasonOf(s.Failure)
		}
	}
	if reason := waitingFor(pod); reason != "" {
		line.Reason = reason
	}
	if pod.Status.Phase == corev1.PodFailed {
		line.State, line.Text, line.Since = Failed, "failed", time.Time{}
		line.Reason = cmp.Or(line.Reason, pod.Status.Reason, pod.Status.Message)
	}
	return line
}

// waitingFor is what a kubelet says of a container that it cannot run: it is newer than Events.
func waitingFor(pod *corev1.Pod) string {
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := c.State.Waiting; w != nil && w.Reason != "" && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			if w.Message == "" {
				return w.Reason
			}
			return w.Reason + ": " + w.Message
		}
	}
	return ""
}

func reasonOf(f lifecycle.Failure) string {
	reason := f.Reason
	if f.ExitCode != 0 {
		reason += " (exit code " + strconv.Itoa(int(f.ExitCode)) + ")"
	}
	if f.Message != "" {
		reason += ": " + f.Message
	}
	return reason
}

// seconds is a duration as a person says it.
func seconds(d time.Duration) string { return max(d, 0).Round(time.Second).String() }

// WithNodes puts what nodes did below the lines of their Pods.
func WithNodes(lines []Line, found []explain.OnNode) []Line {
	var all []Line
	for _, l := range lines {
		all = append(all, l)
		for _, o := range found {
			if l.Pod.UID == "" || o.Pod.UID != l.Pod.UID {
				continue
			}
			for _, w := range o.Work {
				below := Line{Namespace: l.Namespace, Object: w.Service + " " + w.Name, Depth: l.Depth + 1, State: Ready, Text: w.Sentence()}
				if w.Failed {
					below.State = Failed
				}
				all = append(all, below)
			}
		}
	}
	return all
}

// newest is the UID of the ReplicaSet that a Deployment rolls out, of those that it owns.
func newest(d *appsv1.Deployment, sets []appsv1.ReplicaSet) (uid string) {
	most := int64(-1)
	for _, set := range sets {
		revision, _ := strconv.ParseInt(set.Annotations["deployment.kubernetes.io/revision"], 10, 64)
		if metav1.IsControlledBy(&set, d) && revision > most {
			most, uid = revision, string(set.UID)
		}
	}
	return uid
}
