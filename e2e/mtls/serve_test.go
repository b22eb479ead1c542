package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

const metricsRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: metrics-auth}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}
subjects: [{kind: ServiceAccount, namespace: tracehook-system, name: tracehook}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: metrics-reader}
rules: [{nonResourceURLs: [/metrics], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: metrics-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: metrics-reader}
subjects: [{kind: ServiceAccount, namespace: default, name: prometheus}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {namespace: default, name: prometheus}
---
apiVersion: v1
kind: ServiceAccount
metadata: {namespace: default, name: stranger}
`

func TestMetricsAreForThoseWhoMayReadThem(t *testing.T) {
	apply(t, metricsRights)
	pki := filepath.Join(t.TempDir(), "pki")
	bundle, err := certificates.Issue(t.Context(), shared.tracehook, certificates.Service, pki)
	if err != nil {
		t.Fatal(err)
	}
	w, err := shared.StartWebhook(story.Within(t, time.Minute), cluster.WebhookOptions{CertDir: pki, Name: "tracehook-metrics",
		Args: []string{"--lineage=off", "--metrics-secure", "--metrics-auth"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = w.Stop() }()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: certificates.ServerName}}}
	url := strings.Replace(w.MetricsURL, "http:", "https:", 1)
	for _, test := range []struct {
		who, token string
		code       int
	}{
		{"nobody", "", http.StatusUnauthorized},
		// controller-runtime's filter takes the API server's "no" to a token for a failure of its own.
		{"a forger", "ey.forged.token", http.StatusInternalServerError},
		{"a stranger", strings.TrimSpace(mustKubectl(t, "create", "token", "stranger")), http.StatusForbidden},
		{"Prometheus", strings.TrimSpace(mustKubectl(t, "create", "token", "prometheus")), http.StatusOK},
	} {
		code, page := get(t, client, url, test.token)
		if code != test.code || (code == http.StatusOK) != strings.Contains(page, "tracehook_tls_handshake_failures_total") {
			t.Errorf("%s: got %d %.100s, want %d", test.who, code, page, test.code)
		}
	}
	if code, page := get(t, http.DefaultClient, w.MetricsURL, ""); code == http.StatusOK {
		t.Errorf("without TLS: %d %.100s", code, page)
	}
}

func TestAServerWithoutACertificateWaitsForItAndKeepsTheLastGoodOne(t *testing.T) {
	const secret = "serving-test"
	apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {namespace: tracehook-system, name: serving-test}
rules: [{apiGroups: [""], resources: [secrets], resourceNames: [serving-test], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {namespace: tracehook-system, name: serving-test}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: serving-test}
subjects: [{kind: ServiceAccount, namespace: tracehook-system, name: tracehook}]
`)
	w, err := shared.StartWebhook(story.Within(t, time.Minute), cluster.WebhookOptions{Unready: true, Name: "tracehook-secret",
		Args: []string{"--lineage=off", "--certs=secret", "--serving-secret=" + secret, "--webhook-configuration=nothing-of-that-name"}})
	if err != nil {
		t.Fatal(err)
	}
	readyz := func(code int, words ...string) {
		t.Helper()
		eventually(t, 30*time.Second, func() string {
			got, body := get(t, http.DefaultClient, w.HealthURL+"/readyz", "")
			for _, word := range words {
				if !strings.Contains(body, word) {
					return fmt.Sprintf("/readyz: %d %s\nwant %q in it", got, body, word)
				}
			}
			if got != code {
				return fmt.Sprintf("/readyz: %d %s\nwant %d", got, body, code)
			}
			return ""
		})
	}
	readyz(503, "not ready: certificate: there is no certificate yet", secret)

	pki := filepath.Join(t.TempDir(), "pki")
	if _, err := certificates.Issue(t.Context(), shared.tracehook, certificates.Service, pki); err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "-n", "tracehook-system", "create", "secret", "tls", secret, "--cert="+pki+"/tls.crt", "--key="+pki+"/tls.key")
	t.Cleanup(func() { mustKubectl(t, "-n", "tracehook-system", "delete", "secret", secret, "--ignore-not-found") })
	readyz(200, "ok\n", "configuration-unknown") // RBAC does not allow to look at it, and that is said
	if _, page := get(t, http.DefaultClient, w.MetricsURL, ""); !strings.Contains(page, `tracehook_certs_bundle_findings{tracehook_certs_code="configuration-unknown"`) {
		t.Error("the finding is not in the metrics")
	}

	mustKubectl(t, "-n", "tracehook-system", "patch", "secret", secret, "-p", `{"data":{"tls.crt":"Z2FyYmFnZQ=="}}`)
	readyz(200, "ok\n", "warning: secret-unusable", "tls.crt")
	mustKubectl(t, "-n", "tracehook-system", "delete", "secret", secret)
	readyz(200, "ok\n", "warning: secret-missing")
	if _, page := get(t, http.DefaultClient, w.MetricsURL, ""); !strings.Contains(page, `tracehook_certs_secret_findings{tracehook_certs_code="secret-missing"`) {
		t.Error("the finding is not in the metrics")
	}
	if _, err := w.Stop(); err != nil {
		t.Error(err)
	}
}

func TestManagedGoesFromNothingToReadyAndRotatesWhenAsked(t *testing.T) {
	_, stderr, code := run(t, "certs", "rotate")
	if code != 2 || !strings.Contains(stderr, "nobody to ask: there is no Lease tracehook-certs in namespace tracehook-system") {
		t.Errorf("certs rotate without a leader: exit code %d\n%s", code, stderr)
	}
	ports, err := cluster.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	port := ports[0]
	if err := shared.InstallWebhookWith(story.Within(t, time.Minute), cluster.InstallOptions{Port: port, FailurePolicy: "Fail", Components: []string{"certs-managed"}}); err != nil {
		t.Fatal(err)
	}
	trusted := newClientPKI(t).trusted // so that all metrics are there
	w, err := shared.StartWebhook(story.Within(t, 2*time.Minute), cluster.WebhookOptions{Port: port, Name: "tracehook-managed", Args: []string{
		"--certs=managed", fmt.Sprintf("--service=tracehook:%d", port), "--api-server=" + shared.First().URL, "--rotation-soak=1s",
		"--client-ca-file=" + trusted}})
	if err != nil {
		t.Fatal(err)
	}
	configmap := func() {
		t.Helper()
		mustKubectl(t, "create", "configmap", "managed", "--dry-run=server")
	}
	configmap()

	stdout, stderr, code := run(t, "certs", "rotate", "--ca", "--timeout=90s")
	t.Logf("certs rotate --ca:\n%s", stdout)
	if code != 0 {
		t.Fatalf("certs rotate --ca: exit code %d\n%s", code, stderr)
	}
	for _, words := range []string{"asked .* for a new CA and certificate", "now published", "now proven", "now switched", "now soaking", "now dropped", "now stable",
		`(?m)^\d\d:\d\d:\d\d  prove       no API server may`, `(?m)^\d\d:\d\d:\d\d  done: certificate [0-9a-f]{16} is served until .*; trust proven at API servers: 1$`} {
		if !regexp.MustCompile(words).MatchString(stdout) {
			t.Errorf("it does not say %s", words)
		}
	}
	configmap()
	stdout, stderr, code = run(t, "certs", "rotate", "-o", "json")
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var last struct {
		Phase   string
		Settled bool
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || code != 0 || last.Phase != "stable" || !last.Settled {
		t.Errorf("certs rotate -o json: exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	configmap()
	if _, body := get(t, http.DefaultClient, w.HealthURL+"/readyz", ""); body != "ok" {
		t.Errorf("/readyz: %s", body)
	}

	want := manualMetrics(t)
	delete(want, "tracehook_lineage_lookups_total") // nothing here has an owner
	delete(want, "tracehook_certs_secret_findings") // nothing is wrong; see the test above
	delete(want, "tracehook_certs_bundle_findings")
	eventually(t, 20*time.Second, func() string {
		configmap()
		_, page := get(t, http.DefaultClient, w.MetricsURL, "")
		got := map[string]string{}
		for _, m := range regexp.MustCompile(`(?m)^# TYPE (tracehook_\w+) (\w+)$`).FindAllStringSubmatch(page, -1) {
			got[m[1]] = m[2]
		}
		if !maps.Equal(got, want) {
			return fmt.Sprintf("exported %v\nin deploy/README.md %v", got, want)
		}
		return ""
	})
	if _, err := w.Stop(); err != nil {
		t.Error(err)
	}
	if _, stderr, code := run(t, "certs", "rotate"); code != 2 || !strings.Contains(stderr, "nobody to ask: nobody holds Lease tracehook-certs") {
		t.Errorf("certs rotate after the shutdown: exit code %d\n%s", code, stderr)
	}
}

// manualMetrics are the metrics of `tracehook serve` of the manual with their types.
func manualMetrics(t *testing.T) map[string]string {
	t.Helper()
	manual, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(tracehook_[a-z_0-9]+)` \\| (\\w+) \\|").FindAllSubmatch(manual, -1) {
		if !strings.HasPrefix(string(row[1]), "tracehook_lifecycle_") { // of another command
			want[string(row[1])] = string(row[2])
		}
	}
	return want
}
