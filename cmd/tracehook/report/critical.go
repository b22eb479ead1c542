// This file finds the critical path of a trace: the time that would have to go for the
// whole to end sooner. A tree comes in, intervals for its spans go out. Pure.

package report

import (
	"slices"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// criticalPath walks back from the end of root. Of several children it waits for the one
// that ended last; before that one began, for the one that had ended last by then. What
// is left is the span's own. A child that outlives its parent counts up to the parent's end.
func criticalPath(root *tracestore.Node) map[*tracestore.Span][]interval {
	path := make(map[*tracestore.Span][]interval)
	type visit struct {
		node *tracestore.Node
		to   time.Time
	}
	// A stack and no recursion: a trace may be as deep as it has spans.
	for stack := []visit{{root, root.Span.End()}}; len(stack) > 0; {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		n, until := at.node, earlier(at.to, at.node.Span.End())
		children := slices.Clone(n.Children)
		end := func(c *tracestore.Node) time.Time { return earlier(c.Span.End(), n.Span.End()) }
		slices.SortStableFunc(children, func(a, b *tracestore.Node) int { return end(b).Compare(end(a)) })
		var own []interval
		for _, child := range children {
			if end(child).After(until) || child.Span.Start.Before(n.Span.Start) || !child.Span.Start.Before(until) {
				continue
			}
			if end(child).Before(until) {
				own = append(own, interval{end(child), until})
			}
			stack = append(stack, visit{child, until})
			until = child.Span.Start
		}
		if n.Span.Start.Before(until) {
			own = append(own, interval{n.Span.Start, until})
		}
		slices.Reverse(own)
		path[n.Span] = own
	}
	return path
}
