package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

const stampPath = `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`

// stampOf returns the trace that an object says it was caused by.
func stampOf(t *testing.T, object string) (traceID string) {
	t.Helper()
	stamp := mustKubectl(t, "get", object, "-o", stampPath)
	match := traceparent.FindStringSubmatch(stamp)
	if match == nil {
		t.Fatalf("%s is stamped %q, want a traceparent", object, stamp)
	}
	return match[1]
}

func wantStamp(t *testing.T, object, traceID, after string) {
	t.Helper()
	if got := stampOf(t, object); got != traceID {
		t.Errorf("after %s: %s says it was caused by trace %s, want %s", after, object, got, traceID)
	}
}

func manifest(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const deploymentManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, annotations: {team: shop}}
spec:
  replicas: 0
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec: {containers: [{name: main, image: "IMAGE"}]}
`

func deployment(t *testing.T, name, image string) (path string) {
	t.Helper()
	return manifest(t, strings.NewReplacer("NAME", name, "IMAGE", image).Replace(deploymentManifest))
}

// Whatever way a Deployment is written, its stamp is the request that last changed
// what is wanted of it, and nothing else on it is disturbed.
func TestTheStampIsTheRequestThatLastChangedWhatIsWanted(t *testing.T) {
	for _, test := range []struct {
		way   string
		write func(path string) []string
	}{
		{"client-side apply", func(path string) []string { return []string{"apply", "-f", path} }},
		{"server-side apply", func(path string) []string { return []string{"apply", "--server-side", "-f", path} }},
		{"replace", func(path string) []string { return []string{"replace", "-f", path} }},
	} {
		t.Run(test.way, func(t *testing.T) {
			name := strings.ReplaceAll("stamp-"+test.way, " ", "-")
			object := "deployment/" + name
			created, _, _ := traced(t, installed.Kubeconfig, "create", "-f", deployment(t, name, "app:1"))
			if test.way != "replace" {
				mustKubectl(t, "delete", object)
				created, _, _ = traced(t, installed.Kubeconfig, test.write(deployment(t, name, "app:1"))...)
			}
			t.Cleanup(func() { mustKubectl(t, "delete", object) })
			wantStamp(t, object, created, "create by "+test.way)

			changed, _, _ := traced(t, installed.Kubeconfig, test.write(deployment(t, name, "app:2"))...)
			wantStamp(t, object, changed, test.way+" with another image")
			if team := mustKubectl(t, "get", object, "-o", "jsonpath={.metadata.annotations.team}"); team != "shop" {
				t.Errorf("annotation team is %q", team)
			}

			// The same once more: no conflict, no change, no new stamp.
			before := mustKubectl(t, "get", object, "-o", "jsonpath={.metadata.generation}")
			if test.way != "replace" { // which brings no stamp along, so that the API server removes it first
				traced(t, installed.Kubeconfig, test.write(deployment(t, name, "app:2"))...)
				wantStamp(t, object, changed, "the same "+test.way+" again")
			}
			if after := mustKubectl(t, "get", object, "-o", "jsonpath={.metadata.generation}"); after != before {
				t.Errorf("generation %s → %s without a change", before, after)
			}
		})
	}
}

func TestEditPatchAndSetImageRestampAndALabelDoesNot(t *testing.T) {
	const object = "deployment/patched"
	created, _, _ := traced(t, installed.Kubeconfig, "create", "-f", deployment(t, "patched", "app:1"))
	t.Cleanup(func() { mustKubectl(t, "delete", object) })
	wantStamp(t, object, created, "create")

	t.Setenv("KUBE_EDITOR", "sed -i s/app:1/app:2/")
	for _, step := range []struct {
		command  []string
		restamps bool
	}{
		{[]string{"edit", object}, true},
		{[]string{"label", object, "a=b"}, false},
		{[]string{"patch", object, "--type=merge", "-p", `{"spec":{"paused":true}}`}, true},
		{[]string{"annotate", object, "note=x"}, false},
		{[]string{"set", "image", object, "main=app:3"}, true},
	} {
		last := stampOf(t, object)
		id, _, _ := traced(t, installed.Kubeconfig, step.command...)
		if step.restamps {
			last = id
		}
		wantStamp(t, object, last, "kubectl "+strings.Join(step.command, " "))
	}
}

// A client's own context is kept, and linked from our span; one that is none is
// replaced, and the client is told.
func TestAClientsOwnContextIsKeptAndABrokenOneReplacedWithAWarning(t *testing.T) {
	const own = "00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01"
	id, _, _ := traced(t, installed.Kubeconfig, "create", "-f", manifest(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: own-context, annotations: {tracehook.dev/traceparent: "`+own+`"}}
`))
	t.Cleanup(func() { mustKubectl(t, "delete", "configmap/own-context") })
	wantStamp(t, "configmap/own-context", "0102030405060708090a0b0c0d0e0f10", "create with a context")
	wantTrace(t, id, tree.Want{Name: "kubectl create", Children: []tree.Want{
		{Name: "POST /mutate", Service: "tracehook", Descendant: true,
			Links: []tracestore.Link{{TraceID: "0102030405060708090a0b0c0d0e0f10", SpanID: "0102030405060708"}},
			Children: []tree.Want{
				{Name: "mutate trace-context", Attributes: map[string]any{"tracehook.stamp": "kept"}},
			}},
	}})

	id, _, stderr := traced(t, installed.Kubeconfig, "create", "-f", manifest(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: broken-context, annotations: {tracehook.dev/traceparent: "yesterday"}}
`))
	t.Cleanup(func() { mustKubectl(t, "delete", "configmap/broken-context") })
	wantStamp(t, "configmap/broken-context", id, "create with a broken context")
	if !strings.Contains(stderr, `Warning: annotation tracehook.dev/traceparent: "yesterday" is no W3C traceparent`) {
		t.Errorf("kubectl printed no warning:\n%s", stderr)
	}
}

func TestANameThatTheAPIServerMakesIsStampedToo(t *testing.T) {
	id, out, _ := traced(t, installed.Kubeconfig, "create", "-o", "name", "-f", manifest(t, `
apiVersion: v1
kind: ConfigMap
metadata: {generateName: made-}
`))
	object := strings.TrimSpace(out)
	t.Cleanup(func() { mustKubectl(t, "delete", object) })
	wantStamp(t, object, id, "create with generateName")
}

// Custom resources work, and fields that nobody has a type for survive.
func TestACustomResourceIsStampedAndKeepsItsUnknownFields(t *testing.T) {
	mustKubectl(t, "apply", "-f", manifest(t, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`))
	t.Cleanup(func() { mustKubectl(t, "delete", "crd/widgets.example.org") })
	mustKubectl(t, "wait", "--for=condition=Established", "crd/widgets.example.org")
	mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p",
		`[{"op":"add","path":"/webhooks/0/rules/-","value":{"operations":["CREATE","UPDATE"],"apiGroups":["example.org"],"apiVersions":["*"],"resources":["widgets"]}}]`)
	t.Cleanup(func() { reinstall(t) })
	if err := installed.SetCABundle(story.Within(t, time.Minute), installed.caBundle); err != nil { // waits until the rule is in force
		t.Fatal(err)
	}
	const widget = `
apiVersion: example.org/v1
kind: Widget
metadata: {name: w}
spec: {big: 9007199254740993, nested: {a: [1, 2.5, null, {b: ""}]}}
`
	id, _, _ := traced(t, installed.Kubeconfig, "create", "-f", manifest(t, widget))
	wantStamp(t, "widget/w", id, "create")
	if got, want := mustKubectl(t, "get", "widget/w", "-o", "jsonpath={.spec}"), `{"big":9007199254740993,"nested":{"a":[1,2.5,null,{"b":""}]}}`; got != want {
		t.Errorf("spec is %s, want %s", got, want)
	}
	id, _, _ = traced(t, installed.Kubeconfig, "patch", "widget/w", "--type=merge", "-p", `{"spec":{"more":true}}`)
	wantStamp(t, "widget/w", id, "patch")
}

// Another webhook changes the object after us, so the API server calls us a second
// time in the same request: the stamp stays the first call's.
func TestAReinvocationDoesNotStampAnew(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	dir := t.TempDir()
	bundle, err := certificates.Issue(ctx, installed.tracehook, "tracehook-system/tracehook-other", dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := installed.StartWebhook(ctx, cluster.WebhookOptions{CertDir: dir, Name: "tracehook-other", Args: []string{"--annotation-key=other.example.org/traceparent"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := other.Stop(); err != nil {
			t.Error(err)
		}
	})
	secondWebhook(t, ctx, other.Port, bundle)

	id, _, _ := traced(t, installed.Kubeconfig, "create", "configmap", "reinvoked")
	t.Cleanup(func() { mustKubectl(t, "delete", "configmap/reinvoked") })
	trace := wantTrace(t, id, tree.Want{Name: "kubectl create", Children: []tree.Want{
		{Name: "mutate trace-context", Service: "tracehook", Descendant: true, Attributes: map[string]any{"tracehook.stamp": "created"}},
		{Name: "mutate trace-context", Service: "tracehook", Descendant: true, Attributes: map[string]any{"tracehook.stamp": "created"}},
		{Name: "mutate trace-context", Service: "tracehook", Descendant: true, Attributes: map[string]any{"tracehook.stamp": "same_trace"}},
	}})
	stamp := traceparent.FindStringSubmatch(mustKubectl(t, "get", "configmap/reinvoked", "-o", stampPath))
	var first tracestore.Span
	for _, span := range trace.Spans { // by start
		if span.Name == "POST /mutate" {
			first = span
			break
		}
	}
	if stamp == nil || stamp[2] != first.ID {
		t.Errorf("stamped %v, want the first call's span %s", stamp, first.ID)
	}
}

func secondWebhook(t *testing.T, ctx context.Context, port int, bundle []byte) {
	t.Helper()
	mustKubectl(t, "apply", "-f", manifest(t, fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: zz-other}
webhooks:
  - name: other.example.org
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: Fail
    clientConfig: {service: {namespace: tracehook-system, name: tracehook-other, path: /mutate, port: %[1]d}, caBundle: %[2]s}
    rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}]
---
apiVersion: v1
kind: Service
metadata: {name: tracehook-other, namespace: tracehook-system}
spec: {type: ExternalName, externalName: localhost, ports: [{port: %[1]d}]}
`, port, base64.StdEncoding.EncodeToString(bundle))))
	t.Cleanup(func() {
		mustKubectl(t, "delete", "mutatingwebhookconfiguration/zz-other")
		mustKubectl(t, "-n", "tracehook-system", "delete", "service/tracehook-other")
		reinstall(t)
	})
	if err := installed.SetCABundle(ctx, installed.caBundle); err != nil { // waits until both are in force
		t.Fatal(err)
	}
}

// From the audit event to the trace, and from the trace to the audit event.
func TestTheAuditEventNamesTheTraceAndTheTraceTheAuditEvent(t *testing.T) {
	id, _, _ := traced(t, installed.Kubeconfig, "create", "configmap", "audited")
	t.Cleanup(func() { mustKubectl(t, "delete", "configmap/audited") })
	event, err := installed.WaitAuditEvent(story.Within(t, 30*time.Second), func(e cluster.AuditEvent) bool {
		return e.Annotations[cluster.WebhookName+"/trace-id"] == id
	})
	if err != nil {
		t.Fatalf("no audit event names trace %s: %v", id, err)
	}
	if event.ObjectRef.Name != "audited" || event.Verb != "create" {
		t.Errorf("the audit event is about %s %s", event.Verb, event.ObjectRef.Name)
	}
	trace := wantTrace(t, id, tree.Want{Name: "kubectl create", Children: []tree.Want{
		{Name: "POST /api/v1/namespaces/{:namespace}/configmaps", Service: "apiserver", Descendant: true,
			Attributes: since(34, map[string]any{"audit-id": event.AuditID})},
		{Name: "POST /mutate", Service: "tracehook", Descendant: true},
	}})
	for _, span := range trace.Spans {
		if span.ID == event.Annotations[cluster.WebhookName+"/span-id"] && span.Name == "POST /mutate" {
			return
		}
	}
	t.Errorf("annotation span-id %q is not the span POST /mutate", event.Annotations[cluster.WebhookName+"/span-id"])
}
