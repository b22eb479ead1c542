package main

// Names of API calls. In: the path of a request. Out: what a span may say of it.
// Pure.

import (
	"regexp"
	"strings"
)

// redacted stands for the parts of a path that tracehook does not understand.
const redacted = "REDACTED"

// literal is what a group, version, resource or subresource looks like.
var literal = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$`)

// nonResourcePaths are the API server's other endpoints.
var nonResourcePaths = map[string]bool{
	"/.well-known/openid-configuration": true,
	"/healthz":                          true,
	"/livez":                            true,
	"/metrics":                          true,
	"/openapi/v2":                       true,
	"/openapi/v3":                       true,
	"/openid/v1/jwks":                   true,
	"/readyz":                           true,
	"/version":                          true,
}

// apiRoute reads a request's path (escaped, below the server's base URL) by the
// grammar of the Kubernetes API. template is the path with placeholders for the
// names of namespaces and objects, so few that they can name spans; "" where the
// path is no path of the API. visible is the path itself, without what lies behind
// an object's subresource: that belongs to whoever is proxied to.
//
//	/api/v1/namespaces/prod/pods/web       → /api/v1/namespaces/{namespace}/pods/{name}
//	/apis/apps/v1/namespaces/x/deployments → /apis/apps/v1/namespaces/{namespace}/deployments
//	/api/v1/nodes/n1/proxy/pods            → /api/v1/nodes/{name}/proxy/{path}
func apiRoute(path string) (template, visible string) {
	path = "/" + strings.Trim(path, "/")
	if nonResourcePaths[path] {
		return path, path
	}
	if strings.HasPrefix(path, "/openapi/v3/") {
		return "/openapi/v3/{path}", path
	}
	template, known := resourceRoute(strings.Split(path[1:], "/"))
	if template == "" {
		return "", "/" + redacted
	}
	return template, visiblePath(path, known)
}

// resourceRoute is the template for the segments of a path, and how many of them it
// covers; the placeholder {path} at its end stands for all the others.
func resourceRoute(segments []string) (template string, known int) {
	var b strings.Builder
	take := func(placeholder string) { // the next segment, or what stands for it
		if placeholder == "" {
			placeholder = segments[known]
		}
		b.WriteString("/" + placeholder)
		known++
	}
	left := func() int { return len(segments) - known }

	// /api/VERSION or /apis/GROUP/VERSION
	head := 0
	switch segments[0] {
	case "api":
		head = 2
	case "apis":
		head = 3
	default:
		return "", 0
	}
	for range min(head, len(segments)) {
		if !literal.MatchString(segments[known]) {
			return "", 0
		}
		take("")
	}
	if left() > 0 && segments[known] == "watch" { // the old way to watch
		take("")
	}
	if left() > 1 && segments[known] == "namespaces" && !isNamespaceItself(segments[known:]) {
		take("")
		take("{namespace}")
	}
	for _, placeholder := range []string{"", "{name}", ""} { // RESOURCE/NAME/SUBRESOURCE
		if left() == 0 {
			return b.String(), known
		}
		if placeholder == "" && !literal.MatchString(segments[known]) {
			break
		}
		take(placeholder)
	}
	if left() > 0 {
		b.WriteString("/{path}")
	}
	return b.String(), known
}

// isNamespaceItself tells namespaces/NAME[/SUBRESOURCE] from namespaces/NAME/RESOURCE.
func isNamespaceItself(segments []string) bool {
	return len(segments) == 2 || len(segments) == 3 && (segments[2] == "status" || segments[2] == "finalize")
}

// visiblePath is the first known segments of path.
func visiblePath(path string, known int) string {
	segments := strings.Split(path[1:], "/")
	if known < len(segments) {
		segments = append(segments[:known:known], redacted)
	}
	return "/" + strings.Join(segments, "/")
}
