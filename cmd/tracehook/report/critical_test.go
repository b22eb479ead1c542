package report

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

func TestTheCriticalPathIsWhatTheEndWaitsFor(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	for name, c := range map[string]struct {
		spans string // "id<parent from to"
		want  string
	}{
		"one span":                {"a 0 10", "a 0-10"},
		"one after the other":     {"a 0 10; b<a 1 3; c<a 4 9", "a 0-1 3-4 9-10, b 1-3, c 4-9"},
		"two at once":             {"a 0 10; b<a 1 9; c<a 1 5", "a 0-1 9-10, b 1-9"},
		"three in a chain":        {"a 0 10; b<a 0 10; c<b 2 10", "a, b 0-2, c 2-10"},
		"one that overlaps":       {"a 0 10; b<a 0 6; c<a 5 10; d<a 0 4", "a 4-5, c 5-10, d 0-4"},
		"a child that outlives":   {"a 0 10; b<a 5 20", "a 0-5, b 5-10"},
		"a child that comes late": {"a 0 10; b<a 12 20", "a 0-10"},
		"a clock that is behind":  {"a 5 10; b<a 0 8", "a 5-10"},
	} {
		var trace tracestore.Trace
		for _, text := range strings.Split(c.spans, ";") {
			var name string
			var from, to int
			if _, err := fmt.Sscan(text, &name, &from, &to); err != nil {
				t.Fatal(err)
			}
			id, parent, _ := strings.Cut(name, "<")
			trace.Spans = append(trace.Spans, tracestore.Span{ID: id, ParentID: parent, Start: at(from), Duration: at(to).Sub(at(from))})
		}
		path := criticalPath(trace.Forest()[0])
		var got []string
		for i := range trace.Spans {
			intervals, on := path[&trace.Spans[i]]
			if !on {
				continue
			}
			text := trace.Spans[i].ID
			for _, piece := range intervals {
				text += fmt.Sprintf(" %d-%d", piece.from.UnixMilli(), piece.to.UnixMilli())
			}
			got = append(got, text)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %s, want %s", name, strings.Join(got, ", "), c.want)
		}
	}
}

func TestASpanNamesItsObject(t *testing.T) {
	for _, c := range []struct {
		attributes map[string]any
		want       string
	}{
		{nil, ""},
		{map[string]any{"url.full": "https://127.0.0.1:21443/api/v1/namespaces/default/configmaps/hello?timeout=5s"}, "configmaps/hello in default"},
		{map[string]any{"url.path": "/apis/apps/v1/namespaces/shop/deployments/web/scale"}, "deployments/web in shop"},
		{map[string]any{"url.path": "/api/v1/namespaces/default/configmaps"}, "configmaps in default"},
		{map[string]any{"url.path": "/api/v1/namespaces/default"}, "namespaces/default"},
		{map[string]any{"url.path": "/api/v1/nodes/n1/proxy/pods"}, "nodes/n1"},
		{map[string]any{"url.path": "/apis/rbac.authorization.k8s.io/v1/clusterroles"}, "clusterroles"},
		{map[string]any{"url.path": "/openapi/v3"}, ""},
		{map[string]any{"url.path": "/apis/apps/v1"}, ""},
		{map[string]any{"url.path": "/mutate"}, ""},
		{map[string]any{"url.path": 7}, ""},
		{map[string]any{"url.full": "::"}, ""},
		{map[string]any{"url": "/apis/apps/v1/namespaces/shop/deployments/web"}, "deployments/web in shop"},
		{map[string]any{"key": "/configmaps/default/hello", "resource": "configmaps"}, "configmaps/hello in default"},
		{map[string]any{"key": "/clusterroles/admin", "resource": "clusterroles"}, "clusterroles/admin"},
		{map[string]any{"key": "/apiregistration.k8s.io/apiservices/v1", "resource": "apiservices"}, "apiservices/v1"},
		{map[string]any{"key": "plain"}, ""},
		{map[string]any{"url.path": "/mutate", "admission.request.resource": "/v1, Resource=configmaps", "admission.request.name": "hello", "k8s.namespace.name": "default"}, "configmaps/hello in default"},
		{map[string]any{"admission.request.resource": "apps/v1, Resource=deployments", "admission.request.name": ""}, "deployments"},
		{map[string]any{"k8s.pod.name": "web-1", "k8s.namespace.name": "shop", "k8s.container.name": "app"}, "pods/web-1 in shop"},
		{map[string]any{"k8s.deployment.name": "web"}, "deployments/web"},
		{map[string]any{"k8s.namespace.name": "shop"}, ""},
		{map[string]any{"k8s.node.name": "n1"}, "nodes/n1"},
		{map[string]any{"k8s.pod.name": "web-1", "k8s.node.name": "n1"}, "pods/web-1"},
	} {
		if got := objectOf(&tracestore.Span{Attributes: c.attributes}); got != c.want {
			t.Errorf("%v is %q, want %q", c.attributes, got, c.want)
		}
	}
}
