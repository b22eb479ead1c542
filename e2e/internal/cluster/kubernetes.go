package cluster

// The control plane. Out: etcd, any number of API servers on it, and the controllers.
// Errors: *ProcessError, or of the file system.

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/keyutil"
)

// ServiceNetwork is where Services get their addresses. The first is Service kubernetes'.
const ServiceNetwork = "10.96.0.0/16"

// APIServer is one of the cluster's API servers.
type APIServer struct {
	Name       string       // "kube-apiserver", the second one "kube-apiserver-2"
	URL        string       // https://127.0.0.1:P
	Kubeconfig string       // for a member of system:masters
	RESTConfig *rest.Config // the same, for client-go
	AuditLog   string
	LogFile    string

	process *process
	client  *http.Client
}

// Stop ends this API server alone. Cluster.Stop does so for all.
func (s *APIServer) Stop() error { return s.process.stop() }

// Kill ends it at once, without waiting for those who watch.
func (s *APIServer) Kill() error { return s.process.kill() }

// First is the API server that Start has started.
func (c *Cluster) First() *APIServer { return c.first }

// running are the API servers that have not been stopped.
func (c *Cluster) running() []*APIServer {
	c.mu.Lock()
	defer c.mu.Unlock()
	var running []*APIServer
	for _, s := range c.apiServers {
		if !s.process.stopping.Load() {
			running = append(running, s)
		}
	}
	return running
}

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir}, elem...)...)
}

// writePKI writes what the processes read: the CA's certificate, the API servers'
// serving pair and the key that signs ServiceAccount tokens (which all API servers must
// share).
func (c *Cluster) writePKI() error {
	serving, err := c.ca.server(time.Now(), c.host())
	if err != nil {
		return err
	}
	tokens, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return fmt.Errorf("generate key for service account tokens: %w", err)
	}
	for name, data := range map[string][]byte{
		"ca.crt": c.ca.pem, "serving.crt": serving.cert, "serving.key": serving.key, "serviceaccounts.key": tokens,
	} {
		if err := os.WriteFile(c.path("pki", name), data, 0o600); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// writePair writes a client certificate and its key beside the CA's, and returns their path without .crt and .key.
func (c *Cluster) writePair(file, user string, groups ...string) (path string, err error) {
	client, err := c.ca.client(user, groups, time.Now())
	if err != nil {
		return "", err
	}
	path = c.path("pki", file)
	for name, data := range map[string][]byte{path + ".crt": client.cert, path + ".key": client.key} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			return "", fmt.Errorf("write %s: %w", name, err)
		}
	}
	return path, nil
}

// host is where others reach API servers and the Collector.
func (c *Cluster) host() string {
	if c.address == "" {
		return "127.0.0.1"
	}
	return c.address
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	client, peer := "http://"+loopback(ports[0]), "http://"+loopback(ports[1])
	args := []string{
		"--data-dir=" + c.path("etcd"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=default=" + peer,
		// Nothing in here is to survive a power cut, and fsync is most of what
		// etcd waits for.
		"--unsafe-no-fsync",
	}
	if !c.noTraces {
		args = append(args, "--enable-distributed-tracing",
			"--distributed-tracing-address="+c.CollectorGRPC,
			"--distributed-tracing-service-name=etcd",
			// Parent-based: a span per call that the API server traces.
			"--distributed-tracing-sampling-rate=1000000")
	}
	_, err = c.launch(ctx, launch{
		program: "etcd", args: args,
		env:   []string{spansSoon},
		ready: func(ctx context.Context) error { return get(ctx, http.DefaultClient, client+"/health") },
	})
	c.EtcdURL = client
	return err
}

// tracing is the API server's TracingConfiguration: every request, to the Collector.
// The endpoint carries no scheme (http:// is refused).
const tracing = `apiVersion: apiserver.config.k8s.io/%s
kind: TracingConfiguration
endpoint: %s
samplingRatePerMillion: 1000000
`

// tracingVersion is the newest version of that kind which the API server knows, and the flag that it wants beside it.
func (c *Cluster) tracingVersion() (apiVersion string, args []string) {
	switch {
	case c.Version.AtLeast(version.MajorMinor(1, 34)):
		return "v1", nil
	case c.Version.AtLeast(version.MajorMinor(1, 27)):
		return "v1beta1", nil
	}
	return "v1alpha1", []string{"--feature-gates=APIServerTracing=true"}
}

// findVersion asks the API server's binary.
func (c *Cluster) findVersion(ctx context.Context) error {
	binary, err := c.Binary("kube-apiserver")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return fmt.Errorf("ask kube-apiserver for its version: %w", err)
	}
	_, number, _ := strings.Cut(strings.TrimSpace(string(out)), " ") // Kubernetes v1.36.3
	if c.Version, err = version.ParseSemantic(number); err != nil {
		return fmt.Errorf("ask kube-apiserver for its version: %w", err)
	}
	return nil
}

// auditPolicy keeps every request's annotations, which is where the API server puts
// blame for a certificate and notes what a webhook did. The patch is noted from level
// Request up.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/metrics"]
- level: Metadata # whose bodies are secret, or long
  resources:
  - {group: "", resources: [secrets, serviceaccounts/token]}
- level: RequestResponse
  verbs: [create, update, patch, delete]
- level: Metadata
`

// APIServerOptions of one more API server.
type APIServerOptions struct {
	Args []string // more flags; a flag given here wins
	// EtcdURL is another way to the cluster's etcd than Cluster.EtcdURL: a proxy's. "":
	// none.
	EtcdURL string
}

// StartAPIServer starts an API server on the cluster's etcd, beside those that run
// already, and returns when it is ready. All of them share CA, users and ServiceAccount
// keys.
func (c *Cluster) StartAPIServer(ctx context.Context) (*APIServer, error) {
	return c.StartAPIServerWith(ctx, APIServerOptions{})
}

// StartAPIServerWith is StartAPIServer with flags of one's own.
func (c *Cluster) StartAPIServerWith(ctx context.Context, o APIServerOptions) (*APIServer, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	s := &APIServer{Name: c.uniqueName("kube-apiserver")}
	if c.address != "" && s.Name == "kube-apiserver" {
		ports[0] = 6443 // which the shipped NetworkPolicies let through
	}
	s.URL = "https://" + net.JoinHostPort(c.host(), strconv.Itoa(ports[0]))
	dir := c.path("apiserver", s.Name)
	s.AuditLog = filepath.Join(dir, "audit.log")
	s.Kubeconfig = filepath.Join(dir, "kubeconfig")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of %s: %w", s.Name, err)
	}
	tracingVersion, tracingArgs := c.tracingVersion()
	for name, text := range map[string]string{"tracing.yaml": fmt.Sprintf(tracing, tracingVersion, c.CollectorGRPC), "audit-policy.yaml": auditPolicy} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("write %s of %s: %w", name, s.Name, err)
		}
	}
	if err := c.writeKubeconfig(s.Kubeconfig, s.URL, "admin", []string{"system:masters"}); err != nil {
		return nil, err
	}
	if s.RESTConfig, err = restConfig(s.Kubeconfig); err != nil {
		return nil, err
	}
	if s.client, err = rest.HTTPClientFor(s.RESTConfig); err != nil {
		return nil, fmt.Errorf("make client of %s: %w", s.Name, err)
	}
	clients, err := kubernetes.NewForConfig(s.RESTConfig)
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", s.Name, err)
	}

	if o.EtcdURL == "" {
		o.EtcdURL = c.EtcdURL
	}
	args := []string{
		"--etcd-servers=" + o.EtcdURL,
		"--bind-address=" + c.host(),
		"--advertise-address=" + c.host(),
		"--secure-port=" + strconv.Itoa(ports[0]),
		"--tls-cert-file=" + c.path("pki", "serving.crt"),
		"--tls-private-key-file=" + c.path("pki", "serving.key"),
		"--client-ca-file=" + c.path("pki", "ca.crt"),
		"--authorization-mode=Node,RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.path("pki", "serviceaccounts.key"),
		"--service-account-signing-key-file=" + c.path("pki", "serviceaccounts.key"),
		"--service-cluster-ip-range=" + ServiceNetwork,
		"--audit-policy-file=" + filepath.Join(dir, "audit-policy.yaml"),
		"--audit-log-path=" + s.AuditLog,
		"--audit-log-maxsize=0", // no rotation: AuditEvents reads one file
		// No --enable-aggregator-routing: with it the API server refuses Services of
		// type ExternalName, and one of these is how it finds the webhook on this
		// host under its in-cluster name.
	}
	if c.address == "" {
		// A loopback address must not be in the endpoints of Service
		// default/kubernetes; the reconciler would try every ten seconds and
		// complain. No pod runs here that could miss them.
		args = append(args, "--endpoint-reconciler-type=none")
	} else {
		kubelets, err := c.writePair("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
		if err != nil {
			return nil, err
		}
		args = append(args,
			"--enable-admission-plugins=NodeRestriction",
			"--kubelet-client-certificate="+kubelets+".crt",
			"--kubelet-client-key="+kubelets+".key",
			"--kubelet-preferred-address-types=InternalIP")
	}
	if !c.noTraces && !c.untraced {
		args = append(args, "--tracing-config-file="+filepath.Join(dir, "tracing.yaml"))
		args = append(args, tracingArgs...)
	}
	if !c.controllers {
		// Nobody makes the ServiceAccount `default` of a namespace, without which
		// this plugin admits no pod.
		args = append(args, "--disable-admission-plugins=ServiceAccount")
	}
	s.process, err = c.launch(ctx, launch{
		name: s.Name, program: "kube-apiserver", args: append(args, o.Args...), env: []string{spansSoon},
		ready: func(ctx context.Context) error {
			if err := get(ctx, s.client, s.URL+"/readyz"); err != nil {
				return err
			}
			// Ready to serve, it has still to make the namespace that everybody uses
			// first.
			_, err := clients.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	s.LogFile = s.process.logPath
	c.mu.Lock()
	c.apiServers = append(c.apiServers, s)
	c.mu.Unlock()
	return s, nil
}

// uniqueName numbers the second and further processes of a name.
func (c *Cluster) uniqueName(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[name]++
	if n := c.names[name]; n > 1 {
		return name + "-" + strconv.Itoa(n)
	}
	return name
}

// startControllerManager starts the controllers that make ReplicaSets of Deployments
// and Pods of ReplicaSets.
func (c *Cluster) startControllerManager(ctx context.Context) error {
	kubeconfig := c.path("users", "kube-controller-manager.kubeconfig")
	if err := c.writeKubeconfig(kubeconfig, c.first.URL, "system:kube-controller-manager", []string{"system:masters"}); err != nil {
		return err
	}
	clients, err := kubernetes.NewForConfig(c.RESTConfig)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	var nodes []string
	if c.address != "" {
		nodes = append(nodes, "--node-monitor-grace-period=20s") // instead of 50 s: a test waits for a node that vanishes
	}
	_, err = c.launch(ctx, launch{
		program: "kube-controller-manager",
		args: append(nodes,
			"--kubeconfig="+kubeconfig,
			"--root-ca-file="+c.path("pki", "ca.crt"), // what ConfigMap kube-root-ca.crt of each namespace holds
			"--leader-elect=false",                    // there is one
			"--use-service-account-credentials=false", // all controllers are one user, of system:masters
			"--secure-port=0",
			// For Secrets that ask for a ServiceAccount's token.
			"--service-account-private-key-file="+c.path("pki", "serviceaccounts.key"),
		),
		// The first thing of its that anyone misses.
		ready: func(ctx context.Context) error {
			_, err := clients.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
			return err
		},
	})
	return err
}

func (c *Cluster) startScheduler(ctx context.Context) error {
	kubeconfig := c.path("users", "kube-scheduler.kubeconfig")
	if err := c.writeKubeconfig(kubeconfig, c.first.URL, "system:kube-scheduler", []string{"system:masters"}); err != nil {
		return err
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	_, err = c.launch(ctx, launch{
		program: "kube-scheduler",
		args: []string{
			"--kubeconfig=" + kubeconfig,
			"--leader-elect=false",
			// Only for the probe below: the scheduler does nothing that one could
			// wait for until there is a node.
			"--bind-address=127.0.0.1",
			"--secure-port=" + strconv.Itoa(ports[0]),
			"--tls-cert-file=" + c.path("pki", "serving.crt"),
			"--tls-private-key-file=" + c.path("pki", "serving.key"),
		},
		ready: func(ctx context.Context) error {
			return get(ctx, c.first.client, "https://"+loopback(ports[0])+"/healthz") // /readyz is newer
		},
	})
	return err
}
