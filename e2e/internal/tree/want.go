// Package tree checks that a trace is the tree it should be. The expectation is
// data:
//
//	err := tree.Match(trace, tree.Want{
//		Name: "Create", Service: "apiserver", Kind: tracestore.KindInternal,
//		Events: []string{"About to store object in database"},
//		Children: []tree.Want{
//			{Name: "Call mutating webhook", Attributes: map[string]any{"operation": "CREATE", "UID": nil}},
//			{Name: "etcdserverpb.KV/Txn", Service: "etcd", Kind: tracestore.KindServer, Descendant: true},
//		},
//	})
//
// A shared trace id proves little; Match checks parenthood, span by span.
//
// This file is what comes in, and the check of one span against one Want: what
// differs goes out in words. Nothing here fails.
package tree

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// Want describes one span. Fields at their zero value are not checked, and a
// trace may hold more spans, attributes, events and links than are wanted.
type Want struct {
	Name    string // exact
	Service string // exact
	Kind    string // exact, one of the tracestore.Kind constants
	Status  string // "unset", "ok" or "error"

	// Attributes are checked by the type of the wanted value:
	//
	//	nil             the attribute is present
	//	*regexp.Regexp  it is a string that matches
	//	func(any) error nil means that it will do
	//	anything else   it is equal; all integer types are alike
	Attributes map[string]any
	// Absent attributes must not be there.
	Absent []string
	// Events must be there, in any order. One that ends in "*" is a prefix.
	Events []string
	Links  []tracestore.Link

	// Children are below this span: directly, unless they say otherwise. Their
	// order does not matter. Each one binds a span of its own.
	Children []Want
	// Descendant lets the span be anywhere below its parent. At the top it lets
	// the span be anywhere in the trace, which then need not be one whole tree.
	Descendant bool
	// ParentID, at the top only, is the id of a parent that is not part of the
	// trace because the test made it up: the one that was sent as traceparent.
	ParentID string
}

// size is the number of spans wanted, this one included.
func (w Want) size() int {
	n := 1
	for _, c := range w.Children {
		n += c.size()
	}
	return n
}

// String names the span that is wanted, for messages.
func (w Want) String() string { return describe(w.Service, w.Kind, w.Name) }

func describe(service, kind, name string) string {
	text := "any span"
	if name != "" {
		text = fmt.Sprintf("%q", name)
	}
	var about []string
	for _, s := range []string{service, kind} {
		if s != "" {
			about = append(about, s)
		}
	}
	if len(about) > 0 {
		text += " (" + strings.Join(about, ", ") + ")"
	}
	return text
}

func describeSpan(s *tracestore.Span) string { return describe(s.Service, s.Kind, s.Name) }

// differences says in what a span is not as wanted, wherever it is. None: it is.
func (w Want) differences(s *tracestore.Span) []string {
	var d []string
	differ := func(what, want, got string) {
		if want != "" && want != got {
			d = append(d, fmt.Sprintf("%s: want %q, got %q", what, want, got))
		}
	}
	differ("name", w.Name, s.Name)
	differ("service", w.Service, s.Service)
	differ("kind", w.Kind, s.Kind)
	differ("status", w.Status, cmp.Or(s.Status, "unset"))

	for _, key := range slices.Sorted(maps.Keys(w.Attributes)) {
		if text := attributeDifference(w.Attributes[key], s.Attributes, key); text != "" {
			d = append(d, "attribute "+key+": "+text)
		}
	}
	for _, key := range w.Absent {
		if got, there := s.Attributes[key]; there {
			d = append(d, fmt.Sprintf("attribute %s: want none, got %s", key, show(got)))
		}
	}
	for _, name := range w.Events {
		if !hasEvent(s.Events, name) {
			d = append(d, fmt.Sprintf("event %q: got %s", name, eventNames(s.Events)))
		}
	}
	for _, link := range w.Links {
		if !slices.Contains(s.Links, link) {
			d = append(d, fmt.Sprintf("link to %s-%s: got %s", link.TraceID, link.SpanID, linkNames(s.Links)))
		}
	}
	return d
}

func attributeDifference(want any, attributes map[string]any, key string) string {
	got, there := attributes[key]
	if !there {
		if want == nil {
			return "it is missing"
		}
		return fmt.Sprintf("want %s, it is missing", show(want))
	}
	switch want := want.(type) {
	case nil:
		return ""
	case func(any) error:
		if err := want(got); err != nil {
			return fmt.Sprintf("%v, got %s", err, show(got))
		}
		return ""
	case *regexp.Regexp:
		if text, ok := got.(string); !ok || !want.MatchString(text) {
			return fmt.Sprintf("want %s, got %s", show(want), show(got))
		}
		return ""
	default:
		if !reflect.DeepEqual(stored(want), stored(got)) {
			return fmt.Sprintf("want %s, got %s", show(want), show(got))
		}
		return ""
	}
}

// stored gives a value the type that a trace store gives it.
func stored(v any) any {
	switch r := reflect.ValueOf(v); {
	case !r.IsValid():
		return nil
	case r.CanInt():
		return r.Int()
	case r.CanUint():
		return int64(r.Uint())
	case r.CanFloat():
		return r.Float()
	case r.Kind() == reflect.String:
		return r.String()
	default:
		return v
	}
}

// show writes a value so that 1 and "1" look different.
func show(v any) string {
	switch v := v.(type) {
	case func(any) error:
		return "a value that passes a check"
	case *regexp.Regexp:
		return "/" + v.String() + "/"
	case string:
		return fmt.Sprintf("%q", v)
	default:
		return fmt.Sprintf("%v (%T)", v, v)
	}
}

func hasEvent(events []tracestore.Event, name string) bool {
	prefix, isPrefix := strings.CutSuffix(name, "*")
	return slices.ContainsFunc(events, func(e tracestore.Event) bool {
		return e.Name == name || isPrefix && strings.HasPrefix(e.Name, prefix)
	})
}

func eventNames(events []tracestore.Event) string {
	var names []string
	for _, e := range events {
		names = append(names, fmt.Sprintf("%q", e.Name))
	}
	return cmp.Or(strings.Join(names, ", "), "no events")
}

func linkNames(links []tracestore.Link) string {
	var names []string
	for _, l := range links {
		names = append(names, l.TraceID+"-"+l.SpanID)
	}
	return cmp.Or(strings.Join(names, ", "), "no links")
}
