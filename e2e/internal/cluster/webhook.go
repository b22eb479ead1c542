package cluster

// The webhook. In: certificates, flags. Out: the built tracehook as a process,
// installed from the shipped manifests. Errors: *ProcessError, kubectl's, the API
// server's.

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	admissionapply "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"k8s.io/client-go/kubernetes"
)

// Names in the shipped manifests.
const (
	webhookNamespace     = "tracehook-system"
	webhookConfiguration = "tracehook"
	serviceAccount       = "system:serviceaccount:" + webhookNamespace + ":tracehook"
)

// WebhookOptions say how to run `tracehook serve`.
type WebhookOptions struct {
	CertDir string   // directory of tls.crt and tls.key
	Args    []string // more flags; a flag given here wins
	Env     []string // more environment, on top of Cluster.Env
	Name    string   // of the log file; "": "tracehook"
	Port    int      // for admission calls; 0: a free one
}

// Webhook is a running `tracehook serve`.
type Webhook struct {
	Port       int    // admission calls, TLS, on 127.0.0.1
	HealthURL  string // base of /healthz and /readyz
	MetricsURL string // the page itself
	LogFile    string

	process *process
}

// StartWebhook starts the built tracehook, exporting to this cluster's Collector, and
// returns when it is ready. The API server does not know of it yet: see InstallWebhook.
func (c *Cluster) StartWebhook(ctx context.Context, o WebhookOptions) (*Webhook, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	if o.Port == 0 {
		o.Port = ports[0]
	}
	if o.Name == "" {
		o.Name = "tracehook"
	}
	// To the API server it is the ServiceAccount of the manifests, with no more rights.
	kubeconfig, err := c.User(serviceAccount, "system:serviceaccounts", "system:serviceaccounts:"+webhookNamespace, "system:authenticated")
	if err != nil {
		return nil, err
	}
	w := &Webhook{
		Port:       o.Port,
		HealthURL:  "http://" + loopback(ports[1]),
		MetricsURL: "http://" + loopback(ports[2]) + "/metrics",
	}
	w.process, err = c.launch(ctx, launch{
		name: o.Name, program: "tracehook",
		args: append([]string{
			"serve",
			"--webhook-bind-address=" + loopback(o.Port),
			"--health-probe-bind-address=" + loopback(ports[1]),
			"--metrics-bind-address=" + loopback(ports[2]),
			"--webhook-cert-path=" + o.CertDir,
			"--shutdown-delay=0s", // no load balancer here has to notice first
		}, o.Args...),
		env:   append(append(c.Env(), "KUBECONFIG="+kubeconfig), o.Env...),
		ready: func(ctx context.Context) error { return get(ctx, http.DefaultClient, w.HealthURL+"/readyz") },
	})
	if err != nil {
		return nil, err
	}
	w.LogFile = w.process.logPath
	return w, nil
}

// Stop sends SIGTERM and returns the exit code once the process is gone. An error means
// that it had ended before, or had to be killed. Cluster.Stop does the same for all.
func (w *Webhook) Stop() (exitCode int, err error) {
	err = w.process.stop()
	return w.process.cmd.ProcessState.ExitCode(), err
}

// InstallWebhook applies deploy/overlays/local with the port changed, writes the CA
// bundle as an operator would, and returns when every API server of the cluster calls
// the webhook so. Whether the calls succeed is not looked at: that is for tests to say.
func (c *Cluster) InstallWebhook(ctx context.Context, port int, caBundle []byte) error {
	root, err := repository()
	if err != nil {
		return err
	}
	// kustomize takes only relative paths, and follows them from the directory's real
	// place.
	dir, err := filepath.EvalSymlinks(c.path("install"))
	if err != nil {
		return fmt.Errorf("write kustomization: %w", err)
	}
	overlay, err := filepath.Rel(dir, filepath.Join(root, "deploy", "overlays", "local"))
	if err != nil {
		return fmt.Errorf("write kustomization: %w", err)
	}
	text := fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%q]
patches:
- target: {kind: Service, name: tracehook}
  patch: '[{"op": "replace", "path": "/spec/ports/0/port", "value": %[2]d}]'
- target: {kind: MutatingWebhookConfiguration, name: tracehook}
  patch: '[{"op": "replace", "path": "/webhooks/0/clientConfig/service/port", "value": %[2]d}]'
`, filepath.ToSlash(overlay), port)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write kustomization: %w", err)
	}
	if _, err := c.Kubectl(ctx, "apply", "-k", dir); err != nil {
		return fmt.Errorf("install webhook: %w", err)
	}
	return c.SetCABundle(ctx, caBundle)
}

// SetCABundle replaces the CA bundle (PEM) of the installed webhook, and nothing else
// of it, by server-side apply. It returns when every API server of the cluster uses it.
func (c *Cluster) SetCABundle(ctx context.Context, caBundle []byte) error {
	clients, err := kubernetes.NewForConfig(c.RESTConfig)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	configuration := admissionapply.MutatingWebhookConfiguration(webhookConfiguration).WithWebhooks(
		admissionapply.MutatingWebhook().WithName(WebhookName).WithClientConfig(
			admissionapply.WebhookClientConfig().WithCABundle(caBundle...)))
	if _, err := clients.AdmissionregistrationV1().MutatingWebhookConfigurations().
		Apply(ctx, configuration, metav1.ApplyOptions{FieldManager: "tracehook-e2e-cabundle", Force: true}); err != nil {
		return fmt.Errorf("write CA bundle: %w", err)
	}
	if err := c.inForce(ctx, clients); err != nil {
		return fmt.Errorf("wait until webhook and CA bundle are in force: %w", err)
	}
	return nil
}
