// This file looks for spans that are what a Want describes. A Trace and a Want
// come in, nil or an error that tells the whole story goes out: it is a *Mismatch.

package tree

import (
	"fmt"
	"strings"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// Match returns nil when every Want binds a span of its own, each in its place,
// and the trace is one whole tree: no span without its parent, no second root,
// no id twice. Else it returns a *Mismatch.
//
// The top Want is the root of the tree, unless its ParentID or Descendant say
// otherwise.
func Match(t tracestore.Trace, w Want) error {
	m := newMatcher(t, w)
	m.checkShape()
	if !m.search([]int{0}) {
		m.explain()
	}
	if len(m.shape) == 0 && len(m.missing) == 0 {
		return nil
	}
	return &Mismatch{Trace: t, Wanted: w.size(), Shape: m.shape, Missing: m.missing}
}

// Mismatch is why a trace is not as wanted.
type Mismatch struct {
	Trace   tracestore.Trace
	Wanted  int      // how many spans are wanted
	Shape   []string // why the trace is not one tree
	Missing []string // what was not found, each with the nearest span there is
}

// Error tells what is missing, what comes nearest and why that will not do, and
// draws the tree that arrived.
func (e *Mismatch) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "trace %s is not the tree that is wanted\n", e.Trace.ID)
	for _, s := range e.Shape {
		fmt.Fprintf(&b, "\n  %s\n", indent(s))
	}
	if n := len(e.Missing); n > 0 {
		fmt.Fprintf(&b, "\n%d of %d wanted spans not found:\n", n, e.Wanted)
	}
	for _, s := range e.Missing {
		fmt.Fprintf(&b, "\n  %s\n", indent(s))
	}
	b.WriteString("\nwhat arrived:\n\n")
	_ = report.Tree(&b, e.Trace, report.TreeOptions{}) // a Builder takes everything
	return b.String()
}

func indent(text string) string { return strings.ReplaceAll(text, "\n", "\n  ") }

// matcher holds wants and spans flat, in pre-order, so that what is below entry
// i are the entries from i+1 up to its end.
type matcher struct {
	wants []wantNode
	spans []spanNode
	roots []int // into spans: where a tree may begin

	fit   map[[2]int]int // see fits
	steps int
	bound []int       // want → span, -1 for none
	taken map[int]int // span → want

	shape, missing []string
}

type wantNode struct {
	Want
	parent, size int // parent is -1 at the top
	children     []int
}

type spanNode struct {
	*tracestore.Span
	parent, end int // parent is -1 at the top
	children    []int
	lost        tracestore.Lost
}

// maxSteps bounds the search. It is reached only when dozens of alike spans are
// wanted anywhere below each other; explain then does what it can.
const maxSteps = 20_000

func newMatcher(t tracestore.Trace, w Want) *matcher {
	m := &matcher{fit: make(map[[2]int]int), taken: make(map[int]int)}
	m.addWant(w, -1)
	for _, root := range t.Forest() {
		m.addSpan(root, -1)
	}
	for i, s := range m.spans {
		switch {
		case w.ParentID != "":
			if s.ParentID == w.ParentID {
				m.roots = append(m.roots, i)
			}
		case w.Descendant, s.ParentID == "":
			m.roots = append(m.roots, i)
		}
	}
	m.bound = make([]int, len(m.wants))
	for i := range m.bound {
		m.bound[i] = -1
	}
	return m
}

func (m *matcher) addWant(w Want, parent int) {
	at := len(m.wants)
	m.wants = append(m.wants, wantNode{Want: w, parent: parent, size: w.size()})
	for _, child := range w.Children {
		m.wants[at].children = append(m.wants[at].children, len(m.wants))
		m.addWant(child, at)
	}
}

func (m *matcher) addSpan(n *tracestore.Node, parent int) {
	at := len(m.spans)
	m.spans = append(m.spans, spanNode{Span: n.Span, parent: parent, lost: n.Lost})
	for _, child := range n.Children {
		m.spans[at].children = append(m.spans[at].children, len(m.spans))
		m.addSpan(child, at)
	}
	m.spans[at].end = len(m.spans)
}

// checkShape notes why the trace is not one tree.
func (m *matcher) checkShape() {
	top := m.wants[0].Want
	seen := make(map[string]*tracestore.Span)
	roots := 0
	for _, s := range m.spans {
		if other := seen[s.ID]; other != nil {
			m.shape = append(m.shape, fmt.Sprintf("two spans have the id %s: %s and %s", s.ID, describeSpan(other), describeSpan(s.Span)))
		}
		seen[s.ID] = s.Span
		switch {
		case s.lost == tracestore.ParentCycle:
			m.shape = append(m.shape, fmt.Sprintf("%s is below itself: its parent is %s", describeSpan(s.Span), s.ParentID))
		case top.Descendant || top.ParentID != "" && s.ParentID == top.ParentID:
		case s.lost == tracestore.ParentMissing:
			m.shape = append(m.shape, fmt.Sprintf("the parent of %s did not arrive: %s", describeSpan(s.Span), s.ParentID))
		case s.ParentID == "":
			roots++
			if roots > 1 || top.ParentID != "" {
				m.shape = append(m.shape, fmt.Sprintf("%s is a root of its own", describeSpan(s.Span)))
			}
		}
	}
}

// candidates are the spans that are in the right place for a want whose parent
// has bound the span parent.
func (m *matcher) candidates(want, parent int) []int {
	switch {
	case want == 0:
		return m.roots
	case m.wants[want].Descendant:
		below := make([]int, 0, m.spans[parent].end-parent-1)
		for s := parent + 1; s < m.spans[parent].end; s++ {
			below = append(below, s)
		}
		return below
	default:
		return m.spans[parent].children
	}
}

// fits counts how many of the wants from want downwards find a span when want
// binds span; 0 when span is not as wanted. Two wants may count the same span,
// so that a full count is necessary but not sufficient.
func (m *matcher) fits(want, span int) int {
	key := [2]int{want, span}
	if n, known := m.fit[key]; known {
		return n
	}
	n := 0
	if len(m.wants[want].differences(m.spans[span].Span)) == 0 {
		n = 1
		for _, child := range m.wants[want].children {
			best := 0
			for _, s := range m.candidates(child, span) {
				best = max(best, m.fits(child, s))
			}
			n += best
		}
	}
	m.fit[key] = n
	return n
}

// search binds the wants in todo and everything wanted below them, each to a
// span of its own, or nothing at all.
func (m *matcher) search(todo []int) bool {
	if len(todo) == 0 {
		return true
	}
	want, rest := todo[0], todo[1:]
	for _, span := range m.candidates(want, m.parentSpan(want)) {
		if _, taken := m.taken[span]; taken || m.fits(want, span) < m.wants[want].size {
			continue
		}
		if m.steps++; m.steps > maxSteps {
			return false
		}
		m.bind(want, span)
		next := append(append([]int(nil), m.wants[want].children...), rest...)
		if m.search(next) {
			return true
		}
		m.unbind(want)
	}
	return false
}

func (m *matcher) parentSpan(want int) int {
	if want == 0 {
		return -1
	}
	return m.bound[m.wants[want].parent]
}

func (m *matcher) bind(want, span int) {
	m.bound[want] = span
	m.taken[span] = want
}

func (m *matcher) unbind(want int) {
	delete(m.taken, m.bound[want])
	m.bound[want] = -1
}
