package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

var traceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-01$`)

// created is one create in a trace: from the client's API call down to etcd.
// uid receives the join key from both sides of the admission call.
func created(route, resource string, uid *[2]string) tree.Want {
	capture := func(i int) func(any) error {
		return func(v any) error {
			uid[i] = fmt.Sprint(v)
			if v == "" {
				return fmt.Errorf("want a UID")
			}
			return nil
		}
	}
	return tree.Want{
		Name: "POST " + route, Service: "kubectl", Kind: tracestore.KindClient,
		Attributes: map[string]any{"http.request.method": "POST", "http.response.status_code": 201},
		Children: []tree.Want{{
			Name: "POST " + strings.ReplaceAll(route, "{namespace}", "{:namespace}"), Service: "apiserver", Kind: tracestore.KindServer,
			Attributes: since(34, map[string]any{"audit-id": nil}),
			Children: []tree.Want{{
				Name: "Create", Service: "apiserver", Kind: tracestore.KindInternal, Descendant: true,
				Events: []string{"About to store object in database"},
				Children: []tree.Want{
					{
						Name: "Call mutating webhook", Service: "apiserver", Kind: tracestore.KindInternal,
						Attributes: map[string]any{"configuration": "tracehook", "webhook": "trace-context.tracehook.dev", "operation": "CREATE", "UID": capture(0)},
						Events:     []string{"Request completed", "Patch applied"},
						Children: []tree.Want{{
							Name: "HTTP POST", Service: "apiserver", Kind: tracestore.KindClient,
							Attributes: since(35, map[string]any{"url.full": called("tracehook.tracehook-system.svc", "/mutate")}),
							Children: []tree.Want{{
								Name: "POST /mutate", Service: "tracehook", Kind: tracestore.KindServer, Status: "unset",
								Attributes: map[string]any{
									"admission.request.uid":               capture(1),
									"admission.request.operation":         "CREATE",
									"admission.request.resource":          resource,
									"admission.request.dry_run":           false,
									"admission.response.allowed":          true,
									"admission.response.patch.operations": 1,
									"k8s.namespace.name":                  "default",
									"http.response.status_code":           200,
								},
								Children: []tree.Want{{Name: "mutate trace-context", Service: "tracehook", Kind: tracestore.KindInternal}},
							}},
						}},
					},
					{
						Name: "Create etcd3", Service: "apiserver", Kind: tracestore.KindInternal,
						Events: []string{"Txn call succeeded"},
						Children: []tree.Want{{
							Name: "etcdserverpb.KV/Txn", Service: "apiserver", Kind: tracestore.KindClient,
							Children: []tree.Want{{Name: "etcdserverpb.KV/Txn", Service: "etcd", Kind: tracestore.KindServer}},
						}},
					},
				},
			}},
		}},
	}
}

func TestOneKubectlCreateIsOneTraceFromTheClientToEtcd(t *testing.T) {
	for _, test := range []struct {
		name, route, resource string
		create                []string
		object                string
	}{
		{"configmap", "/api/v1/namespaces/{namespace}/configmaps", "v1/configmaps", []string{"create", "configmap", "one-trace", "--from-literal=a=b"}, "configmap/one-trace"},
		{"pod", "/api/v1/namespaces/{namespace}/pods", "v1/pods", []string{"run", "one-trace", "--image=registry.k8s.io/pause:3.10"}, "pod/one-trace"},
		{"deployment", "/apis/apps/v1/namespaces/{namespace}/deployments", "apps/v1/deployments", []string{"create", "deployment", "one-trace", "--image=registry.k8s.io/pause:3.10"}, "deployment/one-trace"},
	} {
		t.Run(test.name, func(t *testing.T) {
			id, _, _ := traced(t, installed.Kubeconfig, test.create...)
			t.Cleanup(func() { mustKubectl(t, "delete", test.object, "--wait=false") })

			var uid [2]string
			trace := wantTrace(t, id, tree.Want{
				Name: "kubectl " + test.create[0], Service: "kubectl", Kind: tracestore.KindInternal,
				Children: []tree.Want{created(test.route, test.resource, &uid)},
			})
			if uid[0] != uid[1] {
				t.Errorf("`Call mutating webhook` has UID %s, tracehook's span admission.request.uid %s", uid[0], uid[1])
			}

			stamp := mustKubectl(t, "get", test.object, "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
			match := traceparent.FindStringSubmatch(stamp)
			if match == nil || match[1] != id {
				t.Fatalf("%s is stamped %q, want a traceparent of trace %s", test.object, stamp, id)
			}
			for _, span := range trace.Spans {
				if span.ID == match[2] && span.Service == "tracehook" {
					return
				}
			}
			t.Errorf("%s is stamped with span %s, which is no span of tracehook in its trace", test.object, match[2])
		})
	}
}

// An API server takes the context of two groups as parent and only links to
// everybody else's; the user is told, and the admission call is traced all the same.
func TestAUserWhoseContextIsOnlyLinkedToIsTold(t *testing.T) {
	kubeconfig, err := installed.User("dora", "developers")
	if err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "create", "clusterrolebinding", "dora-edits", "--clusterrole=edit", "--user=dora")
	t.Cleanup(func() { mustKubectl(t, "delete", "clusterrolebinding/dora-edits") })

	id, _, stderr := traced(t, kubeconfig, "create", "configmap", "only-linked")
	t.Cleanup(func() { mustKubectl(t, "delete", "configmap/only-linked") })
	if !strings.Contains(stderr, "links to this one") || !strings.Contains(stderr, "system:monitoring") {
		t.Errorf("stderr does not say what to do:\n%s", stderr)
	}
	stamp := mustKubectl(t, "get", "configmap/only-linked", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
	match := traceparent.FindStringSubmatch(stamp)
	if match == nil || match[1] == id {
		t.Fatalf("stamped %q, want the API server's own trace and not %s", stamp, id)
	}
	client := wantTrace(t, id, tree.Want{Name: "kubectl create", Service: "kubectl", Children: []tree.Want{
		{Name: "POST /api/v1/namespaces/{namespace}/configmaps", Service: "kubectl", Kind: tracestore.KindClient},
	}})
	var links []tracestore.Link
	for _, span := range client.Spans {
		if span.Kind == tracestore.KindClient && strings.HasPrefix(span.Name, "POST /api/v1/namespaces/") {
			links = append(links, tracestore.Link{TraceID: id, SpanID: span.ID})
		}
	}
	wantTrace(t, match[1], tree.Want{Name: "POST /api/v1/namespaces/{:namespace}/configmaps", Service: "apiserver", Kind: tracestore.KindServer, Links: links, Children: []tree.Want{
		{Name: "POST /mutate", Service: "tracehook", Descendant: true},
	}})
}

// With the least privilege that is enough, it is one trace again.
func TestAMemberOfSystemMonitoringGetsOneTrace(t *testing.T) {
	kubeconfig, err := installed.User("mona", "system:monitoring")
	if err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "create", "clusterrolebinding", "mona-edits", "--clusterrole=edit", "--user=mona")
	t.Cleanup(func() { mustKubectl(t, "delete", "clusterrolebinding/mona-edits") })
	id, _, stderr := traced(t, kubeconfig, "create", "configmap", "monitored")
	t.Cleanup(func() { mustKubectl(t, "delete", "configmap/monitored") })
	if strings.Contains(stderr, "links to this one") {
		t.Errorf("stderr warns without need:\n%s", stderr)
	}
	var uid [2]string
	wantTrace(t, id, tree.Want{Name: "kubectl create", Service: "kubectl", Children: []tree.Want{
		created("/api/v1/namespaces/{namespace}/configmaps", "v1/configmaps", &uid),
	}})
}

func TestADryRunIsTracedAndStoresNothing(t *testing.T) {
	id, out, _ := traced(t, installed.Kubeconfig, "create", "configmap", "dry", "--dry-run=server", "-o", "yaml")
	if !strings.Contains(out, "tracehook.dev/traceparent: 00-"+id) {
		t.Errorf("the answer to the dry run lacks the stamp of trace %s:\n%s", id, out)
	}
	wantTrace(t, id, tree.Want{Name: "kubectl create", Children: []tree.Want{
		{Name: "POST /mutate", Service: "tracehook", Descendant: true, Attributes: map[string]any{"admission.request.dry_run": true}},
	}})
	if _, err := installed.Kubectl(story.Within(t, time.Minute), "get", "configmap/dry"); err == nil {
		t.Error("the dry run has stored the object")
	}
}
