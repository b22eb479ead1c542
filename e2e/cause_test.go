package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/copier"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
	"github.com/tracehook/tracehook/webhook/cause"
	tracedreconcile "github.com/tracehook/tracehook/webhook/cause/traced"
)

// The copier's work on one ConfigMap: a reconcile that makes the copy.
func aCopyBeingMade(namespace string, how string, links []tracestore.Link) tree.Want {
	return tree.Want{
		Name: "reconcile copier", Service: "copier", Kind: tracestore.KindInternal, Status: "unset", Links: links,
		Attributes: map[string]any{"tracehook.cause": how, "k8s.namespace.name": namespace, "tracehook.object.name": "source", "tracehook.object.uid": nil},
		Children: []tree.Want{{
			Name: "HTTP POST", Service: "copier", Kind: tracestore.KindClient, Attributes: map[string]any{"http.response.status_code": 201},
			Children: []tree.Want{{
				Name: "POST /api/v1/namespaces/{:namespace}/configmaps", Service: "apiserver", Kind: tracestore.KindServer,
				Children: []tree.Want{
					{Name: "POST /mutate", Service: "tracehook", Kind: tracestore.KindServer, Descendant: true,
						Attributes: map[string]any{"admission.request.name": "source-copy", "admission.request.operation": "CREATE"}},
					{Name: "etcdserverpb.KV/Txn", Service: "etcd", Kind: tracestore.KindServer, Descendant: true},
				},
			}},
		}},
	}
}

// copyOne runs the copier in a namespace of its own and creates a ConfigMap for it, in
// a trace. It returns the trace's id, and what tracehook stored on source and copy.
func copyOne(t *testing.T, o cause.Options) (namespace, id string, source, copied tracestore.Link) {
	t.Helper()
	// Its name is also the controller's, of which controller-runtime allows one a process.
	namespace = fmt.Sprintf("copied-%d", time.Now().UnixNano())
	mustKubectl(t, "create", "namespace", namespace)
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace", namespace, "--wait=false") })
	mgr, err := copier.New(installed.RESTConfig, namespace, tracedreconcile.Options{Name: "copier", Cause: o, TracerProvider: exportedAs(t, "copier")})
	if err != nil {
		t.Fatal(err)
	}
	run(t, mgr)

	file := filepath.Join(t.TempDir(), "source.yaml")
	manifest := "{apiVersion: v1, kind: ConfigMap, metadata: {name: source, labels: {" + copier.CopyLabel + ": please}}, data: {a: b}}"
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	id, _, _ = traced(t, installed.Kubeconfig, "create", "-n", namespace, "-f", file)
	return namespace, id, storedOn(t, namespace, "configmap/source"), storedOn(t, namespace, "configmap/source-copy")
}

// storedOn waits for an object and returns the trace context on it.
func storedOn(t *testing.T, namespace, object string) tracestore.Link {
	t.Helper()
	ctx := story.Within(t, 30*time.Second)
	for {
		stamp, err := installed.Kubectl(ctx, "-n", namespace, "get", object, "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
		if err == nil {
			match := traceparent.FindStringSubmatch(stamp)
			if match == nil {
				t.Fatalf("%s is stamped %q, want a sampled traceparent", object, stamp)
			}
			return tracestore.Link{TraceID: match[1], SpanID: match[2]}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no %s after 30s: %v", object, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestAControllersWorkLinksToTheRequestThatCausedIt(t *testing.T) {
	namespace, id, source, copied := copyOne(t, cause.Options{})
	if source.TraceID != id {
		t.Fatalf("the source is stamped with trace %s, want %s", source.TraceID, id)
	}
	// The copy was created in the reconcile's trace, which is how we find it.
	if copied.TraceID == id {
		t.Error("the reconcile is in the trace of the request that caused it, and not just linked to it")
	}
	wantTrace(t, copied.TraceID, aCopyBeingMade(namespace, "link", []tracestore.Link{source}))
}

func TestByOptionAControllersWorkIsInTheTraceOfTheRequestThatCausedIt(t *testing.T) {
	namespace, id, source, copied := copyOne(t, cause.Options{Parent: true})
	if source.TraceID != id || copied.TraceID != id {
		t.Fatalf("source and copy are stamped with traces %s and %s, want %s", source.TraceID, copied.TraceID, id)
	}
	wantTrace(t, id, tree.Want{Name: "kubectl create", Service: "kubectl", Children: []tree.Want{
		{Name: "POST /mutate", Service: "tracehook", Kind: tracestore.KindServer, Descendant: true,
			Attributes: map[string]any{"admission.request.name": "source"},
			Children:   []tree.Want{aCopyBeingMade(namespace, "parent", nil)}},
	}})
}
