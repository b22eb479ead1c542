package lifecycle

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// noon is when the objects of the tests are made. Their texts say @5 for five seconds later.
var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// read reads YAML; @N in it is the time N seconds after noon.
func read[T any](t testing.TB, text string) *T {
	t.Helper()
	for n := 0; n < 4000 && strings.Contains(text, "@"); n++ {
		text = strings.ReplaceAll(text, fmt.Sprintf("@%d@", n), noon.Add(time.Duration(n)*time.Second).Format(time.RFC3339))
	}
	obj := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), obj); err != nil {
		t.Fatalf("read the test's object: %v\n%s", err, text)
	}
	return obj
}

// written is one line for each stage: name, container, restart, from, to, failure.
func written(stages []Stage) string {
	var b strings.Builder
	for _, s := range stages {
		b.WriteString(string(s.Name))
		if s.Container != "" {
			fmt.Fprintf(&b, " %s", s.Container)
		}
		if s.Restart > 0 {
			fmt.Fprintf(&b, " #%d", s.Restart)
		}
		fmt.Fprintf(&b, " %s-", after(s.Start))
		if s.Ended() {
			b.WriteString(after(s.End))
		}
		if s.Failed() {
			fmt.Fprintf(&b, " %s", s.Failure.Reason)
		}
		if s.Failure.ExitCode != 0 {
			fmt.Fprintf(&b, " exit %d", s.Failure.ExitCode)
		}
		if s.Unseen > 0 {
			fmt.Fprintf(&b, " unseen %d", s.Unseen)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func after(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return strings.TrimSuffix(t.Sub(noon).String(), "s")
}

func want(t *testing.T, got []Stage, lines string) {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(lines) + "\n") {
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	if g := written(got); g != b.String() {
		t.Errorf("stages\n%swant\n%s", g, b.String())
	}
}

// sound is what holds of all stages of one object.
func sound(t *testing.T, stages []Stage) {
	t.Helper()
	keys := map[string]bool{}
	for _, s := range stages {
		switch key := s.Key(); {
		case s.Name == "":
			t.Errorf("a stage without a name: %+v", s)
		case s.Ended() && s.End.Before(s.Start):
			t.Errorf("%s ends before it starts: %+v", s.Name, s)
		case s.Ended() && keys[key]:
			t.Errorf("two stages that ended have the key %q", key)
		case len(s.Failure.Message) > mostMessageBytes || len(s.Failure.Reason) > mostReasonBytes || len(s.Container) > mostNameBytes:
			t.Errorf("a text is too long: %+v", s)
		case s.Ended():
			keys[key] = true
		}
	}
}

func event(reason, message, container string, second int) *corev1.Event {
	e := &corev1.Event{
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "web", Namespace: "shop", UID: "u-1"},
		Reason:         reason, Message: message, FirstTimestamp: metav1.NewTime(noon.Add(time.Duration(second) * time.Second)),
	}
	e.UID = "e-1"
	if container != "" {
		e.InvolvedObject.FieldPath = "spec.containers{" + container + "}"
	}
	return e
}

func TestWhatIsPackedComesOutAsItWas(t *testing.T) {
	stages := Pod(read[corev1.Pod](t, `metadata: {name: web, uid: p-1, creationTimestamp: "@0@"}
status: {phase: Failed, reason: Evicted}`), event("Unhealthy", "Readiness probe failed: x", "app", 3))
	stages = append(stages, Stage{Name: RestartContainer, Container: "app", Restart: 7, Start: noon, End: noon.Add(time.Second), Resolution: time.Second, Unseen: 3}, Stage{Name: RollOut, End: noon})
	for _, s := range stages {
		if s.Ended() {
			if got := pack(s).stage(); !got.same(s) {
				t.Errorf("%+v comes out as %+v", s, got)
			}
		}
	}
}
