package report

import (
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

func TestADurationIsNoMoreExactThanItsSource(t *testing.T) {
	for _, test := range []struct {
		took       time.Duration
		resolution any
		want       string
	}{
		{1, 1.0, "< 1 s"}, {0, int64(1), "< 1 s"}, {time.Second, 1.0, "1 s"}, {2 * time.Second, 1.0, "2 s"},
		{1, nil, "1 ns"}, {1, "1", "1 ns"}, {1, 0.0, "1 ns"}, {1, -1.0, "1 ns"}, {3 * time.Millisecond, 0.001, "3 ms"}, {1, 1e100, "1 ns"},
	} {
		span := &tracestore.Span{Duration: test.took, Attributes: map[string]any{resolutionKey: test.resolution}}
		if got := spanDuration(span); got != test.want {
			t.Errorf("%s, resolution %v: %q, want %q", test.took, test.resolution, got, test.want)
		}
	}
}
