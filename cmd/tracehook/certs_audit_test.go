package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

var auditTime = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// aReport has everything that a table can show.
func aReport() certs.AuditReport {
	days := -3
	missing := certs.Finding{Code: certs.MissingSAN, Severity: certs.Error, Message: "no SAN", Means: "refused", Remedy: "issue it anew", Breaks: true, Counter: certs.WebhookMissingSAN}
	target := func(name, serverName string) certs.Target {
		return certs.Target{Kind: certs.KindMutating, Name: name, Webhook: "w", Field: "webhooks[0].clientConfig.caBundle", URL: "https://" + serverName, ServerName: serverName}
	}
	return certs.AuditReport{
		Time: auditTime, Worst: certs.Error,
		Targets: []certs.TargetReport{
			{Target: target("good", "good.svc"), Endpoints: []certs.EndpointReport{{Address: "10.0.0.1:443", DaysLeft: new(5), Issuer: "CN=CA"}}},
			{Target: target("bad", "bad.svc"), Worst: certs.Error, Endpoints: []certs.EndpointReport{
				{Address: "10.0.0.2:443", DaysLeft: &days, Issuer: "CN=\x1b[31mCA", Findings: []certs.Finding{{Code: certs.BundleEmpty, Severity: certs.Info, Message: "empty", Means: "m", Remedy: "r"}, missing}},
				{Address: "10.0.0.3:443", Findings: []certs.Finding{missing}},
				{Address: "10.0.0.4:443", Findings: []certs.Finding{missing}, Call: &certs.Prediction{Cause: certs.Expired}},
			}},
			{Target: target("lost", "lost.svc"), Worst: certs.Warning, Findings: []certs.Finding{{Code: certs.ServiceUnknown, Severity: certs.Warning, Message: "forbidden", Means: "m", Remedy: "r"}}},
		},
		Counters: []certs.CounterValue{{Name: certs.WebhookMissingSAN, Value: 12}},
		Blamed:   []certs.Blame{{Host: "bad.svc", Code: certs.MissingSAN, Requests: 12, Last: auditTime, Targets: []string{"MutatingWebhookConfiguration/bad w"}}, {Host: "old.svc", Code: certs.InsecureSHA1, Requests: 1, Last: auditTime}},
		Problems: []string{"list apiservices: forbidden"},
	}
}

const auditTable = `STATUS   TARGET                               SERVER NAME  ENDPOINT      DAYS LEFT  ISSUER
healthy  MutatingWebhookConfiguration/good w  good.svc     10.0.0.1:443  5          CN=CA
error    MutatingWebhookConfiguration/bad w   bad.svc      10.0.0.2:443  -3         CN=�[31mCA
error    MutatingWebhookConfiguration/bad w   bad.svc      10.0.0.3:443  -          -
error    MutatingWebhookConfiguration/bad w   bad.svc      10.0.0.4:443  -          -
warning  MutatingWebhookConfiguration/lost w  lost.svc     -             -          -

error  missing-san  MutatingWebhookConfiguration/bad w at 10.0.0.2:443
    and MutatingWebhookConfiguration/bad w at 10.0.0.3:443
    no SAN
    means:  refused
    remedy: issue it anew
    change: the certificate that https://bad.svc serves
    counts: apiserver_webhooks_x509_missing_san_total

error  missing-san  MutatingWebhookConfiguration/bad w at 10.0.0.4:443
    no SAN
    means:  refused
    remedy: issue it anew
    change: the certificate that https://bad.svc serves
    masked: by expired; this is next once that is repaired

warning  service-unknown  MutatingWebhookConfiguration/lost w
    forbidden
    means:  m
    remedy: r
    change: https://lost.svc

info  bundle-empty  MutatingWebhookConfiguration/bad w at 10.0.0.2:443
    empty
    means:  m
    remedy: r
    change: webhooks[0].clientConfig.caBundle of MutatingWebhookConfiguration/bad

Counted by the API server that answered, since its start:
        12  apiserver_webhooks_x509_missing_san_total

Blamed in the audit log:
        12  missing-san  bad.svc, last 2026-11-22 12:00 UTC: MutatingWebhookConfiguration/bad w
         1  insecure-sha1  old.svc, last 2026-11-22 12:00 UTC: none of the targets of now

Not looked at:
    list apiservices: forbidden
`

func TestTheAuditTableNamesTheWorstFirst(t *testing.T) {
	var b bytes.Buffer
	if err := writeAuditTable(&b, aReport(), false); err != nil {
		t.Fatal(err)
	}
	if b.String() != auditTable {
		t.Errorf("got\n%s\nwant\n%s", &b, auditTable)
	}
}

func TestColoursOnlyMarkTheSeverity(t *testing.T) {
	var b bytes.Buffer
	if err := writeAuditTable(&b, aReport(), true); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "\n\x1b[31merror\x1b[0m    MutatingWebhookConfiguration/bad w") || !strings.Contains(b.String(), "\n\x1b[32mhealthy\x1b[0m ") {
		t.Errorf("not coloured as wanted: %q", b.String())
	}
	plain := b.String()
	for _, code := range []string{"\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m", "\x1b[0m"} {
		plain = strings.ReplaceAll(plain, code, "")
	}
	if plain != auditTable {
		t.Errorf("without its colours it is another table:\n%s", plain)
	}
}

func TestProgressIsForTerminalsOnly(t *testing.T) {
	var b bytes.Buffer
	progress, wipe := auditProgress(&b)
	wipe()
	if progress != nil || b.Len() > 0 || colours(&b) {
		t.Errorf("a buffer is taken for a terminal: %q", b.String())
	}
}

// apiServer is as much of an API server as an audit of a cluster without Services needs. What
// is not in pages is empty; a page "403" is forbidden.
func apiServer(t *testing.T, pages map[string]string) (kubeconfig string) {
	t.Helper()
	empty := map[string]string{
		"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations":   `{"kind":"MutatingWebhookConfigurationList","apiVersion":"admissionregistration.k8s.io/v1","items":[]}`,
		"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations": `{"kind":"ValidatingWebhookConfigurationList","apiVersion":"admissionregistration.k8s.io/v1","items":[]}`,
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions":               `{"kind":"CustomResourceDefinitionList","apiVersion":"apiextensions.k8s.io/v1","items":[]}`,
		"/apis/apiregistration.k8s.io/v1/apiservices":                           `{"kind":"APIServiceList","apiVersion":"apiregistration.k8s.io/v1","items":[]}`,
	}
	for _, c := range certs.Counters() {
		empty["/metrics"] += string(c) + " 0\n"
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, found := pages[r.URL.Path]
		if !found {
			page, found = empty[r.URL.Path]
		}
		switch {
		case page == "403":
			http.Error(w, "forbidden", http.StatusForbidden)
		case !found:
			http.NotFound(w, r)
		default:
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, page)
		}
	}))
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: %q}}]\n", server.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

const (
	mutatingPath = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
	// Port 1 is one where nobody listens.
	unreachableHook = `{"kind":"MutatingWebhookConfigurationList","apiVersion":"admissionregistration.k8s.io/v1","items":[
		{"metadata":{"name":"lost"},"webhooks":[{"name":"lost.example.org","clientConfig":{"url":"https://127.0.0.1:1/"}}]}]}`
)

func TestExitCodesOfTheAudit(t *testing.T) {
	forbidden := map[string]string{}
	for _, path := range []string{mutatingPath, "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "/apis/apiregistration.k8s.io/v1/apiservices"} {
		forbidden[path] = "403"
	}
	for _, c := range []struct {
		name  string
		pages map[string]string
		args  []string
		code  int
		says  string // on stdout, or as the error
	}{
		{"nothing to audit", nil, nil, 0, "no webhook, no conversion webhook"},
		{"an error", map[string]string{mutatingPath: unreachableHook}, nil, 1, "unreachable"},
		{"an error, as JSON", map[string]string{mutatingPath: unreachableHook}, []string{"-o", "json"}, 1, `"code": "unreachable"`},
		{"an error, as YAML", map[string]string{mutatingPath: unreachableHook}, []string{"-o", "yaml"}, 1, "code: unreachable"},
		{"counters out of reach", map[string]string{"/metrics": "403"}, nil, 0, "read the API server's counters"},
		{"a list out of reach", map[string]string{mutatingPath: "403"}, nil, 2, "list mutatingwebhookconfigurations"},
		{"a list out of reach, and an error elsewhere", map[string]string{mutatingPath: unreachableHook, "/apis/apiregistration.k8s.io/v1/apiservices": "403"}, nil, 1, "list apiservices"},
		{"everything out of reach", forbidden, nil, 2, "audit certificates: list mutating"},
		{"no such format", nil, []string{"-o", "xml"}, 2, "want table, json, yaml"},
		{"no such severity", nil, []string{"--fail-on", "fatal"}, 2, "--fail-on"},
		{"no time", nil, []string{"--timeout", "0s"}, 2, "above zero"},
		{"no audit log", nil, []string{"--audit-log", "/nowhere/audit.log"}, 2, "--audit-log"},
		{"no cluster", nil, []string{"--kubeconfig", "/nowhere/kubeconfig"}, 2, "find the cluster"},
		{"an argument", nil, []string{"all"}, 2, "unknown argument"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := newCertsAuditCommand()
			cmd.SilenceUsage, cmd.SilenceErrors = true, true
			cmd.SetOut(&out)
			cmd.SetErr(&errs)
			cmd.SetArgs(append([]string{"--on-api-server", "--kubeconfig", apiServer(t, c.pages)}, c.args...))
			err := cmd.ExecuteContext(context.Background())
			code := 0
			var exit *exitError
			if errors.As(err, &exit) {
				code = exit.code
			} else if err != nil {
				t.Errorf("error %v has no exit code", err)
			}
			if said := fmt.Sprint(out.String(), err); code != c.code || !strings.Contains(said, c.says) {
				t.Errorf("exit code %d, want %d; said\n%s\nwant %q in it", code, c.code, said, c.says)
			}
			if errs.Len() > 0 {
				t.Errorf("written to stderr: %q", &errs)
			}
		})
	}
}

func TestSeveralContextsAreAuditedAndOneThatDoesNotAnswerHidesNone(t *testing.T) {
	file := func(kubeconfig string) string {
		text, err := os.ReadFile(kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		_, url, _ := strings.Cut(string(text), `{server: "`)
		url, _, _ = strings.Cut(url, `"`)
		return url
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncontexts: [{name: good, context: {cluster: good}}, {name: bad, context: {cluster: bad}}, {name: dead, context: {cluster: dead}}]\nclusters:\n"
	for name, url := range map[string]string{"good": file(apiServer(t, nil)), "bad": file(apiServer(t, map[string]string{mutatingPath: unreachableHook})), "dead": "http://127.0.0.1:1"} {
		text += fmt.Sprintf("- {name: %s, cluster: {server: %q}}\n", name, url)
	}
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		contexts []string
		code     int
		says     string // the error
		worst    []string
	}{
		{[]string{"dead", "good"}, 2, "context dead: ", []string{"healthy", "healthy"}},
		{[]string{"good", "dead", "bad"}, 1, "context dead: ", []string{"healthy", "healthy", "error"}},
		{[]string{"good", "nowhere"}, 2, "context nowhere: ", []string{"healthy", "healthy"}},
		{[]string{"good", "good"}, 0, "named twice", nil},
	} {
		t.Run(strings.Join(c.contexts, " "), func(t *testing.T) {
			var out bytes.Buffer
			args := []string{"tracehook", "certs", "audit", "--on-api-server", "--kubeconfig", kubeconfig, "-o", "json"}
			for _, name := range c.contexts {
				args = append(args, "--context", name)
			}
			err := run(t.Context(), args, nil, &out, &out)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %q in it", err, c.says)
			}
			if c.worst == nil {
				return
			}
			if code := exitCode(err, &bytes.Buffer{}); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			wantDocument(t, kindAuditList, out.Bytes())
			var list auditList
			if err := json.Unmarshal(out.Bytes(), &list); err != nil {
				t.Fatal(err)
			}
			for i, name := range c.contexts {
				d := list.Items[i]
				unreachable := name == "dead" || name == "nowhere"
				if d.Context != name || d.Worst.String() != c.worst[i] || (d.Error != "") != unreachable || d.Incomplete != unreachable {
					t.Errorf("%s: context %q, worst %s, error %q, incomplete %t", name, d.Context, d.Worst, d.Error, d.Incomplete)
				}
			}
		})
	}
}
