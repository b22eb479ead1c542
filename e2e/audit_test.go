package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// audit runs the built `tracehook certs audit` and returns what it wrote and its exit code.
func audit(t *testing.T, kubeconfig string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(story.Within(t, time.Minute), installed.tracehook, append([]string{"certs", "audit", "--kubeconfig", kubeconfig}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run certs audit: %v", err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func auditReport(t *testing.T, kubeconfig string, wantCode int, args ...string) certs.AuditReport {
	t.Helper()
	stdout, stderr, code := audit(t, kubeconfig, append([]string{"-o", "json"}, args...)...)
	if code != wantCode {
		t.Fatalf("certs audit ended with code %d, want %d: %s\n%s", code, wantCode, stderr, stdout)
	}
	if stderr != "" {
		t.Errorf("certs audit wrote to stderr, which is no terminal: %q", stderr)
	}
	var report certs.AuditReport
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("read report: %v\n%s", err, stdout)
	}
	return report
}

// found are the codes by target, of the target and of its endpoints.
func found(report certs.AuditReport) map[string][]certs.Code {
	all := map[string][]certs.Code{}
	for _, target := range report.Targets {
		codes := []certs.Code{}
		findings := target.Findings
		for _, e := range target.Endpoints {
			findings = slices.Concat(findings, e.Findings)
		}
		for _, f := range findings {
			codes = append(codes, f.Code)
		}
		all[target.String()] = codes
	}
	return all
}

// A cluster with one healthy webhook and several sick servers of every kind: the audit names each
// culprit, and the hosts that the API server blames in its audit log are among them.
func TestTheAuditNamesEachCulprit(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	config := rest.CopyConfig(installed.RESTConfig)
	config.QPS = -1
	clients, objects := kubernetes.NewForConfigOrDie(config), dynamic.NewForConfigOrDie(config)

	if healthy := auditReport(t, installed.Kubeconfig, 0); healthy.Worst != certs.Healthy || len(healthy.Targets) != 1 || healthy.Incomplete || len(healthy.Counters) != 4 {
		t.Fatalf("with tracehook alone: %+v", healthy)
	}

	ca := forge(t, nil, forgedCA("culprits' CA"))
	server := func(service string, handler http.HandlerFunc, changes ...func(*x509.Certificate)) *admissionv1.ServiceReference {
		leadToLocalhost(ctx, t, clients, service)
		leaf := forge(t, &ca, append([]func(*x509.Certificate){forHost(certs.ServerName("default", service))}, changes...)...)
		port := strangerServer(t, []certs.KeyPair{leaf}, handler)
		return &admissionv1.ServiceReference{Namespace: "default", Name: service, Port: new(int32(port))}
	}
	leadToLocalhost(ctx, t, clients, "unreachable")
	const label = "e2e.tracehook.dev/audit"
	hooks := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "culprits"}}
	for name, service := range map[string]*admissionv1.ServiceReference{
		"no-san":      server("no-san", admitEverything, withoutSAN),
		"expired":     server("expired", admitEverything, withoutSAN, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		"unreachable": {Namespace: "default", Name: "unreachable", Port: new(int32(1))}, // tcpmux, of which there is none any more
		"gone":        {Namespace: "default", Name: "gone"},
	} {
		hooks.Webhooks = append(hooks.Webhooks, admissionv1.MutatingWebhook{
			Name:                    name + ".e2e.tracehook.dev",
			AdmissionReviewVersions: []string{"v1"},
			SideEffects:             new(admissionv1.SideEffectClassNone),
			FailurePolicy:           new(admissionv1.Ignore), // so nobody notices
			ObjectSelector:          &metav1.LabelSelector{MatchLabels: map[string]string{label: name}},
			ClientConfig:            admissionv1.WebhookClientConfig{CABundle: pemOf(ca), Service: service},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			}},
		})
	}
	if _, err := clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, hooks, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", "mutatingwebhookconfiguration", hooks.Name) })

	conversion := server("conversion", admitEverything, withSHA1)
	create(ctx, t, objects, schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "things.audit.e2e.tracehook.dev"},
		"spec": map[string]any{
			"group": "audit.e2e.tracehook.dev", "scope": "Namespaced", "names": map[string]any{"plural": "things", "kind": "Thing"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object"}}}},
			"conversion": map[string]any{"strategy": "Webhook", "webhook": map[string]any{
				"conversionReviewVersions": []any{"v1"},
				"clientConfig": map[string]any{"caBundle": pemOf(ca),
					"service": map[string]any{"namespace": "default", "name": conversion.Name, "port": int64(*conversion.Port)}}}},
		},
	})
	aggregated := server("aggregated", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"aggregated.e2e.tracehook.dev/v1","resources":[]}`)
	}, withoutSAN)
	create(ctx, t, objects, schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}, map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
		"metadata": map[string]any{"name": "v1.aggregated.e2e.tracehook.dev"},
		"spec": map[string]any{
			"group": "aggregated.e2e.tracehook.dev", "version": "v1", "groupPriorityMinimum": int64(100), "versionPriority": int64(100), "insecureSkipTLSVerify": true,
			"service": map[string]any{"namespace": "default", "name": aggregated.Name, "port": int64(*aggregated.Port)},
		},
	})
	mustKubectl(t, "wait", "--for=condition=Available", "--timeout=30s", "apiservice/v1.aggregated.e2e.tracehook.dev")
	if err := installed.SetCABundle(ctx, installed.caBundle); err != nil { // waits until all of the above is in force
		t.Fatal(err)
	}

	// What the API server blames in its audit log: one call of each kind.
	if _, err := clients.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "audited", Labels: map[string]string{label: "no-san"}},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Fatal(err)
	}
	if _, err := clients.CoreV1().RESTClient().Get().AbsPath("/apis/aggregated.e2e.tracehook.dev/v1/things").DoRaw(ctx); err != nil {
		t.Fatal(err)
	}
	for _, match := range []func(cluster.AuditEvent) bool{
		func(e cluster.AuditEvent) bool {
			return e.Annotations["missing-san.invalid-cert.kubernetes.io/no-san.default.svc"] != ""
		},
		func(e cluster.AuditEvent) bool {
			return e.RequestURI == "/apis/aggregated.e2e.tracehook.dev/v1/things"
		},
	} {
		if _, err := installed.WaitAuditEvent(ctx, match); err != nil {
			t.Fatal(err)
		}
	}

	report := auditReport(t, installed.Kubeconfig, 1, "--fail-on", "error", "--audit-log", installed.AuditLog)
	want := map[string][]certs.Code{
		"MutatingWebhookConfiguration/tracehook " + cluster.WebhookName:       {},
		"MutatingWebhookConfiguration/culprits no-san.e2e.tracehook.dev":      {certs.MissingSAN},
		"MutatingWebhookConfiguration/culprits expired.e2e.tracehook.dev":     {certs.Expired, certs.MissingSAN},
		"MutatingWebhookConfiguration/culprits unreachable.e2e.tracehook.dev": {certs.Unreachable},
		"MutatingWebhookConfiguration/culprits gone.e2e.tracehook.dev":        {certs.ServiceMissing},
		"CustomResourceDefinition/things.audit.e2e.tracehook.dev":             {certs.InsecureSHA1},
		"APIService/v1.aggregated.e2e.tracehook.dev":                          {certs.VerificationOff, certs.MissingSAN},
	}
	got := found(report)
	for target, codes := range want {
		if !slices.Equal(got[target], codes) {
			t.Errorf("%s: findings %v, want %v", target, got[target], codes)
		}
	}
	if len(got) != len(want) || report.Incomplete || len(report.Problems) > 0 {
		t.Errorf("targets %v, problems %q", got, report.Problems)
	}
	for _, counter := range report.Counters {
		if strings.HasSuffix(string(counter.Name), "missing_san_total") && counter.Value == 0 {
			t.Errorf("%s is 0 after a call that moves it", counter.Name)
		}
	}
	for _, culprit := range []string{"MutatingWebhookConfiguration/culprits no-san.e2e.tracehook.dev", "APIService/v1.aggregated.e2e.tracehook.dev"} {
		if !slices.ContainsFunc(report.Blamed, func(b certs.Blame) bool {
			return b.Code == certs.MissingSAN && slices.Contains(b.Targets, culprit)
		}) {
			t.Errorf("the audit log's blame does not lead to %s: %+v", culprit, report.Blamed)
		}
	}

	t.Run("in a table for people", func(t *testing.T) {
		stdout, _, code := audit(t, installed.Kubeconfig)
		for _, part := range []string{
			"\nerror  missing-san  MutatingWebhookConfiguration/culprits no-san.e2e.tracehook.dev at localhost:",
			"change: the certificate that Service default/no-san:",
			"remedy: issue the certificate with the DNS name no-san.default.svc among its subject alternative names",
			"apiserver_kube_aggregator_x509_missing_san_total",
		} {
			if !strings.Contains(stdout, part) {
				t.Errorf("no %q in\n%s", part, stdout)
			}
		}
		if code != 1 || strings.Contains(stdout, "\x1b") {
			t.Errorf("code %d; colours, though nobody looks: %q", code, stdout)
		}
	})
	t.Run("with the rights of the shipped ClusterRole and no more", func(t *testing.T) {
		applyAuditComponent(t)
		const account = "system:serviceaccount:tracehook-system:tracehook-audit"
		kubeconfig, err := installed.User(account, "system:serviceaccounts", "system:serviceaccounts:tracehook-system", "system:authenticated")
		if err != nil {
			t.Fatal(err)
		}
		report := auditReport(t, kubeconfig, 1)
		if report.Incomplete || len(report.Problems) > 0 || len(report.Targets) != len(want) || len(report.Counters) != 4 {
			t.Errorf("problems %q, %d targets, counters %v", report.Problems, len(report.Targets), report.Counters)
		}
		if out, err := installed.Kubectl(ctx, "auth", "can-i", "list", "secrets", "--all-namespaces", "--as", account); err == nil {
			t.Errorf("the ServiceAccount may list secrets: %s", out)
		}
		nobody, err := installed.User("nobody", "system:authenticated")
		if err != nil {
			t.Fatal(err)
		}
		if stdout, stderr, code := audit(t, nobody); code != 2 || !strings.Contains(stderr, "forbidden") {
			t.Errorf("without rights: code %d, %s%s", code, stdout, stderr)
		}
	})
}

// applyAuditComponent has the API server check what the component renders to, and installs its rights.
func applyAuditComponent(t *testing.T) {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	deploy, err := filepath.Rel(dir, filepath.Join(root, "deploy"))
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [%[1]s/base]\ncomponents: [%[1]s/components/audit]\n", filepath.ToSlash(deploy))
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if rendered := mustKubectl(t, "kustomize", dir); strings.Count(rendered, "image: ghcr.io/tracehook/tracehook:v") != 2 {
		t.Errorf("the two images are not those of one release:\n%s", rendered)
	}
	checked := mustKubectl(t, "apply", "--dry-run=server", "-k", dir)
	for _, object := range []string{"cronjob.batch/tracehook-audit", "clusterrole.rbac.authorization.k8s.io/tracehook-audit", "networkpolicy.networking.k8s.io/tracehook-audit"} {
		if !strings.Contains(checked, object) {
			t.Errorf("no %s in what was applied:\n%s", object, checked)
		}
	}
	rights := filepath.Join(root, "deploy", "components", "audit", "rbac.yaml")
	mustKubectl(t, "apply", "-f", rights)
	t.Cleanup(func() { mustKubectl(t, "delete", "-f", rights) })
}

func create(ctx context.Context, t *testing.T, objects dynamic.Interface, resource schema.GroupVersionResource, object map[string]any) {
	t.Helper()
	// Through JSON, which knows how bytes are written.
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	parsed := &unstructured.Unstructured{}
	if err := parsed.UnmarshalJSON(text); err != nil {
		t.Fatal(err)
	}
	if _, err := objects.Resource(resource).Create(ctx, parsed, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", resource.GroupResource().String(), parsed.GetName()) })
}

// 300 webhook configurations that lead to one server.
func TestTheAuditOfHundredsOfTargetsTakesSeconds(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	config := rest.CopyConfig(installed.RESTConfig)
	config.QPS = -1
	clients := kubernetes.NewForConfigOrDie(config)
	ca := forge(t, nil, forgedCA("CA"))
	port := strangerServer(t, []certs.KeyPair{forge(t, &ca, forHost("many"), withIP)}, http.HandlerFunc(admitEverything))
	const many = 300
	configurations := clients.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	t.Cleanup(func() {
		if err := configurations.DeleteCollection(context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "e2e.tracehook.dev/many"}); err != nil {
			t.Error(err)
		}
	})
	var group errgroup.Group
	group.SetLimit(8)
	for i := range many {
		group.Go(func() error {
			_, err := configurations.Create(ctx, &admissionv1.ValidatingWebhookConfiguration{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("many-%03d", i), Labels: map[string]string{"e2e.tracehook.dev/many": ""}},
				Webhooks: []admissionv1.ValidatingWebhook{{
					Name: "many.e2e.tracehook.dev", AdmissionReviewVersions: []string{"v1"}, SideEffects: new(admissionv1.SideEffectClassNone),
					// Without rules it is never called.
					ClientConfig: admissionv1.WebhookClientConfig{CABundle: pemOf(ca), URL: new(fmt.Sprintf("https://127.0.0.1:%d/%d", port, i))},
				}},
			}, metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	report := auditReport(t, installed.Kubeconfig, 0, "--on-api-server")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if len(report.Targets) != many+1 || report.Worst != certs.Healthy {
		t.Errorf("%d targets, worst %s; want %d, healthy", len(report.Targets), report.Worst, many+1)
	}
}
