package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
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

// patchAs sends a merge patch whose traceparent is this one.
func patchAs(t *testing.T, traceparent, apiVersion, resource, name, patch string) {
	t.Helper()
	config := rest.CopyConfig(installed.RESTConfig)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			r = r.Clone(r.Context())
			r.Header.Set("Traceparent", traceparent)
			return next.RoundTrip(r)
		})
	})
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Resource(gv.WithResource(resource)).Namespace("default").Patch(story.Within(t, time.Minute), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

const previousPath = `jsonpath={.metadata.annotations.tracehook\.dev/previous-traceparent}`

// An image updater's request is the new cause, also where it is not sampled; and who wanted the Deployment before is found from it.
func TestARestampKeepsTheWayBackAlsoWhereItIsNotSampled(t *testing.T) {
	const object = "deployment/updated"
	const updater, sampled = "0000000000000000000000000000beef", "0000000000000000000000000000bee0"
	id, _, _ := traced(t, installed.Kubeconfig, "create", "-f", deployment(t, "updated", "app:1"))
	t.Cleanup(func() { mustKubectl(t, "delete", object) })
	first := mustKubectl(t, "get", object, "-o", stampPath)

	for i, change := range []string{`{"spec":{"minReadySeconds":1}}`, `{"spec":{"minReadySeconds":2}}`} { // the second one does not bury the way back
		patchAs(t, fmt.Sprintf("00-%s-000000000000000%d-00", updater, i+1), "apps/v1", "deployments", "updated", change)
		if stamp := mustKubectl(t, "get", object, "-o", stampPath); !strings.HasPrefix(stamp, "00-"+updater) || !strings.HasSuffix(stamp, "-00") {
			t.Errorf("after the updater's change: stamped %q, want its trace, not sampled", stamp)
		}
		if previous := mustKubectl(t, "get", object, "-o", previousPath); previous != first {
			t.Errorf("the way back is %q, want %q of trace %s", previous, first, id)
		}
	}
	// A sampled one has a span, and that leads back, too.
	before := mustKubectl(t, "get", object, "-o", stampPath)
	patchAs(t, "00-"+sampled+"-0000000000000001-01", "apps/v1", "deployments", "updated", `{"spec":{"minReadySeconds":3}}`)
	wantStamp(t, object, sampled, "a sampled change")
	wantTrace(t, sampled, tree.Want{Name: "POST /mutate", Service: "tracehook", Descendant: true, Links: []tracestore.Link{{TraceID: updater, SpanID: before[36:52]}},
		Children: []tree.Want{{Name: "mutate trace-context", Attributes: map[string]any{"tracehook.stamp": "updated"}}}})
}

// The real autoscaler: it writes the Deployment's scale. Who deployed the image stays the cause, of the new Pod too.
func TestAnAutoscalerIsNotTheCauseOfADeployment(t *testing.T) {
	id, _, _ := traced(t, installed.Kubeconfig, "create", "deployment", "scaled", "--image=app:1", "--replicas=1")
	t.Cleanup(func() { mustKubectl(t, "delete", "deployment/scaled", "hpa/scaled", "--ignore-not-found") })
	podsOf(t, "app=scaled", 1)
	mustKubectl(t, "autoscale", "deployment/scaled", "--min=2", "--max=3", "--cpu=50%")
	eventually(t, time.Minute, func() error {
		if replicas := mustKubectl(t, "get", "deployment/scaled", "-o", "jsonpath={.spec.replicas}"); replicas != "2" {
			return fmt.Errorf("the Deployment wants %s replicas, want 2", replicas)
		}
		return nil
	})
	wantStamp(t, "deployment/scaled", id, "the autoscaler's work")
	for pod, stamp := range podsOf(t, "app=scaled", 2) {
		if stamp != id {
			t.Errorf("%s was caused by %s, want %s", pod, stamp, id)
		}
	}
	// Those that write the field directly, sampled or not, are treated alike.
	for _, traceparent := range []string{"00-0000000000000000000000000000dead-0000000000000001-00", "00-0000000000000000000000000000deae-0000000000000001-01"} {
		patchAs(t, traceparent, "apps/v1", "deployments", "scaled", `{"spec":{"replicas":3}}`)
		patchAs(t, traceparent, "apps/v1", "deployments", "scaled", `{"spec":{"replicas":2}}`)
		wantStamp(t, "deployment/scaled", id, "replicas were written")
	}
}

// What a client sends back to us: a copy is nobody's choice, a traceparent alone is.
func TestAStampThatComesBackIsToldFromOneThatIsPassedOn(t *testing.T) {
	created, _, _ := traced(t, installed.Kubeconfig, "create", "-f", deployment(t, "exported", "app:1"))
	t.Cleanup(func() { mustKubectl(t, "delete", "deployment/exported") })
	exported := mustKubectl(t, "get", "deployment/exported", "-o", "yaml")
	if !strings.Contains(exported, "tracehook.dev/traceparent") || !strings.Contains(exported, "tracehook.dev/caused-at") {
		t.Fatalf("exported without the stamp:\n%s", exported)
	}
	withoutVersion := regexp.MustCompile(`(?m)^  (resourceVersion|uid|generation|creationTimestamp): .*\n`)
	exported = withoutVersion.ReplaceAllString(exported, "")

	t.Run("an exported manifest of another name is this request's", func(t *testing.T) {
		id, _, _ := traced(t, installed.Kubeconfig, "create", "-f", manifest(t, strings.ReplaceAll(exported, "exported", "exported-2")))
		t.Cleanup(func() { mustKubectl(t, "delete", "deployment/exported-2") })
		wantStamp(t, "deployment/exported-2", id, "create of an exported manifest")
	})
	wantStamp(t, "deployment/exported", created, "create")
	changed, _, _ := traced(t, installed.Kubeconfig, "set", "image", "deployment/exported", "main=app:2")
	wantStamp(t, "deployment/exported", changed, "another image")
	now := mustKubectl(t, "get", "deployment/exported", "-o", "jsonpath={.metadata.annotations}")

	for _, way := range [][]string{{"apply"}, {"apply", "--server-side", "--force-conflicts"}, {"replace"}} {
		t.Run("without a change the present one stays, "+strings.Join(way, " "), func(t *testing.T) {
			traced(t, installed.Kubeconfig, append(way, "-f", manifest(t, strings.Replace(exported, "app:1", "app:2", 1)))...)
			wantStamp(t, "deployment/exported", changed, strings.Join(way, " ")+" of an exported manifest without a change")
			if stayed := mustKubectl(t, "get", "deployment/exported", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/caused-at}`); !strings.Contains(now, stayed) || stayed == "" {
				t.Errorf("caused at %q, before %s", stayed, now)
			}
		})
	}
	t.Run("with a change it is this request's", func(t *testing.T) {
		id, _, _ := traced(t, installed.Kubeconfig, "apply", "-f", manifest(t, strings.Replace(exported, "app:1", "app:3", 1)))
		wantStamp(t, "deployment/exported", id, "apply of an exported manifest with a change")
		if previous := mustKubectl(t, "get", "deployment/exported", "-o", previousPath); traceOfStamp(previous) != changed {
			t.Errorf("the way back is %q, want trace %s", previous, changed)
		}
	})
	t.Run("a TRACEPARENT that a process passes on is kept", func(t *testing.T) {
		injected := mustKubectl(t, "get", "deployment/exported", "-o", stampPath) // what a Pod of it would get
		mustKubectl(t, "create", "-f", manifest(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: passed-on, annotations: {tracehook.dev/traceparent: "+injected+"}}\n"))
		t.Cleanup(func() { mustKubectl(t, "delete", "configmap/passed-on") })
		if stamp := mustKubectl(t, "get", "configmap/passed-on", "-o", stampPath); stamp != injected {
			t.Errorf("stamped %q, want %q", stamp, injected)
		}
		mustKubectl(t, "annotate", "--overwrite", "deployment/exported", "tracehook.dev/traceparent=00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01")
		wantStamp(t, "deployment/exported", "0102030405060708090a0b0c0d0e0f10", "a context that was chosen")
	})
}
