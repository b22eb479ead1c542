// This file names the Kubernetes object that a span is about. A span's attributes come in,
// a name goes out, "" where none is told. Pure.

package report

import (
	"net/url"
	"strings"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// objectOf reads, in this order, what admission spans, those of the semantic conventions
// (k8s.*), requests of the Kubernetes API and the API server's spans of etcd say.
func objectOf(s *tracestore.Span) string {
	text := func(key string) string {
		value, _ := s.Attributes[key].(string)
		return value
	}
	if _, resource, found := strings.Cut(text("admission.request.resource"), "Resource="); found {
		return objectName(resource, text("admission.request.name"), text("k8s.namespace.name"))
	}
	for _, kind := range []string{"pod", "replicaset", "deployment", "statefulset", "daemonset", "job", "cronjob", "node"} {
		if name := text("k8s." + kind + ".name"); name != "" {
			return objectName(kind+"s", name, text("k8s.namespace.name"))
		}
	}
	for _, key := range []string{"url.path", "url.full", "url"} {
		if u, err := url.Parse(text(key)); err == nil {
			if name := objectAt(u.Path); name != "" {
				return name
			}
		}
	}
	// /RESOURCE[/NAMESPACE]/NAME, where custom resources have their group in front.
	parts := strings.Split(strings.TrimPrefix(text("key"), "/"), "/")
	for i, part := range parts {
		if part != text("resource") || part == "" {
			continue
		}
		switch left := parts[i+1:]; len(left) {
		case 1:
			return objectName(part, left[0], "")
		case 2:
			return objectName(part, left[1], left[0])
		}
	}
	return ""
}

// objectAt is the object at a path of the Kubernetes API.
func objectAt(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) > 2:
		parts = parts[2:]
	case parts[0] == "apis" && len(parts) > 3:
		parts = parts[3:]
	default:
		return ""
	}
	namespace := ""
	if parts[0] == "namespaces" && len(parts) > 2 {
		namespace, parts = parts[1], parts[2:]
	}
	name := ""
	if len(parts) > 1 {
		name = parts[1]
	}
	return objectName(parts[0], name, namespace)
}

func objectName(resource, name, namespace string) string {
	if name != "" {
		resource += "/" + name
	}
	if namespace != "" {
		resource += " in " + namespace
	}
	return resource
}
