package main

import (
	"slices"
	"strings"
	"testing"
)

func TestAPIPathsHaveATemplateWithoutNamesOfObjects(t *testing.T) {
	for _, c := range []struct{ path, template, visible string }{
		{"/api", "/api", ""},
		{"/apis/apps/v1", "/apis/apps/v1", ""},
		{"/api/v1/nodes", "/api/v1/nodes", ""},
		{"/api/v1/nodes/n1", "/api/v1/nodes/{name}", ""},
		{"/api/v1/namespaces", "/api/v1/namespaces", ""},
		{"/api/v1/namespaces/prod", "/api/v1/namespaces/{name}", ""},
		{"/api/v1/namespaces/prod/", "/api/v1/namespaces/{name}", "/api/v1/namespaces/prod"},
		{"/api/v1/namespaces/prod/finalize", "/api/v1/namespaces/{name}/finalize", ""},
		{"/api/v1/namespaces/prod/configmaps", "/api/v1/namespaces/{namespace}/configmaps", ""},
		{"/api/v1/namespaces/prod/status/x", "/api/v1/namespaces/{namespace}/status/{name}", ""},
		{"/api/v1/namespaces/prod/pods/web", "/api/v1/namespaces/{namespace}/pods/{name}", ""},
		{"/api/v1/namespaces/prod/pods/web/exec", "/api/v1/namespaces/{namespace}/pods/{name}/exec", ""},
		{"/apis/apps/v1/namespaces/x/deployments/web/scale", "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale", ""},
		{"/apis/tracehook.dev/v1/things/a%2Fb", "/apis/tracehook.dev/v1/things/{name}", ""},
		{"/apis/custom.metrics.k8s.io/v1beta1/namespaces/x/pods/%2A/http_requests", "/apis/custom.metrics.k8s.io/v1beta1/namespaces/{namespace}/pods/{name}/http_requests", ""},
		{"/api/v1/watch/namespaces/x/pods", "/api/v1/watch/namespaces/{namespace}/pods", ""},
		{"/version", "/version", ""},
		{"/openapi/v3/apis/apps/v1", "/openapi/v3/{path}", ""},
		// Behind a proxy subresource lies somebody else's URL.
		{"/api/v1/namespaces/x/services/https:web:443/proxy/reset/hunter2", "/api/v1/namespaces/{namespace}/services/{name}/proxy/{path}", "/api/v1/namespaces/x/services/https:web:443/proxy/REDACTED"},
		{"/api/v1/nodes/n1/proxy/hunter2/hunter3", "/api/v1/nodes/{name}/proxy/{path}", "/api/v1/nodes/n1/proxy/REDACTED"},
		{"/api/v1/nodes/n1/HUNTER2", "/api/v1/nodes/{name}/{path}", "/api/v1/nodes/n1/REDACTED"},
		{"/api/v1/HUNTER2", "/api/v1/{path}", "/api/v1/REDACTED"},
		// What is no path of the API may be anything.
		{"/api/HUNTER2", "", "/REDACTED"},
		{"/hunter2", "", "/REDACTED"},
		{"/version/hunter2", "", "/REDACTED"},
		{"/", "", "/REDACTED"},
		{"", "", "/REDACTED"},
		{"//api//v1", "", "/REDACTED"},
	} {
		if c.visible == "" {
			c.visible = c.path
		}
		template, visible := apiRoute(c.path)
		if template != c.template || visible != c.visible {
			t.Errorf("%s\n got %q, shown as %q\nwant %q, shown as %q", c.path, template, visible, c.template, c.visible)
		}
	}
}

func FuzzAPIRouteShowsOnlyWhatItUnderstands(f *testing.F) {
	for _, path := range []string{"/api/v1/namespaces/a/pods/b/log", "/apis/x/v1/namespaces/a/b/c/proxy/d", "/openapi/v3/api", "//", "api"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		template, visible := apiRoute(path)
		if template == "" {
			if visible != "/REDACTED" {
				t.Fatalf("%q is no path of the API and is shown as %q", path, visible)
			}
			return
		}
		shown, made := strings.Split(visible, "/"), strings.Split(template, "/")
		if last := made[len(made)-1]; last == "{path}" && !strings.HasPrefix(template, "/openapi/v3/") && shown[len(shown)-1] != redacted {
			t.Fatalf("%q has the template %q and is shown as %q", path, template, visible)
		}
		given := strings.Split("/"+path, "/")
		for _, segment := range shown {
			if segment != redacted && !slices.Contains(given, segment) {
				t.Fatalf("%q is shown as %q, where %q comes from nowhere", path, visible, segment)
			}
		}
		for i, segment := range made {
			if !strings.HasPrefix(segment, "{") && segment != shown[i] {
				t.Fatalf("%q: template %q and %q differ in segment %d", path, template, visible, i)
			}
		}
	})
}
