package monitoring

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// notHere are the metrics that rules or dashboard ask for and that nobody exports here.
var notHere = map[string]string{
	"kube_cronjob_status_last_schedule_time":   "of kube-state-metrics, which is not run here; the name is from its documentation",
	"kube_cronjob_status_last_successful_time": "as above",
}

// objects give the API server something to count: a matchCondition that cannot be evaluated, and an aggregated API
// that nobody serves.
const objects = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: cannot-be-evaluated}
webhooks:
  - name: cannot-be-evaluated.example.com
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: Ignore
    clientConfig: {url: "https://localhost:1/"}
    rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}]
    matchConditions: [{name: broken, expression: "object.metadata.annotations['is-not-there'] == ''"}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.nowhere.example.com}
spec: {group: nowhere.example.com, version: v1, groupPriorityMinimum: 100, versionPriority: 100, insecureSkipTLSVerify: true, service: {namespace: default, name: nowhere}}
`

// One story, since each act needs what the one before has left behind.
func TestARealPrometheusKnowsWhatRulesAndDashboardAskFor(t *testing.T) {
	ctx := story.Within(t, 5*time.Minute)
	c, err := cluster.Start(ctx, cluster.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := newStage(ctx, t, c)

	managed := s.managed()
	healthy, deaf, withoutSAN, withoutSecret := s.webhooks()
	s.install(deaf, s.caBundle, "Ignore")
	s.call(5)
	s.install(healthy, s.caBundle, "Ignore")
	s.everyday()
	s.knock(healthy)
	pki := filepath.Join(c.Dir, "pki", "ca.crt")
	prometheus := startPrometheus(t, c, s.token(), []scrape{
		{job: "tracehook", targets: []string{host(healthy.MetricsURL), host(deaf.MetricsURL), host(withoutSAN.MetricsURL), host(withoutSecret.MetricsURL)}},
		{job: "tracehook", targets: []string{host(managed.MetricsURL)}, caFile: s.servingCA(), serverName: shippedServerName(t)},
		{job: "tracehook-lifecycle", targets: []string{s.lifecycle()}},
		{job: "apiserver", targets: []string{host(c.RESTConfig.Host)}, caFile: pki},
		{job: "kube-scheduler", targets: []string{s.scheduler()}, caFile: pki},
	})
	s.everyday()

	t.Run("who may not read the metrics of --metrics-auth does not", func(t *testing.T) {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
		resp, err := client.Get(strings.Replace(managed.MetricsURL, "http://", "https://", 1))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("without a token: %s, want 401", resp.Status)
		}
	})

	t.Run("with healthy certificates no alert about them fires", func(t *testing.T) {
		alerts, err := prometheus.query(t, `ALERTS{alertname=~"Webhook.*|TracehookRejects", alertstate="firing"}`)
		if err != nil || len(alerts) > 0 {
			t.Errorf("got %v, %v", alerts, err)
		}
	})

	t.Run("a certificate without SAN makes the alert fire that names the remedy", func(t *testing.T) {
		s.install(withoutSAN, s.bundleWithoutSAN, "Ignore")
		fired := prometheus.waitAlert(t, map[string]string{"alertname": "WebhookCertificateMissingSAN", "server": "webhook"}, func() { s.call(1) })
		for annotation, want := range map[string]string{
			"summary":     "An API server met the certificate of a webhook without a subject alternative name",
			"description": "`tracehook certs audit --fail-on=warning`",
			"runbook_url": "RUNBOOK.md#webhookcertificatemissingsan",
		} {
			if !strings.Contains(fired.Annotations[annotation], want) {
				t.Errorf("annotation %s is %q, want %q in it", annotation, fired.Annotations[annotation], want)
			}
		}
		prometheus.waitAlert(t, map[string]string{"alertname": "WebhookFailsOpen", "name": cluster.WebhookName}, func() { s.call(1) })
	})

	t.Run("with failurePolicy Fail requests of users fail, and the alert is critical", func(t *testing.T) {
		s.install(withoutSAN, s.bundleWithoutSAN, "Fail")
		prometheus.waitAlert(t, map[string]string{
			"alertname": "TracehookRejects", "severity": "critical", "name": cluster.WebhookName, "error_type": "calling_webhook_error",
		}, func() {
			if _, err := s.createConfigMap(); err == nil {
				t.Error("the request got through")
			}
		})
	})

	t.Run("all rules are evaluated without an error", func(t *testing.T) {
		var found struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
		if err := prometheus.get(ctx, "rules", nil, &found); err != nil {
			t.Fatal(err)
		}
		evaluated := 0
		for _, group := range found.Groups {
			for _, r := range group.Rules {
				evaluated++
				if r.Health != "ok" {
					t.Errorf("%s: %s %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		if rules, _ := shippedRules(t); evaluated != len(rules) {
			t.Errorf("%d rules are evaluated, %d are shipped", evaluated, len(rules))
		}
	})

	s.install(healthy, s.caBundle, "Ignore")

	t.Run("every query of the dashboard gives what its legend names", func(t *testing.T) {
		s.everyday() // a rate takes two scrapes with something between them
		s.knock(healthy)
		eventually(t, func() (problems []string) {
			for _, p := range shippedDashboard(t).Panels {
				for _, q := range p.Targets {
					series, err := prometheus.query(t, filledIn(q.Expr))
					if err != nil || len(series) == 0 {
						problems = append(problems, fmt.Sprintf("%s: %d series, %v\n%s", p.Title, len(series), err, q.Expr))
						continue
					}
					for _, match := range legendLabel.FindAllStringSubmatch(q.LegendFormat, -1) {
						if !has(series, match[1]) {
							problems = append(problems, fmt.Sprintf("%s: no series has the label %s, as %v\n%s", p.Title, match[1], series[0], q.Expr))
						}
					}
				}
			}
			return problems
		})
	})

	t.Run("every metric that a query or a rule names exists, with the labels that it is chosen by", func(t *testing.T) {
		var exprs []string
		rules, _ := shippedRules(t)
		for _, r := range rules {
			exprs = append(exprs, r.Expr)
		}
		d := shippedDashboard(t)
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				exprs = append(exprs, filledIn(q.Expr))
			}
		}
		for _, a := range d.Annotations.List {
			exprs = append(exprs, a.Expr)
		}
		var selectors []*node
		for _, expr := range exprs {
			selectors = append(selectors, prometheus.selectors(t, expr)...)
		}
		eventually(t, func() (problems []string) {
			missed := map[string]bool{}
			for _, selector := range selectors {
				series, err := prometheus.query(t, selector.Name)
				if err != nil || len(series) == 0 {
					missed[selector.Name] = true
					if notHere[selector.Name] == "" {
						problems = append(problems, fmt.Sprintf("nobody exports %s %v", selector.Name, err))
					}
					continue
				}
				for _, m := range selector.Matchers {
					if !has(series, m.Name) {
						problems = append(problems, fmt.Sprintf("no series of %s has the label %s", selector.Name, m.Name))
					}
				}
			}
			for name := range notHere {
				if !missed[name] {
					problems = append(problems, name+" is there, or nobody asks for it: take it out of notHere")
				}
			}
			return problems
		})
	})
}

// eventually is patient with a machine that is too busy for Prometheus to scrape in time.
func eventually(t *testing.T, look func() (problems []string)) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		problems := look()
		if len(problems) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(strings.Join(problems, "\n"))
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// has says whether one of the series has a label.
func has(series []map[string]string, label string) bool {
	return slices.ContainsFunc(series, func(labels map[string]string) bool { return labels[label] != "" })
}

var legendLabel = regexp.MustCompile(`\{\{([a-z_]+)\}\}`)

// filledIn puts in for Grafana's variables what Grafana would.
func filledIn(expr string) string {
	return strings.NewReplacer("$__rate_interval", "1m", "$webhook", ".+", "$timeout", "5").Replace(expr)
}

func host(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

// stage is what the story is played on.
type stage struct {
	ctx              context.Context
	t                *testing.T
	c                *cluster.Cluster
	clients          *kubernetes.Clientset
	caBundle         []byte
	bundleWithoutSAN []byte
}

func newStage(ctx context.Context, t *testing.T, c *cluster.Cluster) *stage {
	t.Helper()
	clients, err := kubernetes.NewForConfig(c.RESTConfig)
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{ctx: ctx, t: t, c: c, clients: clients}
	s.apply(objects)
	return s
}

func (s *stage) apply(manifest string) {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "objects.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.c.Kubectl(s.ctx, "apply", "-f", path); err != nil {
		s.t.Fatal(err)
	}
}

// webhooks are four: a healthy one, one whose spans get nowhere, one with a certificate without SAN, and one with none.
func (s *stage) webhooks() (healthy, deaf, withoutSAN, withoutSecret *cluster.Webhook) {
	s.t.Helper()
	tracehook, err := s.c.Binary("tracehook")
	if err != nil {
		s.t.Fatal(err)
	}
	good, bad := filepath.Join(s.c.Dir, "good"), filepath.Join(s.c.Dir, "bad")
	if s.caBundle, err = certificates.Issue(s.ctx, tracehook, certificates.Service, good); err != nil {
		s.t.Fatal(err)
	}
	if s.bundleWithoutSAN, err = certificates.IssueWithoutSAN(bad); err != nil {
		s.t.Fatal(err)
	}
	healthy = s.start(cluster.WebhookOptions{Name: "tracehook", CertDir: good})
	deaf = s.start(cluster.WebhookOptions{Name: "tracehook-deaf", CertDir: good, Env: []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", // where nobody is
		"OTEL_BSP_MAX_QUEUE_SIZE=1", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=1", "OTEL_BSP_EXPORT_TIMEOUT=200",
	}})
	// These two know what is wrong with them, and are not ready.
	withoutSAN = s.start(cluster.WebhookOptions{Name: "tracehook-without-san", CertDir: bad, Unready: true, Args: []string{"--webhook-configuration=tracehook"}})
	withoutSecret = s.start(cluster.WebhookOptions{Name: "tracehook-without-secret", Unready: true, Args: []string{"--certs=secret", "--serving-secret=not-there"}})
	return healthy, deaf, withoutSAN, withoutSecret
}

// managed is one that makes its own certificates and shows its metrics to few.
func (s *stage) managed() *cluster.Webhook {
	s.t.Helper()
	ports, err := cluster.FreePorts(1)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.c.InstallWebhookWith(s.ctx, cluster.InstallOptions{Port: ports[0], Components: []string{"certs-managed"}}); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.c.Kubectl(s.ctx, "apply", "-f", filepath.Join(component, "rbac.yaml")); err != nil {
		s.t.Fatal(err)
	}
	w := s.start(cluster.WebhookOptions{Name: "tracehook-managed", Port: ports[0], Args: []string{
		"--certs=managed", fmt.Sprintf("--service=tracehook:%d", ports[0]), "--api-server=" + s.c.RESTConfig.Host, "--rotation-soak=1s",
		"--metrics-secure", "--metrics-auth",
		"--client-ca-file=" + filepath.Join(s.c.Dir, "pki", "ca.crt"),
	}})
	// The first certificate of all replaces none, so nothing is proven before this.
	if out, err := run(s.t, "tracehook", "certs", "rotate", "--ca", "--kubeconfig="+s.c.Kubeconfig); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	return w
}

func (s *stage) start(o cluster.WebhookOptions) *cluster.Webhook {
	s.t.Helper()
	w, err := s.c.StartWebhook(s.ctx, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return w
}

// shippedServerName is what the ServiceMonitor has Prometheus verify.
func shippedServerName(t *testing.T) string {
	t.Helper()
	var monitor struct {
		Spec struct {
			Endpoints []struct{ TLSConfig struct{ ServerName string } }
		}
	}
	readYAML(t, filepath.Join(component, "servicemonitor.yaml"), &monitor)
	return monitor.Spec.Endpoints[0].TLSConfig.ServerName
}

// servingCA is a file with what Prometheus' operator takes out of the Secret.
func (s *stage) servingCA() string {
	s.t.Helper()
	secret, err := s.clients.CoreV1().Secrets("tracehook-system").Get(s.ctx, "tracehook-certs", metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.t.TempDir(), "ca.crt")
	if err := os.WriteFile(path, secret.Data["ca.crt"], 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *stage) install(w *cluster.Webhook, bundle []byte, failurePolicy string) {
	s.t.Helper()
	if err := s.c.InstallWebhookWith(s.ctx, cluster.InstallOptions{Port: w.Port, CABundle: bundle, FailurePolicy: failurePolicy}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) createConfigMap(owners ...metav1.OwnerReference) (*corev1.ConfigMap, error) {
	return s.clients.CoreV1().ConfigMaps("default").Create(s.ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "counted-", OwnerReferences: owners}}, metav1.CreateOptions{})
}

// call makes admission calls.
func (s *stage) call(times int) {
	s.t.Helper()
	for range times {
		if _, err := s.createConfigMap(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// knock is what a stranger does.
func (s *stage) knock(w *cluster.Webhook) {
	s.t.Helper()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Post(fmt.Sprintf("https://127.0.0.1:%d/mutate", w.Port), "application/json", strings.NewReader("{}"))
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
}

// everyday is what happens in a cluster: something is created, owned, relabelled.
func (s *stage) everyday() {
	s.t.Helper()
	s.call(3)
	s.becomes()
	s.apply(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: owner, namespace: default}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: main, image: "app:1"}]}}}}`)
	owner, err := s.clients.AppsV1().Deployments("default").Get(s.ctx, "owner", metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	owned, err := s.createConfigMap(*metav1.NewControllerRef(owner, appsv1.SchemeGroupVersion.WithKind("Deployment")))
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.c.Kubectl(s.ctx, "label", "configmap/"+owned.Name, "a=b"); err != nil {
		s.t.Fatal(err)
	}
}

// token is of the ServiceAccount as which Prometheus comes.
func (s *stage) token() string {
	s.t.Helper()
	request, err := s.clients.CoreV1().ServiceAccounts("tracehook-system").CreateToken(s.ctx, "tracehook-metrics-reader", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return request.Status.Token
}

// lifecycle starts `tracehook lifecycle`.
func (s *stage) lifecycle() (address string) {
	s.t.Helper()
	ports, err := cluster.FreePorts(1)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.c.Kubectl(s.ctx, "apply", "-f", filepath.Join(component, "..", "lifecycle", "rbac.yaml")); err != nil {
		s.t.Fatal(err)
	}
	address = fmt.Sprintf("127.0.0.1:%d", ports[0])
	if _, err := s.c.StartTracehook(s.ctx, cluster.TracehookOptions{
		Name: "tracehook-lifecycle", ServiceAccount: "tracehook-lifecycle", Args: []string{"lifecycle", "--health-probe-bind-address=0", "--metrics-bind-address=" + address},
	}); err != nil {
		s.t.Fatal(err)
	}
	return address
}

// becomes makes a Pod that is ready, one that was evicted, and a Deployment that is rolled out, as a kubelet and a controller
// would have them.
func (s *stage) becomes() {
	s.t.Helper()
	now := time.Now().UTC().Format(time.RFC3339)
	stamp := fmt.Sprintf(`annotations: {tracehook.dev/traceparent: "00-%032x-%016x-01"}`, time.Now().UnixNano(), 1)
	name := strings.ToLower(rand.Text())
	pod := func(name string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: default, %s}, spec: {nodeName: n1, containers: [{name: main, image: 'app:1'}]}}", name, stamp)
	}
	s.apply(pod("ready-" + name))
	s.apply(pod("evicted-" + name))
	s.apply(fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {name: %s, namespace: default, %s}, spec: {selector: {matchLabels: {a: c}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: main, image: 'app:1'}]}}}}", name, stamp))
	for object, status := range map[string]string{
		"pod/ready-" + name:   fmt.Sprintf(`{"phase":"Running","conditions":[{"type":"PodScheduled","status":"True","lastTransitionTime":%q},{"type":"Ready","status":"True","lastTransitionTime":%q}]}`, now, now),
		"pod/evicted-" + name: `{"phase":"Failed","reason":"Evicted","message":"The node was low on resource: memory."}`,
		"deployment/" + name:  fmt.Sprintf(`{"observedGeneration":1,"replicas":1,"updatedReplicas":1,"readyReplicas":1,"availableReplicas":1,"conditions":[{"type":"Progressing","status":"True","reason":"NewReplicaSetAvailable","lastUpdateTime":%q,"lastTransitionTime":%q}]}`, now, now),
	} {
		if _, err := s.c.Kubectl(s.ctx, "patch", object, "--subresource=status", "--type=merge", "-p", `{"status":`+status+`}`); err != nil {
			s.t.Fatal(err)
		}
	}
}

// scheduler starts a kube-scheduler that asks the API server who reads its /metrics, as it does in a cluster.
func (s *stage) scheduler() (address string) {
	s.t.Helper()
	ports, err := cluster.FreePorts(1)
	if err != nil {
		s.t.Fatal(err)
	}
	kubeconfig, err := s.c.User("system:kube-scheduler", "system:masters")
	if err != nil {
		s.t.Fatal(err)
	}
	address = fmt.Sprintf("127.0.0.1:%d", ports[0])
	_, err = s.c.StartProgram(s.ctx, cluster.ProgramOptions{
		Program: "kube-scheduler",
		Args: []string{
			"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
			"--leader-elect=false", "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[0]),
			"--tls-cert-file=" + filepath.Join(s.c.Dir, "pki", "serving.crt"), "--tls-private-key-file=" + filepath.Join(s.c.Dir, "pki", "serving.key"),
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return address
}
