package lifecycle

// A Pod, with its Events, in; stages out. Pure.

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Pod returns what pod and its Events tell, in the order of their starts. A nil pod has no stages. Events of
// other objects are left out. Two Events that tell of one stage give one.
//
// A Pod that is deleted has a stage "delete Pod" without end: who sees it go knows the end.
func Pod(pod *corev1.Pod, events ...*corev1.Event) []Stage {
	if pod == nil {
		return nil
	}
	stages := podStages(pod)
	known := make(map[string]bool, len(stages))
	for _, s := range stages {
		known[s.Key()] = true
	}
	for _, e := range events {
		if e == nil || e.InvolvedObject.UID != pod.UID {
			continue
		}
		if s, ok := PodEvent(e); ok && !known[s.Key()] {
			known[s.Key()] = true
			stages = append(stages, s)
		}
	}
	stages = slices.DeleteFunc(stages, func(s Stage) bool {
		return s.Name == PullImage && !s.Ended() && slices.ContainsFunc(stages, func(o Stage) bool {
			return o.Container == s.Container && (o.Name == PullImage && o.Ended() && !o.End.Before(s.Start) ||
				o.Name == StartContainer || o.Name == StartInitContainer)
		})
	})
	slices.SortStableFunc(stages, func(a, b Stage) int { return a.Start.Compare(b.Start) })
	return stages
}

// reading is a Pod that is read.
type reading struct {
	pod                  *corev1.Pod
	created, scheduled   time.Time
	sandbox, initialized time.Time
	written              time.Time
	stages               []Stage
}

// add takes a stage whose times are those of the API, whole seconds.
func (r *reading) add(s Stage) {
	s.Resolution = time.Second
	s.Container = clip(s.Container, mostNameBytes)
	r.stages = append(r.stages, sane(s))
}

func podStages(pod *corev1.Pod) []Stage {
	r := &reading{
		pod: pod, created: instant(pod.CreationTimestamp), written: statusWritten(pod.ManagedFields),
		stages: make([]Stage, 0, 6+2*len(pod.Status.ContainerStatuses)+2*len(pod.Status.InitContainerStatuses)),
	}
	if r.written.Before(r.created) {
		r.written = r.created
	}
	r.add(Stage{Name: PodAnchor, Start: r.created, End: r.created})
	r.schedule()
	switch c := condition(pod.Status.Conditions, corev1.PodReadyToStartContainers); c.Status {
	case corev1.ConditionTrue:
		r.sandbox = instant(c.LastTransitionTime)
		r.add(Stage{Name: PrepareSandbox, Start: latest(r.sandbox, r.created, r.scheduled), End: r.sandbox})
	case corev1.ConditionFalse:
		if phase := pod.Status.Phase; phase == corev1.PodPending {
			r.add(Stage{Name: PrepareSandbox, Start: latest(time.Time{}, r.created, r.scheduled)})
		}
	}
	r.initialized = r.met(corev1.PodInitialized)

	before := latest(time.Time{}, r.created, r.scheduled, r.sandbox)
	for _, status := range pod.Status.InitContainerStatuses {
		before = r.container(status, true, before)
	}
	before = latest(time.Time{}, before, r.initialized)
	var started time.Time // of the last container
	all := len(pod.Status.ContainerStatuses) > 0
	for _, status := range pod.Status.ContainerStatuses {
		r.container(status, false, before)
		first := firstStart(status)
		all = all && !first.IsZero()
		started = latest(time.Time{}, started, first)
	}
	r.start(started, all)
	r.end()
	return r.stages
}

// met is when a condition became true; zero: it is not.
func (r *reading) met(kind corev1.PodConditionType) time.Time {
	if c := condition(r.pod.Status.Conditions, kind); c.Status == corev1.ConditionTrue {
		return instant(c.LastTransitionTime)
	}
	return time.Time{}
}

func (r *reading) schedule() {
	c := condition(r.pod.Status.Conditions, corev1.PodScheduled)
	switch {
	case c.Status == corev1.ConditionTrue:
		r.scheduled = instant(c.LastTransitionTime)
		r.add(Stage{Name: Schedule, Start: r.created, End: r.scheduled})
		return
	case r.pod.Spec.NodeName != "": // made for a node: a static Pod, or a test's
		return
	case c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable:
		r.add(Stage{Name: Schedule, Occurrence: c.Reason, Start: r.created, End: instant(c.LastTransitionTime), Failure: failure(c.Reason, c.Message)})
	}
	r.add(Stage{Name: Schedule, Start: r.created})
}

// container adds what one container did, and returns when the next init container can start.
func (r *reading) container(status corev1.ContainerStatus, init bool, before time.Time) time.Time {
	start, run := StartContainer, RunContainer
	if init {
		start, run = StartInitContainer, RunInitContainer
	}
	last, lastRun := status.LastTerminationState.Terminated, status.RestartCount-1
	if status.State.Running == nil && status.State.Terminated == nil {
		lastRun = status.RestartCount // it waits: no further run has begun
	}
	if last != nil {
		if lastRun <= 0 {
			r.add(Stage{Name: start, Container: status.Name, Start: latest(instant(last.StartedAt), before), End: instant(last.StartedAt)})
		}
		r.run(status, run, max(0, lastRun), last)
	}
	var began, over time.Time
	switch state := status.State; {
	case state.Running != nil:
		began = instant(state.Running.StartedAt)
	case state.Terminated != nil:
		began, over = instant(state.Terminated.StartedAt), instant(state.Terminated.FinishedAt)
	case state.Waiting != nil:
		r.waiting(status, start, before)
	}
	if !began.IsZero() {
		s := Stage{Name: start, Container: status.Name, Restart: status.RestartCount, Start: latest(began, before), End: began}
		if status.RestartCount > 0 {
			s.Name, s.Start, s.Unseen = RestartContainer, began, status.RestartCount
			if last != nil {
				s.Start, s.Unseen = latest(began, instant(last.FinishedAt)), status.RestartCount-1
			}
		}
		r.add(s)
	}
	if t := status.State.Terminated; t != nil {
		r.run(status, run, status.RestartCount, t)
	}
	if init && r.sidecar(status.Name) { // the others wait for its first start, and not for its end
		began, over = firstStart(status), time.Time{}
		if status.RestartCount > 0 {
			began = time.Time{} // which it may have forgotten
		}
	}
	return latest(time.Time{}, before, began, over)
}

// sidecar says whether an init container runs beside the others (KEP-753).
func (r *reading) sidecar(name string) bool {
	i := slices.IndexFunc(r.pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name })
	return i >= 0 && r.pod.Spec.InitContainers[i].RestartPolicy != nil && *r.pod.Spec.InitContainers[i].RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// outlived says whether all main containers were over at a time: the kubelet ends sidecars then.
func (r *reading) outlived(at time.Time) bool {
	for _, status := range r.pod.Status.ContainerStatuses {
		if t := status.State.Terminated; t == nil || instant(t.FinishedAt).After(at) {
			return false
		}
	}
	return true
}

// run adds a run that is over. What ends because its Pod is deleted did not fail, and its end is told by
// the deletion.
func (r *reading) run(status corev1.ContainerStatus, name Name, restart int32, t *corev1.ContainerStateTerminated) {
	failed := t.ExitCode != 0 || t.Signal != 0 || t.Reason != "" && t.Reason != "Completed"
	sidecar := name == RunInitContainer && r.sidecar(status.Name)
	if deleted := requested(r.pod); !deleted.IsZero() && !instant(t.FinishedAt).Before(deleted) && (name == RunContainer || sidecar) {
		return
	}
	if sidecar && r.outlived(instant(t.FinishedAt)) {
		failed = false
	}
	s := Stage{Name: name, Container: status.Name, Restart: restart, Start: instant(t.StartedAt), End: instant(t.FinishedAt)}
	if s.End.IsZero() {
		s.End = r.written // a container that could not be started
	}
	if failed {
		reason := t.Reason
		if reason == "" {
			reason = "Error"
		}
		s.Failure = failure(reason, t.Message)
		s.Failure.ExitCode, s.Failure.Signal = t.ExitCode, t.Signal
	}
	r.add(s)
}

// waiting adds why a container does not start.
func (r *reading) waiting(status corev1.ContainerStatus, start Name, before time.Time) {
	w := status.State.Waiting
	s := Stage{Name: start, Container: status.Name, Restart: status.RestartCount, Start: before}
	if status.RestartCount > 0 || status.LastTerminationState.Terminated != nil {
		s.Name = RestartContainer
		s.Restart++
		if last := status.LastTerminationState.Terminated; last != nil {
			s.Start = instant(last.FinishedAt)
		}
	}
	switch w.Reason {
	case "", "ContainerCreating", "PodInitializing":
	case "CrashLoopBackOff", "ImagePullBackOff":
		s.Failure = failure(w.Reason, w.Message)
		at := r.written
		if last := status.LastTerminationState.Terminated; last != nil && w.Reason == "CrashLoopBackOff" {
			at = instant(last.FinishedAt)
		}
		r.add(Stage{Name: BackOff, Container: status.Name, Restart: status.RestartCount, Occurrence: clip(w.Reason, mostReasonBytes), Start: at, End: at, Failure: s.Failure})
	default:
		s.Failure = failure(w.Reason, w.Message)
		failed := s
		failed.Occurrence, failed.End = s.Failure.Reason, latest(time.Time{}, r.written, s.Start)
		if isPull(w.Reason) {
			failed.Name, failed.Occurrence = PullImage, failedPull
			failed.Image = clip(status.Image, mostMessageBytes)
		}
		r.add(failed)
	}
	if r.scheduled.IsZero() && r.pod.Spec.NodeName == "" || w.Reason == "PodInitializing" {
		return // it is not the container that is waited for
	}
	r.add(s)
}

// failedPull is the occurrence of an image that could not be pulled, whichever source says so.
const failedPull = "failed"

// isPull says whether a reason to wait is about the image (pkg/kubelet/images/types.go).
func isPull(reason string) bool {
	switch reason {
	case "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
		return true
	}
	return false
}

// firstStart is when a container was started first, as far as the object remembers.
func firstStart(status corev1.ContainerStatus) time.Time {
	switch last := status.LastTerminationState.Terminated; {
	case last != nil && !last.StartedAt.IsZero():
		return instant(last.StartedAt)
	case status.State.Running != nil:
		return instant(status.State.Running.StartedAt)
	case status.State.Terminated != nil:
		return instant(status.State.Terminated.StartedAt)
	}
	return time.Time{}
}

// mostBecomeReady is how long after its last container's start a Pod may become ready for the first time. Later it was
// ready before, and was not for a while: the condition remembers its last change alone.
const mostBecomeReady = time.Hour

// start adds the way to Ready. all says that every container has run, the last from started on.
func (r *reading) start(started time.Time, all bool) {
	ready := condition(r.pod.Status.Conditions, corev1.PodReady)
	s := Stage{Name: StartPod, Start: r.created}
	phase := r.pod.Status.Phase
	over := phase == corev1.PodSucceeded || phase == corev1.PodFailed
	switch {
	case ready.Status == corev1.ConditionTrue && (!all || instant(ready.LastTransitionTime).Sub(started) <= mostBecomeReady):
		s.End = instant(ready.LastTransitionTime)
		r.add(Stage{Name: BecomeReady, Start: latest(s.End, r.created, started), End: s.End})
	case all && over, all && ready.Status == corev1.ConditionTrue, all && r.wasReady(ready):
		s.End = started // it was ready at some time after that, which the object has forgotten
	case phase == corev1.PodFailed:
		s.End = latest(time.Time{}, instant(ready.LastTransitionTime), r.created)
		s.Failure = failure(r.pod.Status.Reason, r.pod.Status.Message)
	case !requested(r.pod).IsZero() && started.IsZero():
		s.End = requested(r.pod)
		s.Failure = failure("Deleted", "the Pod was deleted before its containers had started")
	case !started.IsZero() && all:
		r.add(Stage{Name: BecomeReady, Start: started})
	}
	r.add(s)
}

// wasReady says whether a Pod that is not ready was so before. The kubelet sets the condition when it first sees the Pod; a
// later change means that it was true between.
func (r *reading) wasReady(ready corev1.PodCondition) bool {
	return r.pod.Status.StartTime != nil && ready.Status == corev1.ConditionFalse &&
		ready.LastTransitionTime.After(r.pod.Status.StartTime.Add(time.Second)) && len(r.pod.Spec.ReadinessGates) == 0
}

// requested is when the deletion was asked for; zero: it was not. The API server stores that time plus
// the grace.
func requested(pod *corev1.Pod) time.Time {
	if pod.DeletionTimestamp == nil {
		return time.Time{}
	}
	at := instant(*pod.DeletionTimestamp)
	if grace := pod.DeletionGracePeriodSeconds; grace != nil {
		at = at.Add(-time.Duration(*grace) * time.Second)
	}
	return latest(time.Time{}, at, instant(pod.CreationTimestamp))
}

// end adds how the Pod goes.
func (r *reading) end() {
	if c := condition(r.pod.Status.Conditions, corev1.DisruptionTarget); c.Status == corev1.ConditionTrue {
		name := EvictPod
		if c.Reason == corev1.PodReasonPreemptionByScheduler {
			name = PreemptPod
		}
		at := instant(c.LastTransitionTime)
		r.add(Stage{Name: name, Start: at, End: at, Failure: failure(c.Reason, c.Message)})
	} else if r.pod.Status.Phase == corev1.PodFailed && r.pod.Status.Reason == "Evicted" {
		at := latest(time.Time{}, r.written, r.created)
		r.add(Stage{Name: EvictPod, Start: at, End: at, Failure: failure(r.pod.Status.Reason, r.pod.Status.Message)})
	}
	if at := requested(r.pod); !at.IsZero() {
		r.add(Stage{Name: DeletePod, Start: at})
	}
}
