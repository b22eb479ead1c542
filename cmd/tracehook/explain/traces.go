package explain

// What traces tell. In: the spans of a request, and of a Pod on its node. Out: which command it was, how long the request and
// its parts took. Pure.

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// Names of spans, as `tracehook trace`, the API server, kubelets and containerd give them.
const (
	commandScope    = "github.com/tracehook/tracehook/cmd/tracehook"
	mutatingSpan    = "Call mutating webhook"
	validatingSpan  = "Call validating webhook"
	storageSuffix   = " etcd3"
	createdSpan     = "Create etcd3"
	apiServer       = "apiserver"
	keyAuditID      = "audit-id"
	keyWebhook      = "webhook"
	keyStorage      = "key"
	keyPodUID       = "k8s.pod.uid"
	keyUserAgent    = "user_agent.original"
	keyMethod       = "http.request.method"
	keyPath         = "url.path"
	keyKind         = "tracehook.gitops.kind"
	keyApplication  = "tracehook.gitops.application"
	keyRepository   = "vcs.repository.url.full"
	keyRef          = "vcs.ref.head.name"
	keyRevision     = "vcs.ref.head.revision"
	mostParts       = 3
	mostNodeTraces  = 5
	mostStoreTraces = 20
)

// traceNode is a span in its place; parents are looked up from below.
type traceNode struct {
	*tracestore.Node
	parent *traceNode
}

// traceTree is a trace with the way from any span to its root.
type traceTree struct {
	roots []*tracestore.Node
	byID  map[string]*traceNode
}

func treeOf(t tracestore.Trace) traceTree {
	tree := traceTree{roots: t.Forest(), byID: map[string]*traceNode{}}
	var add func(n *tracestore.Node, parent *traceNode)
	add = func(n *tracestore.Node, parent *traceNode) {
		node := &traceNode{n, parent}
		if tree.byID[n.Span.ID] == nil {
			tree.byID[n.Span.ID] = node
		}
		for _, child := range n.Children {
			add(child, node)
		}
	}
	for _, root := range tree.roots {
		add(root, nil)
	}
	return tree
}

// requestAbove is the API server's span of the request that a span is part of, or else the client's span of it; nil: neither
// has arrived.
func (t traceTree) requestAbove(spanID string) *traceNode {
	var client *traceNode
	for n := t.byID[spanID]; n != nil; n = n.parent {
		switch {
		case n.Span.Service == apiServer && n.Span.Kind == tracestore.KindServer:
			return n
		case n.Span.Kind == tracestore.KindClient && n.Span.Service != apiServer:
			client = n
		}
	}
	return client
}

// source is what tracehook saw on the object whose cause a span is; nil: nothing. A span `create <Kind>` is below that of the owner.
func (t traceTree) source(spanID string) *Source {
	for n := t.byID[spanID]; n != nil; n = n.parent {
		text := func(key string) string {
			value, _ := n.Span.Attributes[key].(string)
			return value
		}
		s := Source{Kind: text(keyKind), Application: text(keyApplication), Repository: text(keyRepository), Ref: text(keyRef), Revision: text(keyRevision)}
		if s != (Source{}) {
			return &s
		}
	}
	return nil
}

// factsOf tells what a trace knows of the cause that is its span.
func factsOf(t tracestore.Trace, spanID string) *TraceFacts {
	tree := treeOf(t)
	f := &TraceFacts{Spans: len(t.Spans), Source: tree.source(spanID)}
	if command := commandOf(tree.roots); command != nil {
		f.Command, f.CommandSeconds = command.Name, command.Duration.Seconds()
	}
	request := tree.requestAbove(spanID)
	if request == nil {
		return f
	}
	s := request.Span
	f.Request, f.RequestSeconds, f.start = s.Name, s.Duration.Seconds(), s.Start
	f.AuditID, _ = s.Attributes[keyAuditID].(string)
	f.UserAgent, _ = s.Attributes[keyUserAgent].(string)
	method, _ := s.Attributes[keyMethod].(string)
	if path, _ := s.Attributes[keyPath].(string); path != "" {
		f.Request = strings.TrimSpace(method + " " + path)
	}
	f.Slowest = partsOf(request.Node)
	// A client that the API server does not take as a parent is linked to.
	if f.Command == "" && len(s.Links) > 0 {
		f.link = s.Links[0].TraceID
	}
	return f
}

// commandOf is the root span of `tracehook trace`; nil: another client made the request.
func commandOf(roots []*tracestore.Node) *tracestore.Span {
	for _, root := range roots {
		if root.Span.Scope == commandScope && root.Span.ParentID == "" {
			return root.Span
		}
	}
	return nil
}

// partsOf returns what took longest below a request: webhooks and etcd as a whole, everything else without what it waited for.
func partsOf(request *tracestore.Node) []Part {
	var parts []Part
	var walk func(n *tracestore.Node)
	walk = func(n *tracestore.Node) {
		webhook, _ := n.Span.Attributes[keyWebhook].(string)
		switch name := n.Span.Name; {
		case (name == mutatingSpan || name == validatingSpan) && webhook != "":
			parts = append(parts, Part{What: "webhook " + webhook, Seconds: n.Span.Duration.Seconds()})
			return
		case strings.HasSuffix(name, storageSuffix):
			parts = append(parts, Part{What: "etcd " + strings.TrimSuffix(name, storageSuffix), Seconds: n.Span.Duration.Seconds()})
			return
		}
		parts = append(parts, Part{What: n.Span.Name + " in " + n.Span.Service, Seconds: selfTime(n).Seconds()})
		for _, child := range n.Children {
			walk(child)
		}
	}
	walk(request)
	slices.SortStableFunc(parts, func(a, b Part) int { return cmp.Compare(b.Seconds, a.Seconds) })
	return parts[:min(mostParts, len(parts))]
}

// selfTime is how long a span took without its children, which may overlap and outlast it.
func selfTime(n *tracestore.Node) time.Duration {
	left := n.Span.Duration
	from, end := n.Span.Start, n.Span.End()
	for _, child := range n.Children { // in the order of their starts
		begin, over := child.Span.Start, child.Span.End()
		if begin.Before(from) {
			begin = from
		}
		if over.After(end) {
			over = end
		}
		if over.After(begin) {
			left -= over.Sub(begin)
			from = over
		}
	}
	return max(0, left)
}

// creationOf finds the request that stored an object under that key.
func creationOf(t tracestore.Trace, key string) *Creation {
	tree := treeOf(t)
	for i := range t.Spans {
		s := &t.Spans[i]
		if s.Name != createdSpan || s.Attributes[keyStorage] != key {
			continue
		}
		request := tree.requestAbove(s.ID)
		if request == nil {
			continue
		}
		return &Creation{TraceID: t.ID, Start: request.Span.Start, Seconds: request.Span.Duration.Seconds(), Slowest: partsOf(request.Node)}
	}
	return nil
}

// storageKey is how the API server's spans call an object (kube-apiserver's --etcd-prefix is left out there).
func storageKey(o AuditObject) string {
	parts := []string{""}
	if strings.Contains(o.Resource.Group, ".") && !strings.HasSuffix(o.Resource.Group, ".k8s.io") {
		parts = append(parts, o.Resource.Group) // a custom resource
	}
	parts = append(parts, o.Resource.Resource)
	if o.Namespace != "" {
		parts = append(parts, o.Namespace)
	}
	return strings.Join(append(parts, o.Name), "/")
}

// nodeWork tells what a node's kubelet and containerd did for a Pod, the longest first told, in the order of their starts.
func nodeWork(traces []tracestore.Trace, uid string) []NodeWork {
	var list []NodeWork
	for _, t := range traces {
		tree := treeOf(t)
		for _, root := range tree.roots {
			if !ofPod(root, uid) {
				continue
			}
			w := NodeWork{TraceID: t.ID, Service: root.Span.Service, Name: root.Span.Name, Start: root.Span.Start, Seconds: root.Span.Duration.Seconds(), Failed: root.Span.Status == tracestore.StatusError}
			w.Slowest = partsOf(root)
			list = append(list, w)
		}
	}
	slices.SortStableFunc(list, func(a, b NodeWork) int { return cmp.Compare(b.Seconds, a.Seconds) })
	list = list[:min(mostNodeTraces, len(list))]
	slices.SortStableFunc(list, func(a, b NodeWork) int { return a.Start.Compare(b.Start) })
	return list
}

// ofPod says whether a span of the tree names the Pod.
func ofPod(root *tracestore.Node, uid string) (found bool) {
	root.Walk(func(n *tracestore.Node, _ int) { found = found || n.Span.Attributes[keyPodUID] == uid })
	return found
}
