package hostile

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/flood"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// review is a Pod of 6.9 kB, or something else as its object.
func review(t *testing.T) []byte {
	t.Helper()
	body, err := os.ReadFile("../../webhook/testdata/bench/pod.json")
	if err != nil {
		t.Fatal(err)
	}
	return body
}

var sampled = http.Header{"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}

func TestNothingThatIsSentEndsTheServerOrHoldsOthersUp(t *testing.T) {
	for name := range flood.Attacks() {
		t.Run(name, func(t *testing.T) {
			var args []string
			if strings.HasPrefix(name, "HTTP/2") {
				args = append(args, "--enable-http2")
			}
			s := start(t, args...)
			well := flood.WellBehaved{Address: s.webhook, Review: review(t), PerSecond: 50}
			stop := well.Start(t.Context())
			time.Sleep(time.Second)
			before := stop()
			stop = well.Start(t.Context())
			met := attackFrom(story.Within(t, 2*time.Minute), name, s)
			beside := stop()
			if !s.alive() {
				t.Fatalf("serve ended: %s, at %s; the attack met with: %s", s.cmd.ProcessState, s.peak(), met)
			}
			t.Logf("\n\tthe attack: %s\n\tat most %s\n\tothers before: %s\n\tothers beside: %s\n\trefused: %v", met, s.peak(), before, beside, s.refused(t))
			if beside.Failed > beside.Calls/100 {
				t.Errorf("others: %s", beside)
			}
		})
	}
}
