// This file says why a search came to nothing: it binds what can be bound and
// names, for each want that is left, the span that comes nearest. A matcher
// whose search has failed comes in, its list of what is missing goes out.

package tree

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// explain fills m.missing. It stays empty only when the search gave up and
// taking the best span each time did find one for everything.
func (m *matcher) explain() {
	// All bindings come first, so that "nearest" prefers spans that nobody else wants.
	var unbound []int
	m.bindBest(0, &unbound)
	for _, want := range unbound {
		m.missing = append(m.missing, m.describeMissing(want))
	}
}

// bindBest binds want to the span below which most of what is wanted is found,
// then does the same below it. What stays without a span goes to unbound,
// without what is wanted below it.
func (m *matcher) bindBest(want int, unbound *[]int) {
	best, most := -1, 0
	for _, span := range m.candidates(want, m.parentSpan(want)) {
		if _, taken := m.taken[span]; taken {
			continue
		}
		if n := m.fits(want, span); n > most {
			best, most = span, n
		}
	}
	if best < 0 {
		*unbound = append(*unbound, want)
		return
	}
	m.bind(want, best)
	for _, child := range m.wants[want].children {
		m.bindBest(child, unbound)
	}
}

func (m *matcher) describeMissing(want int) string {
	w := m.wants[want]
	var b strings.Builder
	b.WriteString(w.String())
	b.WriteString(m.wantedPlace(want))
	if w.size > 1 {
		fmt.Fprintf(&b, ", with %d more wanted below it", w.size-1)
	}

	span, reasons := m.nearest(want)
	if span < 0 {
		b.WriteString("\n  no span comes near")
		return b.String()
	}
	fmt.Fprintf(&b, "\n  nearest: %s %s", describeSpan(m.spans[span].Span), m.spans[span].ID)
	for _, r := range reasons {
		b.WriteString("\n    - " + r)
	}
	return b.String()
}

func (m *matcher) wantedPlace(want int) string {
	top := m.wants[0].Want
	switch parent := m.parentSpan(want); {
	case parent >= 0 && m.wants[want].Descendant:
		return ", somewhere below " + describeSpan(m.spans[parent].Span)
	case parent >= 0:
		return ", directly below " + describeSpan(m.spans[parent].Span)
	case top.ParentID != "":
		return ", directly below " + top.ParentID
	case top.Descendant:
		return ", anywhere"
	default:
		return ", as the root"
	}
}

// How much it counts that something about a span is not as wanted. A span with
// neither the name nor the place is not near at all.
const (
	costName    = 8
	costPlace   = 7
	costTaken   = 3
	costService = 3
	costOther   = 1
)

// nearest finds the span that differs least from want and says in what it does.
func (m *matcher) nearest(want int) (span int, reasons []string) {
	place := m.candidates(want, m.parentSpan(want))
	span = -1
	least := costName + costPlace
	for s, node := range m.spans {
		w := m.wants[want].Want
		differ := w.differences(node.Span)
		cost := costOther * len(differ)
		if w.Name != "" && w.Name != node.Name {
			cost += costName - costOther
		}
		if w.Service != "" && w.Service != node.Service {
			cost += costService - costOther
		}
		if !slices.Contains(place, s) {
			cost += costPlace
			differ = append(differ, "parent: it is "+m.actualPlace(s))
		}
		if other, taken := m.taken[s]; taken {
			cost += costTaken
			differ = append(differ, fmt.Sprintf("it is bound already, by the %s that is wanted%s", m.wants[other].String(), m.wantedPlace(other)))
		}
		if cost < least {
			span, least, reasons = s, cost, differ
		}
	}
	return span, reasons
}

func (m *matcher) actualPlace(span int) string {
	s := m.spans[span]
	switch {
	case s.parent >= 0:
		return "directly below " + describeSpan(m.spans[s.parent].Span)
	case s.lost == tracestore.ParentMissing:
		return "below " + s.ParentID + ", which did not arrive"
	case s.lost == tracestore.ParentCycle:
		return "below itself"
	default:
		return "a root"
	}
}
