package report

import (
	"errors"
	"fmt"
	"io"
	"math"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// Whoever may send spans may send any.
func TestNoTraceHoldsTheDrawingUp(t *testing.T) {
	deep := make([]tracestore.Span, 5_000)
	for i := range deep {
		deep[i] = tracestore.Span{ID: spanID(i + 1), ParentID: spanID(i), Service: "s", Name: "n", Start: time.Unix(int64(i), 0), Duration: time.Second}
		if i > 0 && i%2 == 0 {
			deep[i].Scope = "k8s.io/apiserver/pkg/endpoints/filterlatency"
		}
	}
	filters := make([]tracestore.Span, 5_000)
	for i := range filters {
		filters[i] = deep[i]
		filters[i].Scope = "x/endpoints/filterlatency"
	}
	for name, spans := range map[string][]tracestore.Span{
		"as long as times go":       {{ID: spanID(1), Name: "n", Start: time.Unix(0, 0), Duration: math.MaxInt64}},
		"a resolution of 1e100 s":   {{ID: spanID(1), Name: "n", Duration: 1, Attributes: map[string]any{resolutionKey: 1e100}}, {ID: spanID(2), ParentID: spanID(1), Name: "n"}},
		"as deep as it has spans":   deep,
		"as many filters as spans":  filters,
		"before the beginning":      {{ID: spanID(1), Name: "n", Start: time.Unix(-1<<40, 0)}, {ID: spanID(2), Name: "n", Start: time.Unix(1<<40, 0)}},
		"less than no time":         {{ID: spanID(1), Name: "n", Duration: math.MinInt64}},
		"without an id, many times": {{Name: "n"}, {Name: "n"}, {ParentID: spanID(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			go func() {
				trace := tracestore.Trace{ID: "0af7651916cd43dd8448eb211c80319c", Spans: spans}
				ended <- errors.Join(
					Tree(io.Discard, trace, TreeOptions{Width: 100}),
					Tree(io.Discard, trace, TreeOptions{Width: 100, FoldFilters: true}),
					HTML(io.Discard, Report{Sections: []Section{{Trace: &trace}}}),
				)
			}()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("not drawn within a minute")
			}
		})
	}
}

func spanID(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%016x", n)
}
