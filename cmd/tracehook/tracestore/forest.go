// This file turns the flat list of spans into trees by parenthood. Every span
// comes out exactly once, whatever the parent ids say; nothing here fails.

package tracestore

// Node is a span in its place.
type Node struct {
	Span     *Span
	Children []*Node // in the order of Trace.Spans
	// Lost says why a span with a parent id stands at the top all the same:
	// NotLost for every other span.
	Lost Lost
}

// Lost is a reason for which a span could not be hung below its parent.
type Lost int

const (
	NotLost       Lost = iota
	ParentMissing      // the parent did not arrive
	ParentCycle        // following the parents leads back to the span itself
)

// Forest returns the trees of a trace: its roots and its lost spans in the
// order of Trace.Spans. A complete trace has exactly one tree, and nothing in
// it is lost. Of several spans with one id the first has the children.
func (t Trace) Forest() []*Node {
	nodes := make([]*Node, len(t.Spans))
	byID := make(map[string]*Node, len(t.Spans))
	for i := range t.Spans {
		nodes[i] = &Node{Span: &t.Spans[i]}
		if _, twice := byID[t.Spans[i].ID]; !twice {
			byID[t.Spans[i].ID] = nodes[i]
		}
	}

	top := make(map[*Node]bool)
	for _, n := range nodes {
		parent := byID[n.Span.ParentID]
		switch {
		case n.Span.ParentID == "":
			top[n] = true
		case parent == nil:
			n.Lost = ParentMissing
			top[n] = true
		default:
			parent.Children = append(parent.Children, n)
		}
	}

	// What cannot be reached from the top hangs on a cycle: cut each cycle
	// above its first span.
	reached := make(map[*Node]bool)
	for _, n := range nodes {
		if top[n] {
			n.reach(reached)
		}
	}
	place := make(map[*Node]int, len(nodes))
	for i, n := range nodes {
		place[n] = i
	}
	for _, n := range nodes {
		if reached[n] {
			continue
		}
		first := cycleAbove(n, byID, place)
		first.Lost = ParentCycle
		top[first] = true
		byID[first.Span.ParentID].drop(first)
		first.reach(reached)
	}

	var roots []*Node
	for _, n := range nodes {
		if top[n] {
			roots = append(roots, n)
		}
	}
	return roots
}

// Walk calls visit for the node and everything below it, parents first. A
// depth of 0 is the node's own.
func (n *Node) Walk(visit func(n *Node, depth int)) {
	n.walk(0, visit)
}

func (n *Node) walk(depth int, visit func(*Node, int)) {
	visit(n, depth)
	for _, child := range n.Children {
		child.walk(depth+1, visit)
	}
}

func (n *Node) reach(reached map[*Node]bool) {
	n.Walk(func(n *Node, _ int) { reached[n] = true })
}

func (n *Node) drop(child *Node) {
	for i, c := range n.Children {
		if c == child {
			n.Children = append(n.Children[:i], n.Children[i+1:]...)
			return
		}
	}
}

// cycleAbove is the first span of the cycle to which the parents of n lead. Every span
// that leads there is reached from it, so that all calls together take linear time.
func cycleAbove(n *Node, byID map[string]*Node, place map[*Node]int) *Node {
	seen := make(map[*Node]bool)
	at := n
	for !seen[at] {
		seen[at] = true
		at = byID[at.Span.ParentID]
	}
	first := at // on the cycle
	for next := byID[at.Span.ParentID]; next != at; next = byID[next.Span.ParentID] {
		if place[next] < place[first] {
			first = next
		}
	}
	return first
}
