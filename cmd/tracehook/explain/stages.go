package explain

// What became of an object. In: the object, its Events, when its cause was stored. Out: its stages, its state in a few words,
// and whether that is a reason to look at it. Pure.

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tracehook/tracehook/webhook/cause/lifecycle"
)

// became is what came of an object.
type became struct {
	stages  []Stage
	state   string // "": there is nothing to say beside the stages
	failing bool
}

// becameOf reads the kinds that package lifecycle knows, and of any other kind the conditions.
func becameOf(object *unstructured.Unstructured, events []corev1.Event, caused time.Time) became {
	var pod corev1.Pod
	var deployment appsv1.Deployment
	var stateful appsv1.StatefulSet
	var daemons appsv1.DaemonSet
	var job batchv1.Job
	var claim corev1.PersistentVolumeClaim
	group := object.GroupVersionKind().Group
	is := func(wantGroup, wantKind string, into any) bool {
		return group == wantGroup && object.GetKind() == wantKind && runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, into) == nil
	}
	switch {
	case is("", "Pod", &pod):
		about := make([]*corev1.Event, len(events))
		for i := range events {
			about[i] = &events[i]
		}
		return podBecame(&pod, lifecycle.Pod(&pod, about...))
	case is("apps", "Deployment", &deployment):
		s := deployment.Status
		return rolledOut(lifecycle.Deployment(&deployment, caused), fmt.Sprintf("%d of %d ready, %d up to date", s.ReadyReplicas, wanted(deployment.Spec.Replicas), s.UpdatedReplicas))
	case is("apps", "StatefulSet", &stateful):
		s := stateful.Status
		return rolledOut(lifecycle.StatefulSet(&stateful, caused), fmt.Sprintf("%d of %d ready, %d up to date", s.ReadyReplicas, wanted(stateful.Spec.Replicas), s.UpdatedReplicas))
	case is("apps", "DaemonSet", &daemons):
		s := daemons.Status
		return rolledOut(lifecycle.DaemonSet(&daemons, caused), fmt.Sprintf("%d of %d ready, %d up to date", s.NumberReady, s.DesiredNumberScheduled, s.UpdatedNumberScheduled))
	case is("batch", "Job", &job):
		return rolledOut(lifecycle.Job(&job, caused), fmt.Sprintf("%d active, %d succeeded, %d failed", job.Status.Active, job.Status.Succeeded, job.Status.Failed))
	case is("", "PersistentVolumeClaim", &claim):
		return rolledOut(lifecycle.PersistentVolumeClaim(&claim), "not bound")
	}
	state, failing := conditionState(object)
	return became{state: state, failing: failing}
}

// wanted is 1 where nothing is said, as in the API.
func wanted(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

// rolledOut is a roll-out, which is over, has failed, or goes on as far as it says.
func rolledOut(stages []lifecycle.Stage, soFar string) became {
	b := became{stages: stagesOf(stages)}
	for _, s := range stages {
		switch {
		case s.Failed():
			b.state, b.failing = failureText(s), true
		case !s.Ended():
			b.state = soFar
		}
	}
	return b
}

// podBecame finds the failure that keeps a Pod from being ready.
func podBecame(pod *corev1.Pod, stages []lifecycle.Stage) became {
	b := became{stages: stagesOf(stages)}
	restarts := int32(0)
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		restarts += c.RestartCount
	}
	if restarts > 0 {
		b.state = fmt.Sprintf("%d restarts", restarts)
		if restarts == 1 {
			b.state = "1 restart"
		}
	}
	if pod.Status.Phase == corev1.PodSucceeded || podIsReady(pod) {
		return b
	}
	started := map[string]bool{} // containers that have been started
	for _, s := range stages {
		if s.Name == lifecycle.StartContainer || s.Name == lifecycle.StartInitContainer || s.Name == lifecycle.RestartContainer {
			started[s.Container] = started[s.Container] || s.Ended() && !s.Failed()
		}
	}
	var why *lifecycle.Stage
	for i, s := range stages {
		switch {
		case !s.Failed():
			continue
		case s.Name == lifecycle.Schedule && pod.Spec.NodeName != "":
			continue // it has found a node since
		case (s.Name == lifecycle.PullImage || s.Name == lifecycle.StartContainer) && started[s.Container],
			(s.Name == lifecycle.PrepareSandbox || s.Name == lifecycle.MountVolumes) && len(started) > 0 && slices.Contains(values(started), true):
			continue // it went on all the same
		}
		// What goes on is nearer than what is over, and what comes later nearer than what came before.
		if why == nil || !s.Ended() && why.Ended() || s.Ended() == why.Ended() && !s.Start.Before(why.Start) {
			why = &stages[i]
		}
	}
	if why == nil {
		if pod.DeletionTimestamp != nil {
			b.state = "being deleted"
		}
		return b
	}
	b.failing = true
	text := failureText(*why)
	if why.Failure.ExitCode == 0 { // a back-off says nothing of what went wrong before it
		for _, s := range slices.Backward(stages) {
			if s.Container == why.Container && s.Container != "" && s.Failed() && s.Failure.Reason != why.Failure.Reason {
				text += "; before: " + failureText(s)
				break
			}
		}
	}
	if b.state != "" {
		text += "; " + b.state
	}
	b.state = text
	return b
}

func values(m map[string]bool) (list []bool) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

func podIsReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
}

// failureText is what failed, and why in the cluster's words.
func failureText(s lifecycle.Stage) string {
	text := string(s.Name)
	if s.Container != "" {
		text += " " + s.Container
	}
	text += ": " + s.Failure.Reason
	if code := s.Failure.ExitCode; code != 0 {
		text += fmt.Sprintf(" (exit code %d)", code)
	}
	if s.Failure.Message != "" {
		text += ": " + s.Failure.Message
	}
	return text
}

func stagesOf(stages []lifecycle.Stage) []Stage {
	var list []Stage
	for _, s := range stages {
		if s.Name == lifecycle.PodAnchor {
			continue
		}
		told := Stage{
			Name: string(s.Name), Container: s.Container, Restart: s.Restart, WholeSeconds: s.Resolution >= time.Second,
			Reason: s.Failure.Reason, Message: s.Failure.Message, ExitCode: s.Failure.ExitCode, Image: s.Image, ImageBytes: s.ImageBytes,
		}
		if !s.Start.IsZero() {
			told.Start = new(s.Start.UTC())
		}
		if s.Ended() {
			told.End = new(s.End.UTC())
		}
		list = append(list, told)
	}
	return list
}

// reached are the words for the end of stages that people wait for.
var reached = []struct{ name, word string }{
	{string(lifecycle.Schedule), "scheduled"}, {string(lifecycle.PrepareSandbox), "sandbox"}, {string(lifecycle.RunInitContainer), "initialized"},
	{string(lifecycle.PullImage), "pulled"}, {string(lifecycle.StartContainer), "started"}, {string(lifecycle.StartPod), "ready"},
	{string(lifecycle.RunJob), "complete"}, {string(lifecycle.RollOut), "rolled out"}, {string(lifecycle.BindVolumeClaim), "bound"},
}

// milestones tell when the stages were over, counted from a time: the last one of each kind. A stage of which some did not end
// is not over.
func milestones(stages []Stage, from time.Time) string {
	type milestone struct {
		at   time.Time
		text string
	}
	var list []milestone
	for _, r := range reached {
		var last *Stage
		open := false
		for i, s := range stages {
			if s.Name != r.name || s.Reason != "" {
				continue
			}
			open = open || s.End == nil
			if last == nil || timeOf(s.End).After(timeOf(last.End)) {
				last = &stages[i]
			}
		}
		if last == nil || open {
			continue
		}
		seconds := max(0, last.End.Sub(from).Seconds())
		if last.WholeSeconds {
			seconds = max(0, last.End.Sub(from.Truncate(time.Second)).Seconds())
		}
		list = append(list, milestone{*last.End, r.word + " " + after(seconds, !last.WholeSeconds)})
	}
	slices.SortStableFunc(list, func(a, b milestone) int { return a.at.Compare(b.at) })
	var words []string
	for _, m := range list {
		words = append(words, m.text)
	}
	return strings.Join(words, " · ")
}

// conditionState says in a few words what the conditions of any kind tell.
func conditionState(object *unstructured.Unstructured) (state string, failing bool) {
	for _, c := range conditionsOf(object) {
		switch {
		case c.status == "True" && slices.Contains([]string{"Failed", "ReplicaFailure", "Stalled", "Degraded"}, c.kind):
			return because("failed", c), true
		case c.status == "False" && slices.Contains([]string{"Ready", "Available", "Synced", "Healthy", "Succeeded"}, c.kind):
			return because("not "+strings.ToLower(c.kind), c), true
		case c.status == "True" && slices.Contains([]string{"Ready", "Available", "Complete", "Succeeded", "Established"}, c.kind):
			state = cmp.Or(state, strings.ToLower(c.kind))
		}
	}
	return state, false
}

type condition struct{ kind, status, reason, message string }

// conditionsOf reads status.conditions, which nearly every kind has in this form.
func conditionsOf(object *unstructured.Unstructured) []condition {
	list, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	var conditions []condition
	for _, item := range list {
		fields, ok := item.(map[string]any)
		if !ok {
			continue
		}
		text := func(name string) string { s, _ := fields[name].(string); return s }
		conditions = append(conditions, condition{text("type"), text("status"), text("reason"), text("message")})
	}
	return conditions
}

func because(what string, c condition) string {
	if c.reason != "" {
		what += ": " + c.reason
	}
	if c.message != "" {
		what += ": " + c.message
	}
	return what
}
