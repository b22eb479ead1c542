package deploy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// shippedArgs are those of a Deployment in a file.
func shippedArgs(t *testing.T, path, deployment string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range strings.Split(string(text), "\n---\n") {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     struct {
				Template struct {
					Spec struct{ Containers []struct{ Args []string } }
				}
			}
		}
		if !strings.Contains(document, "\nkind: Deployment\n") {
			continue
		}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatal(err)
		}
		if object.Metadata.Name == deployment {
			return object.Spec.Template.Spec.Containers[0].Args
		}
	}
	t.Fatalf("%s has no Deployment %s", path, deployment)
	return nil
}

// scrape asks for /metrics as Prometheus does with the shipped ServiceMonitor.
func scrape(ctx context.Context, url, token string, trusted []byte, serverName string) (code int, page string, err error) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trusted)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: serverName}, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// The processes as shipped, both kinds: over TLS, with the token and the CA that the ServiceMonitors name, Prometheus reads what the rest
// of the cluster may not. With no API server to ask nobody does.
func TestMetricsAreForPrometheusAlone(t *testing.T) {
	path := kustomization(t, "overlays/local", "certs-authority", "monitoring")
	shipped := kustomization(t, "base", "certs-authority")
	ctx := story.Within(t, 3*time.Minute)
	apiServer, err := shared.StartAPIServer(ctx) // one that may go
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = apiServer.Kill() })
	ports, err := cluster.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		uninstall(t, path)
		mustKubectl(t, "-n", namespace, "delete", "--ignore-not-found", "secret/tracehook-ca", "secret/tracehook-certs", "lease/tracehook-certs")
	})
	if err := shared.ApplyWebhook(ctx, cluster.InstallOptions{Port: ports[0], Components: []string{"certs-authority", "monitoring"}}); err != nil {
		t.Fatal(err)
	}
	authority, err := shared.StartTracehook(ctx, cluster.TracehookOptions{
		Name: "authority-metrics", ServiceAccount: "tracehook-authority", APIServer: apiServer,
		Args: append(shippedArgs(t, shipped, "tracehook-authority"), "--health-probe-bind-address=0", fmt.Sprintf("--metrics-bind-address=127.0.0.1:%d", ports[1]),
			"--api-server="+shared.First().URL, fmt.Sprintf("--service=tracehook:%d", ports[0])),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = authority.Stop() })
	webhook, err := shared.StartWebhook(ctx, cluster.WebhookOptions{
		Name: "tracehook-metrics", Port: ports[0], APIServer: apiServer,
		Args: append(shippedArgs(t, shipped, "tracehook")[1:], "--shutdown-delay=0s"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = webhook.Stop() })

	monitor := func(name, field string) string {
		return mustKubectl(t, "-n", namespace, "get", "servicemonitor/"+name, "-o", "jsonpath={.spec.endpoints[0]."+field+"}")
	}
	secret := func(name, key string) []byte {
		t.Helper()
		var value []byte
		eventually(t, 10*time.Second, func(ctx context.Context) error { // controllers write both
			found, err := shared.clients.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
			if err == nil && len(found.Data[key]) == 0 {
				err = fmt.Errorf("Secret %s has no %q", name, key)
			}
			if err == nil {
				value = found.Data[key]
			}
			return err
		})
		return value
	}
	mustKubectl(t, "-n", namespace, "create", "serviceaccount", "metrics-stranger")
	t.Cleanup(func() { mustKubectl(t, "-n", namespace, "delete", "serviceaccount", "metrics-stranger") })
	token := func(account string) string {
		return strings.TrimSpace(mustKubectl(t, "-n", namespace, "create", "token", account))
	}
	urls := map[string]string{
		"tracehook":           strings.Replace(webhook.MetricsURL, "http:", "https:", 1),
		"tracehook-authority": fmt.Sprintf("https://127.0.0.1:%d/metrics", ports[1]),
	}
	for name, url := range urls {
		if scheme := monitor(name, "scheme"); scheme != "https" {
			t.Errorf("%s is scraped by %q", name, scheme)
		}
		trusted := secret(monitor(name, "tlsConfig.ca.secret.name"), monitor(name, "tlsConfig.ca.secret.key"))
		serverName := monitor(name, "tlsConfig.serverName")
		prometheus := string(secret(monitor(name, "authorization.credentials.name"), monitor(name, "authorization.credentials.key")))
		for _, caller := range []struct {
			who, token string
			code       int
		}{
			{"nobody", "", http.StatusUnauthorized},
			{"another account of our namespace", token("metrics-stranger"), http.StatusForbidden},
			{"the account that serves", token("tracehook"), http.StatusForbidden},
			{"Prometheus", prometheus, http.StatusOK},
		} {
			eventually(t, 20*time.Second, func(ctx context.Context) error { // until RBAC and the certificate are there
				code, page, err := scrape(ctx, url, caller.token, trusted, serverName)
				if err == nil && (code != caller.code || (code == http.StatusOK) != strings.Contains(page, "tracehook_")) {
					err = fmt.Errorf("%s asks %s: %d %.100s, want %d", caller.who, name, code, page, caller.code)
				}
				return err
			})
		}
		if response, err := http.Get(strings.Replace(url, "https:", "http:", 1)); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				t.Errorf("%s shows its metrics without TLS", name)
			}
		}
	}

	late := token("tracehook-metrics-reader") // nobody has asked about this one yet
	if err := apiServer.Kill(); err != nil {
		t.Fatal(err)
	}
	for name, url := range urls {
		code, page, err := scrape(ctx, url, late, secret("tracehook-certs", "ca.crt"), monitor(name, "tlsConfig.serverName"))
		if err != nil || code == http.StatusOK || strings.Contains(page, "tracehook_") {
			t.Errorf("%s without an API server to ask: %d %.100s, %v", name, code, page, err)
		}
	}
}
