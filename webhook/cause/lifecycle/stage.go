package lifecycle

// What a stage is. Pure.

import (
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Name says which stage it is, and is the name of its span. Names have few values.
type Name string

// The names of stages; the package's comment says from when to when each lasts.
const (
	PodAnchor          Name = "Pod"
	StartPod           Name = "start Pod"
	Schedule           Name = "schedule"
	PrepareSandbox     Name = "prepare sandbox"
	MountVolumes       Name = "mount volumes"
	PullImage          Name = "pull image"
	StartInitContainer Name = "start init container"
	RunInitContainer   Name = "run init container"
	StartContainer     Name = "start container"
	RestartContainer   Name = "restart container"
	RunContainer       Name = "run container"
	BecomeReady        Name = "become ready"
	BackOff            Name = "back off"
	Probe              Name = "probe"
	EvictPod           Name = "evict Pod"
	PreemptPod         Name = "preempt Pod"
	DeletePod          Name = "delete Pod"
	RollOut            Name = "roll out"
	RunJob             Name = "run Job"
	BindVolumeClaim    Name = "bind volume claim"
	GetEndpoint        Name = "get endpoint"
)

// A Stage is one step in the life of an object.
type Stage struct {
	Name Name
	// Container is "" where the stage is not about one.
	Container string
	// Restart is how often the container had been restarted before this run.
	Restart int32
	// Occurrence tells stages of one name apart: a reason, a kind of probe, an Event.
	Occurrence string

	// Start is zero where it is not known. End is zero while the stage goes on.
	Start, End time.Time
	// Resolution is that of Start and End: a second for most of what the API says, 0 where nothing is
	// cut off.
	Resolution time.Duration
	// guessed says that End is when the status was last written, for which there may have been another reason.
	guessed bool

	// Failure is its zero value where nothing failed. A stage that goes on may have failed so far.
	Failure Failure

	// Image and ImageBytes are of a pulled image; 0 bytes means that the size is not known.
	Image      string
	ImageBytes int64
	// Unseen is how many earlier runs of the container the object has forgotten. Who did not watch them
	// never learns of them.
	Unseen int32
}

// A Failure says why a stage failed, in the words of the cluster. Both texts come from others and may
// hold anything; they are cut to 64 and 1024 bytes.
type Failure struct {
	// Reason is the API's CamelCase word, for example OOMKilled. "" means that nothing failed.
	Reason  string
	Message string
	// ExitCode and Signal are those of a container; 0 where there is none.
	ExitCode, Signal int32
}

// Failed says whether something failed.
func (s Stage) Failed() bool { return s.Failure.Reason != "" }

// Ended says whether the stage is over.
func (s Stage) Ended() bool { return !s.End.IsZero() }

// Key tells the stages of one object apart. It follows from what happened, not from who looks or when.
func (s Stage) Key() string {
	restart := ""
	if s.Restart > 0 && !onceForAllRuns(s.Name) {
		restart = strconv.Itoa(int(s.Restart))
	}
	return strings.Join([]string{string(s.Name), s.Container, restart, s.Occurrence}, "\x00")
}

// onceForAllRuns says that a stage is known from Events, which do not tell of which run they are.
func onceForAllRuns(name Name) bool { return name == PullImage || name == BackOff || name == Probe }

// In the API these are bounded by what a kubelet writes, and by nothing else.
const mostReasonBytes, mostMessageBytes, mostNameBytes = 64, 1024, 253

func failure(reason, message string) Failure {
	if reason == "" {
		reason = "Unknown"
	}
	return Failure{Reason: clip(reason, mostReasonBytes), Message: clip(message, mostMessageBytes)}
}

func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.Clone(strings.ToValidUTF8(s, "")) // a clone holds nothing of the object
}

// instant is a time of the API; seconds cut off.
func instant(t metav1.Time) time.Time { return t.Time }

// sane is a stage as it can be shown: it ends no earlier than it starts. An end whose fraction of a second was cut off may
// seem to.
func sane(s Stage) Stage {
	switch {
	case s.Start.IsZero():
		s.Start = s.End
	case !s.Ended() || !s.End.Before(s.Start):
	case s.Start.Sub(s.End) < s.Resolution:
		s.End = s.Start
	default:
		s.Start = s.End
	}
	return s
}

// latest returns the latest of times that is no later than limit, or the zero time. A zero limit is none.
func latest(limit time.Time, times ...time.Time) (last time.Time) {
	for _, t := range times {
		if t.After(last) && (limit.IsZero() || !t.After(limit)) {
			last = t
		}
	}
	return last
}

// statusWritten is when the status was last written, as the API server's bookkeeping says.
func statusWritten(fields []metav1.ManagedFieldsEntry) (last time.Time) {
	for _, f := range fields {
		if f.Subresource == "status" && f.Time != nil && f.Time.After(last) {
			last = f.Time.Time
		}
	}
	return last
}

func condition(conditions []corev1.PodCondition, kind corev1.PodConditionType) corev1.PodCondition {
	if i := slices.IndexFunc(conditions, func(c corev1.PodCondition) bool { return c.Type == kind }); i >= 0 {
		return conditions[i]
	}
	return corev1.PodCondition{}
}
