package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/denier"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
	"github.com/tracehook/tracehook/webhook"
)

// The denier's manifests, as its authors might ship them.
var denierManifests = template.Must(template.New("denier").Parse(`
apiVersion: v1
kind: Namespace
metadata: {name: denier-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: denied}
---
apiVersion: v1
kind: Service
metadata: {name: denier, namespace: denier-system}
spec: {type: ExternalName, externalName: localhost, ports: [{port: {{.Port}}}]}
{{- range .Webhooks}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: {{.Kind}}
metadata: {name: denier}
webhooks:
- name: {{.Name}}
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 5
  clientConfig:
    service: {name: denier, namespace: denier-system, port: {{$.Port}}, path: {{.Path}}}
    caBundle: {{$.CABundle}}
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: denied}}
  rules:
  - {operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}
{{- end}}
`))

// installDenier runs somebody else's webhook in this process and tells the API server of it.
func installDenier(t *testing.T) {
	t.Helper()
	certDir := t.TempDir()
	caBundle, err := certificates.Issue(story.Within(t, time.Minute), installed.tracehook, "denier-system/denier", certDir)
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	mgr, err := denier.New(installed.RESTConfig, ctrlwebhook.Options{Host: "127.0.0.1", Port: port, CertDir: certDir},
		webhook.InstrumentOptions{TracerProvider: exportedAs(t, "denier")})
	if err != nil {
		t.Fatal(err)
	}
	run(t, mgr)

	type hook struct{ Kind, Name, Path string }
	var manifests bytes.Buffer
	if err := denierManifests.Execute(&manifests, struct {
		Port     int
		CABundle string
		Webhooks []hook
	}{port, base64.StdEncoding.EncodeToString(caBundle), []hook{
		{"MutatingWebhookConfiguration", "team.denier.example", denier.MutatePath},
		{"ValidatingWebhookConfiguration", "no-passwords.denier.example", denier.ValidatePath},
	}}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "denier.yaml")
	if err := os.WriteFile(file, manifests.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	// The namespaces stay: to end one takes longer than this whole test.
	t.Cleanup(func() {
		mustKubectl(t, "delete", "mutatingwebhookconfiguration/denier", "validatingwebhookconfiguration/denier")
		mustKubectl(t, "-n", "denier-system", "delete", "service/denier")
	})
	mustKubectl(t, "apply", "-f", file)

	// In force is what denies and what defaults.
	ctx := story.Within(t, time.Minute)
	for {
		_, denied := installed.Kubectl(ctx, "-n", "denied", "create", "configmap", "probe", "--from-literal=password=x", "--dry-run=server")
		defaulted, err := installed.Kubectl(ctx, "-n", "denied", "create", "configmap", "probe", "--dry-run=server", "-o", "yaml")
		if denied != nil && strings.Contains(denied.Error(), "belongs into a Secret") && strings.Contains(defaulted, denier.TeamLabel) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the denier is not in force: it answered %v and %v, %s", denied, err, defaulted)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// aCallOf is the API server's call of one of the denier's webhooks, and the webhook's side of it.
func aCallOf(kind, path string, attributes map[string]any) tree.Want {
	all := map[string]any{
		"admission.webhook.type":      kind,
		"admission.request.uid":       nil,
		"admission.request.operation": "CREATE",
		"admission.request.resource":  "v1/configmaps",
		"admission.request.kind":      "v1/ConfigMap",
		"admission.request.dry_run":   false,
		"k8s.namespace.name":          "denied",
		"http.response.status_code":   200,
		"tracehook.budget.total":      5.0,
		"tracehook.budget.remaining":  nil,
	}
	for key, value := range attributes {
		all[key] = value
	}
	return tree.Want{
		Name: "Call " + kind + " webhook", Service: "apiserver", Kind: tracestore.KindInternal, Descendant: true,
		Attributes: map[string]any{"configuration": "denier"},
		Children: []tree.Want{{
			Name: "HTTP POST", Service: "apiserver", Kind: tracestore.KindClient,
			Attributes: since(35, map[string]any{"url.full": called("denier.denier-system.svc", path)}),
			Children: []tree.Want{{
				Name: "POST " + path, Service: "denier", Kind: tracestore.KindServer, Status: "unset", Attributes: all,
			}},
		}},
	}
}

func TestSomebodyElsesWebhookIsPartOfTheTraceAndADenialIsNoError(t *testing.T) {
	installDenier(t)
	defaulted := aCallOf("mutating", denier.MutatePath, map[string]any{
		"admission.response.allowed": true, "admission.response.code": 200, "admission.response.patch.operations": 1, "tracehook.outcome": "patched",
	})

	t.Run("allowed", func(t *testing.T) {
		id, _, _ := traced(t, installed.Kubeconfig, "create", "configmap", "fine", "-n", "denied")
		t.Cleanup(func() { mustKubectl(t, "-n", "denied", "delete", "configmap/fine") })
		wantTrace(t, id, tree.Want{Name: "kubectl create", Service: "kubectl", Children: []tree.Want{
			{Name: "Create", Service: "apiserver", Descendant: true, Children: []tree.Want{
				defaulted,
				aCallOf("validating", denier.ValidatePath, map[string]any{
					"admission.response.allowed": true, "admission.response.code": 200, "admission.response.patch.operations": 0, "tracehook.outcome": "unchanged",
				}),
				{Name: "etcdserverpb.KV/Txn", Service: "etcd", Descendant: true},
			}},
		}})
		if team := mustKubectl(t, "-n", "denied", "get", "configmap/fine", "-o", `jsonpath={.metadata.labels.denier\.example/team}`); team != "nobody" {
			t.Errorf("label %s is %q", denier.TeamLabel, team)
		}
	})

	t.Run("denied", func(t *testing.T) {
		id := tracedAndDenied(t, "create", "configmap", "wrong", "-n", "denied", "--from-literal=password=x")
		trace := wantTrace(t, id, tree.Want{Name: "kubectl create", Service: "kubectl", Children: []tree.Want{
			{Name: "Create", Service: "apiserver", Descendant: true, Children: []tree.Want{
				defaulted,
				aCallOf("validating", denier.ValidatePath, map[string]any{
					"admission.response.allowed": false, "admission.response.code": 403, "admission.response.reason": "Forbidden", "tracehook.outcome": "denied",
				}),
			}},
		}})
		var denial tracestore.Span
		var auditID any
		for _, span := range trace.Spans {
			if span.Attributes["audit-id"] != nil {
				auditID = span.Attributes["audit-id"]
			}
			if span.Name == "POST "+denier.ValidatePath {
				denial = span
			}
			if span.Service == "etcd" {
				t.Errorf("the denied request came as far as etcd: %s", span.Name)
			}
		}
		// From the audit event of the denied request to the span that denied it.
		event, err := installed.WaitAuditEvent(story.Within(t, 10*time.Second), func(e cluster.AuditEvent) bool {
			return e.Annotations["no-passwords.denier.example/trace-id"] == id && e.Stage == "ResponseComplete" && e.Verb == "create"
		})
		if err != nil {
			t.Fatal(err)
		}
		if atLeast(34) && auditID != event.AuditID {
			t.Errorf("the request's span has audit-id %v, its audit event %s", auditID, event.AuditID)
		}
		for key, want := range map[string]string{"no-passwords.denier.example/trace-id": id, "no-passwords.denier.example/span-id": denial.ID, "team.denier.example/trace-id": id} {
			if event.Annotations[key] != want {
				t.Errorf("audit annotation %s is %q, want %q; all of them: %v", key, event.Annotations[key], want, event.Annotations)
			}
		}
	})
}

// tracedAndDenied is traced for a command that must fail because the denier denies.
func tracedAndDenied(t *testing.T, args ...string) (traceID string) {
	t.Helper()
	kubectl, err := installed.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(story.Within(t, time.Minute), installed.tracehook, append([]string{"trace", "--", kubectl}, args...)...)
	cmd.Env = append(os.Environ(), append(installed.Env(), "KUBECONFIG="+installed.Kubeconfig)...)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "a password belongs into a Secret") {
		t.Fatalf("want the denial, got %v:\n%s", err, out)
	}
	match := printedTraceID.FindSubmatch(out)
	if match == nil {
		t.Fatalf("no trace id in what `tracehook trace` wrote:\n%s", out)
	}
	return string(match[1])
}

// exportedAs makes spans of a service and sends them to the cluster's Collector.
func exportedAs(t *testing.T, service string) trace.TracerProvider {
	t.Helper()
	exporter, err := otlptracegrpc.New(story.Within(t, time.Minute), otlptracegrpc.WithEndpoint(installed.CollectorGRPC), otlptracegrpc.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter, sdktrace.WithBatchTimeout(100*time.Millisecond)),
		sdktrace.WithResource(resource.NewSchemaless(semconv.ServiceName(service))),
	)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return provider
}

// run runs a manager of controller-runtime's until the test is over.
func run(t *testing.T, mgr manager.Manager) {
	t.Helper()
	ctrllog.SetLogger(logr.Discard()) // what matters of its log is the error below
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the manager ended with %v", err)
		}
	})
}

// freePort is one of those that cluster takes its ports from, and why.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(12000)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			listener.Close()
			return port
		}
	}
	t.Fatal("no free port on 127.0.0.1 from 20000 to 32000")
	return 0
}
