package tracestore_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

func TestForestKeepsEverySpanVisible(t *testing.T) {
	lost := map[tracestore.Lost]string{tracestore.ParentMissing: " (missing)", tracestore.ParentCycle: " (cycle)"}
	for name, c := range map[string]struct {
		parents string // "child<parent child<parent …", in order of start
		want    string
	}{
		"nothing":                         {"", ""},
		"children in order of start":      {"a b<a c<b d<a", "a[b[c] d]"},
		"a child before its parent":       {"b<a a", "a[b]"},
		"two roots":                       {"a b c<b", "a b[c]"},
		"an orphan with children":         {"a b<x c<b", "a b (missing)[c]"},
		"a span that is its own parent":   {"a b<b", "a b (cycle)"},
		"a cycle of three":                {"r a<c b<a c<b", "r a (cycle)[b[c]]"},
		"a branch below a cycle":          {"d<b a<b b<a", "a (cycle)[b[d]]"},
		"two spans with one id":           {"a a b<a", "a[b] a"},
		"a second span of an id in cycle": {"a<b b<a a<b", "a (cycle)[b[a]]"},
	} {
		t.Run(name, func(t *testing.T) {
			var trace tracestore.Trace
			for i, text := range strings.Fields(c.parents) {
				id, parent, _ := strings.Cut(text, "<")
				trace.Spans = append(trace.Spans, tracestore.Span{ID: id, ParentID: parent, Start: time.UnixMilli(int64(i))})
			}
			var show func(nodes []*tracestore.Node) string
			show = func(nodes []*tracestore.Node) string {
				var texts []string
				for _, n := range nodes {
					text := n.Span.ID + lost[n.Lost]
					if len(n.Children) > 0 {
						text += fmt.Sprintf("[%s]", show(n.Children))
					}
					texts = append(texts, text)
				}
				return strings.Join(texts, " ")
			}
			if got := show(trace.Forest()); got != c.want {
				t.Errorf("the forest of %q is %q, want %q", c.parents, got, c.want)
			}
		})
	}
}

// Half of the spans form one cycle, the others hang below it: every order of work that begins
// anew at each span would take minutes.
func TestALargeCycleIsCutInTime(t *testing.T) {
	const n = 50_000
	id := func(i int) string { return fmt.Sprintf("%016x", i) }
	var trace tracestore.Trace
	for i := range n { // these hang below the next, the last below the cycle
		trace.Spans = append(trace.Spans, tracestore.Span{ID: id(i), ParentID: id(i + 1)})
	}
	for i := range n {
		trace.Spans = append(trace.Spans, tracestore.Span{ID: id(n + i), ParentID: id(n + (i+1)%n)})
	}
	began := time.Now()
	forest := trace.Forest()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	if len(forest) != 1 || forest[0].Lost != tracestore.ParentCycle || forest[0].Span.ID != id(n) {
		t.Errorf("%d trees, the first from %s, want one from %s", len(forest), forest[0].Span.ID, id(n))
	}
}
