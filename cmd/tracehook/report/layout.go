// This file lays a trace out: every span gets its row, its place on the time
// axis and its lines in the tree. A Trace comes in, a layout goes out; all of
// it is arithmetic and nothing fails.

package report

import (
	"slices"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// layout is a trace in the order in which it is drawn.
type layout struct {
	Trace    tracestore.Trace
	Start    time.Time     // of the earliest span
	Total    time.Duration // from there to the end of the latest
	Rows     []row
	Services []service
	Ticks    []time.Duration // since Start; the first is 0
	Errors   int             // spans with status error
	Lost     int             // spans without their parent

	critical, working map[*tracestore.Span][]interval
	places            map[*tracestore.Span]int              // of the spans, in the order of the tree
	chains            map[*tracestore.Span]*tracestore.Span // the first filter that a row stands for
}

// row is one span and where it goes.
type row struct {
	*tracestore.Span
	Lost     tracestore.Lost
	Depth    int     // 0 at the top
	Guides   []guide // Depth of them, or mostGuides if that is less; the last one leads to the span
	Position int     // among its siblings, from 1
	SetSize  int     // how many siblings there are, itself included
	Below    int     // how many spans are somewhere below
	Offset   time.Duration
	// From and To are where the bar begins and ends: 0 is the start of the
	// trace, 1 its end.
	From, To float64
	// Working are the parts of the bar in which none of the children ran.
	Working []part
	// Critical are the parts that lie on the critical path, and CriticalTime is their sum.
	Critical     []part
	CriticalTime time.Duration
	Object       string // the Kubernetes object that the span is about; "" for none
	Place        int    // of the span in the order of the tree, from 0, whatever is folded
	Folds        bool   // it is no span, but stands for the filters from Place on
	Beside       bool   // its trace is another one than its parent's
}

// part is a piece of the time axis, from 0 to 1 like row.From.
type part struct{ From, To float64 }

// mostGuides bounds what a row holds: a trace may be as deep as it has spans.
const mostGuides = 256

// guide is one cell of the lines that make a tree of the rows.
type guide uint8

const (
	guideBlank guide = iota
	guideDown        // │ a later sibling of an ancestor
	guideFork        // ├ this span, with siblings to come
	guideLast        // └ this span, the last one
)

// service is what one service did in a trace.
type service struct {
	Name  string
	Spans int
	// Self is the time in which a span of the service ran and none of its
	// children did. In a trace without concurrency these add up to Total.
	Self time.Duration
}

// newLayout lays out every span.
func newLayout(trace tracestore.Trace, how filters) layout {
	l := layout{
		Trace: trace, critical: map[*tracestore.Span][]interval{}, working: map[*tracestore.Span][]interval{},
		places: map[*tracestore.Span]int{}, chains: map[*tracestore.Span]*tracestore.Span{},
	}
	if len(trace.Spans) == 0 {
		return l
	}
	l.Start = trace.Spans[0].Start
	end := l.Start
	for _, s := range trace.Spans {
		if s.Start.Before(l.Start) {
			l.Start = s.Start
		}
		if s.End().After(end) {
			end = s.End()
		}
	}
	l.Total = end.Sub(l.Start)
	l.Ticks = ticks(l.Total)

	forest := trace.Forest()
	for i, root := range forest {
		if i == 0 { // the others are lost, or another story
			l.critical = criticalPath(root)
		}
		root.Walk(func(n *tracestore.Node, _ int) { l.places[n.Span], l.working[n.Span] = len(l.places), working(n) })
		if how != filtersAsTheyAre {
			root = l.foldFilters(root, how)
		}
		l.add(root, nil, nil, 0, i+1, len(forest))
	}

	places := make(map[string]int)
	for _, root := range forest {
		root.Walk(func(n *tracestore.Node, _ int) {
			at, known := places[n.Span.Service]
			if !known {
				at = len(l.Services)
				places[n.Span.Service] = at
				l.Services = append(l.Services, service{Name: n.Span.Service})
			}
			l.Services[at].Spans++
			for _, w := range l.working[n.Span] {
				l.Services[at].Self += w.to.Sub(w.from)
			}
			if n.Span.Status == tracestore.StatusError {
				l.Errors++
			}
			if n.Lost != tracestore.NotLost {
				l.Lost++
			}
		})
	}
	return l
}

// add appends the row of n and the rows below it, and returns how many those are.
func (l *layout) add(n, above *tracestore.Node, guides []guide, depth, position, setSize int) int {
	at := len(l.Rows)
	offset := n.Span.Start.Sub(l.Start)
	l.Rows = append(l.Rows, row{
		Span: n.Span, Lost: n.Lost,
		Depth: depth, Guides: guides,
		Position: position, SetSize: setSize,
		Offset: offset, Object: objectOf(n.Span),
		From: l.fraction(offset), To: l.fraction(offset + n.Span.Duration),
	})
	l.Rows[at].Place = l.places[n.Span]
	if first := l.chains[n.Span]; first != nil {
		l.Rows[at].Place, l.Rows[at].Folds = l.places[first], true
	}
	l.Rows[at].Beside = n.Span.TraceID != "" && (above == nil || above.Span.TraceID != n.Span.TraceID)
	for _, w := range l.working[n.Span] {
		l.Rows[at].Working = append(l.Rows[at].Working, part{l.fraction(w.from.Sub(l.Start)), l.fraction(w.to.Sub(l.Start))})
	}
	for _, w := range l.critical[n.Span] {
		l.Rows[at].Critical = append(l.Rows[at].Critical, part{l.fraction(w.from.Sub(l.Start)), l.fraction(w.to.Sub(l.Start))})
		l.Rows[at].CriticalTime += w.to.Sub(w.from)
	}
	below := 0
	for i, child := range n.Children {
		// Above the children, the lines go on only below spans that have
		// siblings to come.
		lines := guides
		if len(guides) < mostGuides {
			lines = make([]guide, len(guides), len(guides)+1)
			copy(lines, guides)
			if d := len(guides); d > 0 {
				if guides[d-1] == guideFork {
					lines[d-1] = guideDown
				} else {
					lines[d-1] = guideBlank
				}
			}
			last := guideFork
			if i == len(n.Children)-1 {
				last = guideLast
			}
			lines = append(lines, last)
		}
		if l.chains[child.Span] == nil { // a row that stands for others is no span
			below++
		}
		below += l.add(child, n, lines, depth+1, i+1, len(n.Children))
	}
	l.Rows[at].Below = below
	return below
}

func (l *layout) fraction(d time.Duration) float64 {
	if l.Total <= 0 {
		return 0
	}
	return min(1, max(0, float64(d)/float64(l.Total)))
}

type interval struct{ from, to time.Time }

// working lists, in order, when a span ran and none of its children did.
// Children may overlap each other, and may outlive their parent.
func working(n *tracestore.Node) []interval {
	var children []interval
	for _, child := range n.Children {
		children = append(children, interval{child.Span.Start, child.Span.End()})
	}
	slices.SortFunc(children, func(a, b interval) int { return a.from.Compare(b.from) })

	var own []interval
	at, end := n.Span.Start, n.Span.End()
	for _, c := range children {
		if until := earlier(c.from, end); at.Before(until) {
			own = append(own, interval{at, until})
		}
		if c.to.After(at) {
			at = c.to
		}
	}
	if at.Before(end) {
		own = append(own, interval{at, end})
	}
	return own
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ticks divides an axis of the given length at 1, 2 or 5 times a power of ten
// of nanoseconds, so that there are between four and eight parts.
func ticks(total time.Duration) []time.Duration {
	step := time.Nanosecond
	for i := 0; total/step >= 8; i++ {
		step = step * []time.Duration{2, 5, 2}[i%3] / []time.Duration{1, 2, 1}[i%3]
	}
	var at []time.Duration
	for t := time.Duration(0); t >= 0 && t <= total; t += step { // below 0: past the end of what a Duration holds
		at = append(at, t)
	}
	return at
}
