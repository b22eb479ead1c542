package tracestore_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

func TestATraceThatIsHungKeepsItsShapeAndSaysWhoseItIs(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	trace := tracestore.Trace{ID: "own", Spans: []tracestore.Span{{ID: "a", Start: at(0)}, {ID: "b", ParentID: "a", Start: at(1)}}}
	other := tracestore.Trace{ID: "other", Spans: []tracestore.Span{
		{ID: "r", Start: at(2)}, {ID: "c", ParentID: "r", Start: at(3)}, {ID: "lost", ParentID: "gone", Start: at(4)}, {ID: "a", Start: at(5)},
	}}
	draw := func(t tracestore.Trace) string {
		var lines []string
		for _, root := range t.Forest() {
			root.Walk(func(n *tracestore.Node, depth int) {
				lines = append(lines, strings.Repeat(" ", depth)+n.Span.ID+" "+n.Span.TraceID)
			})
		}
		return strings.Join(lines, "\n")
	}
	if got, want := draw(trace.Hang("b", other)), "a \n b \n  r other\n   c other\nlost other"; got != want {
		t.Errorf("it is\n%s\nwant\n%s", got, want)
	}
	if got, want := draw(trace.Hang("", other)), "a \n b \nr other\n c other\nlost other"; got != want {
		t.Errorf("below nothing it is\n%s\nwant\n%s", got, want)
	}
	if got := draw(trace); got != "a \n b " {
		t.Errorf("the trace itself has changed:\n%s", got)
	}
}
