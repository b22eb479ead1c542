package cluster

// The webhook. In: certificates, flags. Out: the built tracehook as a process,
// installed from the shipped manifests. Errors: *ProcessError, kubectl's, the API
// server's.

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	admissionapply "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"k8s.io/client-go/kubernetes"
)

// Names in the shipped manifests.
const (
	webhookNamespace     = "tracehook-system"
	webhookConfiguration = "tracehook"
)

// WebhookOptions say how to run `tracehook serve`.
type WebhookOptions struct {
	CertDir   string     // directory of tls.crt and tls.key; "": Args say where certificates come from
	Args      []string   // more flags; a flag given here wins
	Env       []string   // more environment, on top of Cluster.Env
	Name      string     // of the log file; "": "tracehook"
	Port      int        // for admission calls; 0: a free one
	Namespace string     // as TracehookOptions'
	APIServer *APIServer // the one it talks to; nil: the first
	// Unready does not wait until it is ready, only until it answers probes.
	Unready bool
}

// Webhook is a running `tracehook serve`.
type Webhook struct {
	Program
	Port       int    // admission calls, TLS, on 127.0.0.1
	HealthURL  string // base of /healthz and /readyz
	MetricsURL string // the page itself
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
	w := &Webhook{
		Port:       o.Port,
		HealthURL:  "http://" + loopback(ports[1]),
		MetricsURL: "http://" + loopback(ports[2]) + "/metrics",
	}
	args := []string{
		"serve",
		"--webhook-bind-address=" + loopback(o.Port),
		"--health-probe-bind-address=" + loopback(ports[1]),
		"--metrics-bind-address=" + loopback(ports[2]),
		"--shutdown-delay=0s", // no load balancer here has to notice first
	}
	if o.CertDir != "" {
		args = append(args, "--webhook-cert-path="+o.CertDir)
	}
	answers := w.HealthURL + "/readyz"
	if o.Unready {
		answers = w.HealthURL + "/healthz"
	}
	program, err := c.StartTracehook(ctx, TracehookOptions{
		Args: append(args, o.Args...), Env: o.Env, Name: o.Name, Namespace: o.Namespace, APIServer: o.APIServer,
		Ready: func(ctx context.Context) error { return get(ctx, http.DefaultClient, answers) },
	})
	if err != nil {
		return nil, err
	}
	w.Program = *program
	return w, nil
}

// TracehookOptions say how to run the built tracehook, whatever it is to do.
type TracehookOptions struct {
	Args []string
	Env  []string // more environment, on top of Cluster.Env
	Name string   // of the log file; "": "tracehook"
	// Namespace and ServiceAccount that it is to the API server, with no more
	// rights than the manifests give. "": "tracehook-system" and "tracehook".
	Namespace, ServiceAccount string
	APIServer                 *APIServer // the one it talks to; nil: the first
	// Ready is asked until it has no complaint. Nil: nobody waits.
	Ready func(context.Context) error
}

// StartTracehook starts the built tracehook.
func (c *Cluster) StartTracehook(ctx context.Context, o TracehookOptions) (*Program, error) {
	env := c.Env()
	if o.Namespace != "" {
		env = append(env, "POD_NAMESPACE="+o.Namespace)
	}
	namespace, account := cmp.Or(o.Namespace, webhookNamespace), cmp.Or(o.ServiceAccount, "tracehook")
	kubeconfig, err := c.userOf(o.APIServer, "system:serviceaccount:"+namespace+":"+account,
		"system:serviceaccounts", "system:serviceaccounts:"+namespace, "system:authenticated")
	if err != nil {
		return nil, err
	}
	return c.StartProgram(ctx, ProgramOptions{
		Program: "tracehook", Name: o.Name, Args: o.Args,
		Env:   append(append(env, "KUBECONFIG="+kubeconfig), o.Env...),
		Ready: o.Ready,
	})
}

// InstallOptions say how to install the webhook.
type InstallOptions struct {
	Port          int    // where it listens
	ProofPort     int    // the same for Service tracehook-proof; 0: Port
	CABundle      []byte // PEM; nil: somebody else's affair
	FailurePolicy string // "": as shipped, Ignore
	// Components are names of directories in deploy/components.
	Components []string
	Namespace  string // another than tracehook-system, by kustomize's `namespace`
}

// InstallWebhook applies deploy/overlays/local with the port changed, writes the CA
// bundle as an operator would, and returns when every API server of the cluster calls
// the webhook so. Whether the calls succeed is not looked at: that is for tests to say.
func (c *Cluster) InstallWebhook(ctx context.Context, port int, caBundle []byte) error {
	return c.InstallWebhookWith(ctx, InstallOptions{Port: port, CABundle: caBundle})
}

// InstallWebhookWith is InstallWebhook with more to choose.
func (c *Cluster) InstallWebhookWith(ctx context.Context, o InstallOptions) error {
	if err := c.ApplyWebhook(ctx, o); err != nil {
		return err
	}
	return c.WaitInForce(ctx)
}

// ApplyWebhook is InstallWebhookWith for those who do not wait until anybody acts on it.
func (c *Cluster) ApplyWebhook(ctx context.Context, o InstallOptions) error {
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
	deploy, err := filepath.Rel(dir, filepath.Join(root, "deploy"))
	if err != nil {
		return fmt.Errorf("write kustomization: %w", err)
	}
	deploy = filepath.ToSlash(deploy)
	if o.ProofPort == 0 {
		o.ProofPort = o.Port
	}
	if o.FailurePolicy == "" {
		o.FailurePolicy = "Ignore"
	}
	text := fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%[1]q]
patches:
- target: {kind: Service, name: tracehook}
  patch: '[{"op": "replace", "path": "/spec/ports/0/port", "value": %[2]d}]'
- target: {kind: Service, name: tracehook-proof}
  patch: '[{"op": "replace", "path": "/spec", "value": {"type": "ExternalName", "externalName": "localhost", "ports": [{"name": "webhook", "port": %[4]d}]}}]'
- target: {kind: MutatingWebhookConfiguration, name: tracehook}
  patch: '[{"op": "replace", "path": "/webhooks/0/clientConfig/service/port", "value": %[2]d}]'
- target: {kind: MutatingWebhookConfiguration, name: tracehook-proof}
  patch: '[{"op": "replace", "path": "/webhooks/0/clientConfig/service/port", "value": %[4]d}]'
- target: {kind: MutatingWebhookConfiguration, name: tracehook}
  patch: '[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": %[3]q}]'
`, deploy+"/overlays/local", o.Port, o.FailurePolicy, o.ProofPort)
	if c.Version.LessThan(version.MajorMinor(1, 30)) { // as deploy/COMPATIBILITY.md has it
		text += `- target: {kind: "ValidatingAdmissionPolicy(Binding)?"}
  patch: "{$patch: delete, apiVersion: v1, kind: any, metadata: {name: any}}"
`
	}
	if o.Namespace != "" {
		text += "namespace: " + o.Namespace + "\n"
	}
	text += "components:\n"
	for _, component := range o.Components {
		text += fmt.Sprintf("- %q\n", deploy+"/components/"+component)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write kustomization: %w", err)
	}
	if _, err := c.Kubectl(ctx, "apply", "-k", dir); err != nil {
		return fmt.Errorf("install webhook: %w", err)
	}
	if o.CABundle == nil {
		return nil
	}
	return c.WriteCABundle(ctx, o.CABundle)
}

// SetCABundle replaces the CA bundle (PEM) of the installed webhook, and nothing else
// of it, by server-side apply. It returns when every API server of the cluster uses it.
func (c *Cluster) SetCABundle(ctx context.Context, caBundle []byte) error {
	if err := c.WriteCABundle(ctx, caBundle); err != nil {
		return err
	}
	return c.WaitInForce(ctx)
}

// WriteCABundle is SetCABundle for those who do not wait until anybody uses it.
func (c *Cluster) WriteCABundle(ctx context.Context, caBundle []byte) error {
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
	return nil
}

// WaitInForce returns when every API server of the cluster acts on the webhook
// configurations and Services that are stored now.
func (c *Cluster) WaitInForce(ctx context.Context) error {
	clients, err := kubernetes.NewForConfig(c.RESTConfig)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	if err := c.inForce(ctx, clients); err != nil {
		return fmt.Errorf("wait until webhook and CA bundle are in force: %w", err)
	}
	return nil
}
