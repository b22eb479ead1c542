// This file folds the API server's chain of filters. Trees come in, the same trees with
// one span for each chain go out. Nothing here fails.

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

// foldFilters puts one row in the place of two or more filters, and what is below them
// beside it. One filter alone stays: its name says more than a number.
func foldFilters(n *tracestore.Node) *tracestore.Node {
	folded := &tracestore.Node{Span: n.Span, Lost: n.Lost}
	for _, child := range n.Children {
		if !isFilter(child.Span) {
			folded.Children = append(folded.Children, foldFilters(child))
			continue
		}
		var chain, below []*tracestore.Node
		filterChain(child, &chain, &below)
		if len(chain) < 2 {
			folded.Children = append(folded.Children, foldFilters(child))
			continue
		}
		line := *child.Span
		line.Name, line.Kind, line.Events, line.Attributes = fmt.Sprintf("+%d filters", len(chain)), "", nil, nil
		line.Duration = 0
		for _, filter := range chain {
			for _, own := range working(filter) {
				line.Duration += own.to.Sub(own.from)
			}
		}
		folded.Children = append(folded.Children, &tracestore.Node{Span: &line})
		for _, other := range below {
			folded.Children = append(folded.Children, foldFilters(other))
		}
	}
	return folded
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
