package report

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore/recorded"
)

func TestALayoutHasARowPerSpanInTreeOrder(t *testing.T) {
	draw := map[guide]string{guideBlank: " ", guideDown: "│", guideFork: "├", guideLast: "└"}
	l := newLayout(made("a b<a c<b d<b e<a f"), filtersAsTheyAre)
	var got []string
	for _, r := range l.Rows {
		line := ""
		for _, g := range r.Guides {
			line += draw[g]
		}
		got = append(got, fmt.Sprintf("%s%s %d/%d +%d", line, r.Name, r.Position, r.SetSize, r.Below))
	}
	want := []string{"a 1/2 +4", "├b 1/2 +2", "│├c 1/2 +0", "│└d 2/2 +0", "└e 2/2 +0", "f 2/2 +0"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the rows are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if l.Total != 8*time.Millisecond { // the last of six starts after five and takes three
		t.Errorf("the whole takes %s, want 8ms", l.Total)
	}
	if r := l.Rows[1]; r.Offset != time.Millisecond || r.From != 0.125 || r.To != 0.5 {
		t.Errorf("b is at %s, from %v to %v, want 1ms, 0.125 to 0.5", r.Offset, r.From, r.To)
	}
}

// A span works when none of its children does. Each case is a span from 10 to
// 20 with the given children.
func TestWorkingIsWhatTheChildrenLeave(t *testing.T) {
	for name, c := range map[string]struct {
		children [][2]int
		want     [][2]int
	}{
		"no children":              {nil, [][2]int{{10, 20}}},
		"one in the middle":        {[][2]int{{12, 15}}, [][2]int{{10, 12}, {15, 20}}},
		"one after the other":      {[][2]int{{16, 18}, {12, 14}}, [][2]int{{10, 12}, {14, 16}, {18, 20}}},
		"overlapping":              {[][2]int{{12, 16}, {14, 18}}, [][2]int{{10, 12}, {18, 20}}},
		"one within another":       {[][2]int{{12, 18}, {13, 14}}, [][2]int{{10, 12}, {18, 20}}},
		"all of it":                {[][2]int{{10, 20}}, nil},
		"longer than their parent": {[][2]int{{5, 12}, {18, 30}}, [][2]int{{12, 18}}},
		"before and after":         {[][2]int{{1, 3}, {25, 30}}, [][2]int{{10, 20}}},
	} {
		t.Run(name, func(t *testing.T) {
			span := func(from, to int) *tracestore.Span {
				return &tracestore.Span{Start: time.UnixMilli(int64(from)), Duration: time.Duration(to-from) * time.Millisecond}
			}
			n := &tracestore.Node{Span: span(10, 20)}
			for _, child := range c.children {
				n.Children = append(n.Children, &tracestore.Node{Span: span(child[0], child[1])})
			}
			var got [][2]int
			for _, w := range working(n) {
				got = append(got, [2]int{int(w.from.UnixMilli()), int(w.to.UnixMilli())})
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("it works in %v, want %v", got, c.want)
			}
		})
	}
}

func TestTheServicesShareTheWholeTime(t *testing.T) {
	l := newLayout(recorded.Trace(t, "configmap"), filtersAsTheyAre)
	var names []string
	var sum time.Duration
	spans := 0
	for _, s := range l.Services {
		names = append(names, s.Name)
		sum += s.Self
		spans += s.Spans
	}
	if want := []string{"kubectl", "apiserver", "tracehook", "etcd"}; !reflect.DeepEqual(names, want) {
		t.Errorf("services %v, want %v: in the order of the tree", names, want)
	}
	if sum != l.Total || spans != 22 { // nothing in this trace runs at the same time
		t.Errorf("%s in %d spans, want %s in 22", sum, spans, l.Total)
	}
}

func TestAnAxisHasAFewRoundTicks(t *testing.T) {
	for total := time.Duration(1); total < 48*time.Hour; total = total*13/10 + 1 {
		at := ticks(total)
		if len(at) < 2 || len(at) > 8 {
			t.Errorf("%s has %d ticks: %v", total, len(at), at)
			continue
		}
		step := int64(at[1])
		for step%10 == 0 {
			step /= 10
		}
		if step != 1 && step != 2 && step != 5 {
			t.Errorf("%s is divided by %s", total, at[1])
		}
		if at[0] != 0 || at[len(at)-1] > total {
			t.Errorf("the ticks of %s are %v", total, at)
		}
		labels := make(map[string]bool)
		for _, tick := range at {
			labels[formatTick(tick, at[1], total)] = true
		}
		if len(labels) != len(at) {
			t.Errorf("the ticks of %s look alike: %v", total, labels)
		}
	}
	if got := ticks(0); len(got) != 1 {
		t.Errorf("an axis of no length has the ticks %v, want one", got)
	}
}

func TestATraceOfOneInstantCanBeDrawn(t *testing.T) {
	trace := made("a b<a")
	for i := range trace.Spans {
		trace.Spans[i].Start, trace.Spans[i].Duration = trace.Spans[0].Start, 0
	}
	if text := tree(t, trace, TreeOptions{}); !strings.Contains(text, "0 µs  ╺") && !strings.Contains(text, "0 µs  ╸") {
		t.Errorf("a span of no length leaves no mark:\n%s", text)
	}
	var b strings.Builder
	if err := HTML(&b, Report{Sections: []Section{{Trace: &trace}}}); err != nil {
		t.Fatal(err)
	}
	if broken := regexp.MustCompile(`"(NaN|[+-]?Inf)%?"`).FindString(b.String()); broken != "" {
		t.Errorf("a division by zero is in the page: %s", broken)
	}
}
