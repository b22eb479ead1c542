package mtls

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// clientName is the name that deploy/components/mtls accepts.
const clientName = "kube-apiserver-webhook"

// hooks are three webhooks that lead to one server under three names, so that one API server can call it
// as three clients. A ConfigMap's label says through which.
const hooks = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: mtls}
webhooks:
`

const hook = `
- name: %[1]s.mtls.test
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  clientConfig: {service: {namespace: tracehook-system, name: %[1]s, port: %[2]d, path: /mutate}}
  objectSelector: {matchLabels: {mtls: %[1]s}}
  rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}]
`

const service = `---
apiVersion: v1
kind: Service
metadata: {namespace: tracehook-system, name: %[1]s}
spec: {type: ExternalName, externalName: localhost, ports: [{name: webhook, port: %[2]d}]}
`

var services = []string{"right", "wrong-name", "wrong-ca"}

func TestWithClientCertificatesOnlyTheRightAPIServerIsAnswered(t *testing.T) {
	ports, err := cluster.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	port := ports[0]
	manifests := hooks
	for _, name := range services {
		manifests += fmt.Sprintf(hook, name, port)
	}
	for _, name := range services {
		manifests += fmt.Sprintf(service, name, port)
	}
	apply(t, manifests)

	// One certificate for all three names, as the live object says, put into it by the command that is printed.
	pki := filepath.Join(t.TempDir(), "pki")
	stdout, stderr, code := run(t, "certs", "issue", "--for", "mutatingwebhookconfiguration/mtls", "--output-dir", pki, "-o", "json")
	if code != 0 {
		t.Fatalf("certs issue --for: exit code %d\n%s", code, stderr)
	}
	var issued struct {
		Names []string
		Next  []string
	}
	if err := json.Unmarshal([]byte(stdout), &issued); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(issued.Names, " "); !strings.Contains(got, "right.tracehook-system.svc ") || !strings.Contains(got, "wrong-ca.tracehook-system.svc ") || len(issued.Names) != 12 {
		t.Errorf("names: %s", got)
	}
	shell := exec.CommandContext(t.Context(), "sh", "-ec", issued.Next[len(issued.Next)-1])
	kubectl, err := shared.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	shell.Env = append(os.Environ(), "KUBECONFIG="+shared.Kubeconfig, "PATH="+filepath.Dir(kubectl)+":"+os.Getenv("PATH"))
	if out, err := shell.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", issued.Next[len(issued.Next)-1], err, out)
	}

	// The API servers: the first one shows nothing, the second one what the shipped files say, but for two hosts.
	clients := newClientPKI(t)
	second, err := shared.StartAPIServerWith(story.Within(t, time.Minute), cluster.APIServerOptions{Args: []string{
		"--admission-control-config-file=" + clients.configuration(t, port)}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := second.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := shared.WaitInForce(story.Within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	start := func(mode, caFile string) *cluster.Webhook {
		t.Helper()
		w, err := shared.StartWebhook(story.Within(t, time.Minute), cluster.WebhookOptions{CertDir: pki, Port: port, Name: "tracehook-" + mode,
			Args: []string{"--lineage=off", "--client-ca-file=" + caFile, "--client-name=" + clientName, "--client-auth=" + mode}})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	type call struct {
		server *rest.Config
		hook   string
		result string
	}
	calls := []call{
		{second.RESTConfig, "right", "accepted"},
		{second.RESTConfig, "wrong-name", "wrong_name"},
		{second.RESTConfig, "wrong-ca", "untrusted"},
		{shared.RESTConfig, "right", "no_certificate"},
	}
	each := map[string]int{"accepted": 1, "wrong_name": 1, "untrusted": 1, "no_certificate": 1, "expired": 0, "wrong_usage": 0}

	enforcing := start("enforce", clients.trusted)
	for _, c := range calls {
		err := create(t, c.server, c.hook)
		switch {
		case c.result == "accepted" && err != nil:
			t.Errorf("the right client certificate: %v", err)
		case c.result != "accepted" && (err == nil || !strings.Contains(err.Error(), "client certificate refused: "+c.result)):
			t.Errorf("enforce, %s: got %v, want a refusal that says so", c.result, err)
		}
	}
	if got := clientResults(t, enforcing); !maps.Equal(got, each) {
		t.Errorf("enforce: counted %v, want %v", got, each)
	}
	log, err := os.ReadFile(enforcing.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{`"msg":"client certificate not accepted"`, `"result":"wrong_name"`, `CN=kubelet`, `"result":"no_certificate"`} {
		if !strings.Contains(string(log), words) {
			t.Errorf("the log does not say %s:\n%s", words, log)
		}
	}

	// The other CA is added, then ours is taken away; the server runs on.
	clients.trust(t, clients.ours, clients.theirs)
	eventually(t, 30*time.Second, func() string { return complaint(create(t, second.RESTConfig, "wrong-ca")) })
	clients.trust(t, clients.theirs)
	eventually(t, 30*time.Second, func() string {
		if err := create(t, second.RESTConfig, "right"); err == nil {
			return "a CA that was taken out of the file is still trusted"
		}
		return ""
	})
	if _, err := enforcing.Stop(); err != nil {
		t.Error(err)
	}

	clients.trust(t, clients.ours)
	observing := start("observe", clients.trusted)
	for _, c := range calls {
		if err := create(t, c.server, c.hook); err != nil {
			t.Errorf("observe, %s: %v", c.result, err)
		}
	}
	if got := clientResults(t, observing); !maps.Equal(got, each) {
		t.Errorf("observe: counted %v, want %v", got, each)
	}
	if _, err := observing.Stop(); err != nil {
		t.Error(err)
	}
}

// create asks an API server for a ConfigMap that goes through one of the hooks. Nothing is stored.
func create(t *testing.T, server *rest.Config, hook string) error {
	t.Helper()
	clients, err := kubernetes.NewForConfig(server)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = clients.CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "mtls-", Labels: map[string]string{"mtls": hook}}},
		metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

func complaint(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

var clientResult = regexp.MustCompile(`(?m)^tracehook_client_certificates_total\{tracehook_client_certificate_result="(\w+)"\} (\d+)$`)

func clientResults(t *testing.T, w *cluster.Webhook) map[string]int {
	t.Helper()
	_, page := get(t, http.DefaultClient, w.MetricsURL, "")
	results := map[string]int{}
	for _, m := range clientResult.FindAllStringSubmatch(page, -1) {
		results[m[1]], _ = strconv.Atoi(m[2])
	}
	return results
}
