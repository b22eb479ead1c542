package lifecycle

// An Event about a Pod in, at most one stage out. Pure. The kubelet says some things in Events alone, and there
// in a sentence (pkg/kubelet/images/image_manager.go, pkg/kubelet/prober/prober.go).

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// EventReasons are the reasons that PodEvent reads.
var eventReasons = map[string]bool{
	"Pulling": true, "Pulled": true, "Failed": true, "BackOff": true, "FailedScheduling": true, "Unhealthy": true, "Preempted": true,
	"Evicted": true, "FailedMount": true, "FailedAttachVolume": true, "FailedCreatePodSandBox": true,
}

var (
	pulled = regexp.MustCompile(`^Successfully pulled image "([^"]{1,1000})" in ([0-9a-zµ.]{1,32})(?: \(([0-9a-zµ.]{1,32}) including waiting\))?(?:\. Image size: ([0-9]{1,18}) bytes)?`)
	image  = regexp.MustCompile(`image "([^"]{1,1000})"`)
)

// mostPull is longer than any pull that a kubelet waits for.
const mostPull = 24 * time.Hour

// PodEvent returns the stage that an Event about a Pod tells of; of most Events there is none. An Event that was
// repeated tells of its first time.
func PodEvent(e *corev1.Event) (Stage, bool) {
	if e == nil || e.InvolvedObject.Kind != "Pod" || !eventReasons[e.Reason] {
		return Stage{}, false
	}
	at, resolution := eventTime(e)
	s := Stage{Container: containerOf(e.InvolvedObject.FieldPath), Start: at, End: at, Resolution: resolution}
	if at.IsZero() {
		return Stage{}, false
	}
	switch e.Reason {
	case "Pulling":
		s.Name, s.End, s.Image = PullImage, time.Time{}, imageOf(e.Message)
	case "Pulled":
		m := pulled.FindStringSubmatch(e.Message)
		if m == nil {
			return Stage{}, false // it was present already
		}
		text := m[3]
		if text == "" {
			text = m[2]
		}
		if took, err := time.ParseDuration(text); err == nil && took >= 0 && took <= mostPull {
			s.Start = at.Add(-took)
		}
		s.Name, s.Image, s.Occurrence = PullImage, clip(m[1], mostMessageBytes), clip(string(e.UID), mostReasonBytes)
		s.ImageBytes, _ = strconv.ParseInt(m[4], 10, 64) // 0: not said
	case "Failed":
		if !strings.HasPrefix(e.Message, "Failed to pull image") {
			return Stage{}, false // the container's status says the same, with its reason
		}
		s.Name, s.Occurrence, s.Image = PullImage, failedPull, imageOf(e.Message)
		s.Failure = failure("ErrImagePull", e.Message)
	case "BackOff":
		reason := "CrashLoopBackOff"
		if strings.HasPrefix(e.Message, "Back-off pulling image") {
			reason, s.Image = "ImagePullBackOff", imageOf(e.Message)
		}
		s.Name, s.Occurrence, s.Failure = BackOff, reason, failure(reason, e.Message)
	case "FailedScheduling":
		s.Name, s.Occurrence = Schedule, corev1.PodReasonUnschedulable
		s.Failure = failure(corev1.PodReasonUnschedulable, e.Message)
	case "Unhealthy":
		s.Name, s.Occurrence, s.Failure = Probe, probeKind(e.Message), failure(e.Reason, e.Message)
	case "Preempted":
		s.Name, s.Failure = PreemptPod, failure(e.Reason, e.Message)
	case "Evicted":
		s.Name, s.Failure = EvictPod, failure(e.Reason, e.Message)
	case "FailedMount", "FailedAttachVolume":
		s.Name, s.Occurrence, s.Failure = MountVolumes, e.Reason, failure(e.Reason, e.Message)
	case "FailedCreatePodSandBox":
		s.Name, s.Occurrence, s.Failure = PrepareSandbox, e.Reason, failure(e.Reason, e.Message)
	}
	return s, true
}

// eventTime is when it happened first. The kubelet's Events have whole seconds, the scheduler's microseconds.
func eventTime(e *corev1.Event) (time.Time, time.Duration) {
	switch {
	case !e.EventTime.IsZero():
		return e.EventTime.Time, 0
	case !e.FirstTimestamp.IsZero():
		return e.FirstTimestamp.Time, time.Second
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time, time.Second
	}
	return e.CreationTimestamp.Time, time.Second
}

// containerOf reads spec.containers{name}, where the kubelet writes which container an Event is about.
func containerOf(path string) string {
	_, rest, ok := strings.Cut(path, "{")
	if !ok || !strings.HasPrefix(path, "spec.") {
		return ""
	}
	name, ok := strings.CutSuffix(rest, "}")
	if !ok {
		return ""
	}
	return clip(name, mostNameBytes)
}

func imageOf(message string) string {
	if m := image.FindStringSubmatch(message); m != nil {
		return clip(m[1], mostMessageBytes)
	}
	return ""
}

func probeKind(message string) string {
	for _, kind := range []string{"readiness", "liveness", "startup"} {
		if len(message) >= len(kind) && strings.EqualFold(message[:len(kind)], kind) {
			return kind
		}
	}
	return "unknown"
}
