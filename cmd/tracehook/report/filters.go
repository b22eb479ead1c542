// This file folds the API server's chain of filters. Trees come in, the same trees with
// one span for each chain go out, alone or with the chain below it. Nothing here fails.

package report

import (
	"fmt"
	"strings"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// isFilter: the API server makes a span for each filter in front of the request's handler
// (k8s.io/apiserver/pkg/endpoints/filterlatency, whose scope is misspelt there). Each holds
// the next one and nothing else, so they push what matters four levels down.
func isFilter(s *tracestore.Span) bool {
	return strings.HasSuffix(s.Scope, "/endpoints/filterlatency") && s.Kind != tracestore.KindServer && s.Status != tracestore.StatusError && len(s.Links) == 0
}

// filters is what becomes of the chain.
type filters uint8

const (
	filtersAsTheyAre filters = iota
	filtersOneLine           // "+4 filters"
	filtersBelowLine         // the same, with the chain below it, to be opened
)

// foldFilters puts one row in the place of two or more filters, and what is below them
// beside it. One filter alone stays: its name says more than a number. It notes in l which
// chain a row stands for.
func (l *layout) foldFilters(n *tracestore.Node, how filters) *tracestore.Node {
	folded := &tracestore.Node{Span: n.Span, Lost: n.Lost}
	for _, child := range n.Children {
		if !isFilter(child.Span) {
			folded.Children = append(folded.Children, l.foldFilters(child, how))
			continue
		}
		var chain, below []*tracestore.Node
		filterChain(child, &chain, &below)
		if len(chain) < 2 {
			folded.Children = append(folded.Children, l.foldFilters(child, how))
			continue
		}
		line := *child.Span
		line.Name, line.Kind, line.Events, line.Attributes = fmt.Sprintf("+%d filters", len(chain)), "", nil, nil
		line.Duration = 0
		for _, filter := range chain {
			for _, own := range l.working[filter.Span] {
				line.Duration += own.to.Sub(own.from)
			}
			l.critical[&line] = append(l.critical[&line], l.critical[filter.Span]...)
		}
		l.chains[&line] = child.Span
		l.working[&line] = []interval{{line.Start, line.End()}}
		group := &tracestore.Node{Span: &line}
		if how == filtersBelowLine {
			group.Children = []*tracestore.Node{onlyFilters(child)}
		}
		folded.Children = append(folded.Children, group)
		for _, other := range below {
			folded.Children = append(folded.Children, l.foldFilters(other, how))
		}
	}
	return folded
}

// onlyFilters is a chain without what is below it.
func onlyFilters(n *tracestore.Node) *tracestore.Node {
	only := &tracestore.Node{Span: n.Span, Lost: n.Lost}
	for _, child := range n.Children {
		if isFilter(child.Span) {
			only.Children = append(only.Children, onlyFilters(child))
		}
	}
	return only
}

// filterChain appends a filter with the filters below it, and what is below these.
func filterChain(n *tracestore.Node, chain, below *[]*tracestore.Node) {
	*chain = append(*chain, n)
	for _, child := range n.Children {
		if isFilter(child.Span) {
			filterChain(child, chain, below)
		} else {
			*below = append(*below, child)
		}
	}
}
