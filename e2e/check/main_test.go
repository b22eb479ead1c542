// Package check tests `tracehook check` against a real control plane: before an install, after each way to install, and with each
// thing broken that it is to find.
//
// Deployment, ReplicaSet and Pods are the shipped ones, made by the real controllers. There is no node, so the tests do what a
// kubelet does: they run each Pod's command at an address of its own, and write the Pod's status.
package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

const namespace = "tracehook-system"

var shared struct {
	*cluster.Cluster
	tracehook string // path of the binary
	deploy    string // the directory
}

func TestMain(m *testing.M) { os.Exit(story.Run(m, cluster.Options{Controllers: true}, prepare)) }

func prepare(ctx context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.tracehook, err = c.Binary("tracehook"); err != nil {
		return err
	}
	shared.deploy, err = filepath.Abs("../../deploy")
	return err
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, shared.Cluster, args...)
}

// eventually asks until there is no complaint. It works in a cleanup, too.
func eventually(t *testing.T, limit time.Duration, ask func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after %s: %v", limit, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// answer is what `tracehook check` wrote, and its exit code.
type answer struct {
	out, errs string
	code      int
}

// command is `tracehook check` for whoever the kubeconfig is for.
func command(ctx context.Context, kubeconfig string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, shared.tracehook, append([]string{"check"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HOME="+filepath.Join(shared.Dir, "home"))
	return cmd
}

func check(t *testing.T, kubeconfig string, args ...string) answer {
	t.Helper()
	cmd := command(story.Within(t, 2*time.Minute), kubeconfig, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run tracehook check: %v", err)
	}
	return answer{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// statusOf is what the answer says of a check; "" for nothing.
func (a answer) statusOf(code string) string {
	match := regexp.MustCompile(`(?m)^(ok|warn|fail|skip) +` + code + ` `).FindStringSubmatch(a.out)
	if match == nil {
		return ""
	}
	return match[1]
}

// lineOf is the line of a check.
func (a answer) lineOf(code string) string {
	return regexp.MustCompile(`(?m)^(ok|warn|fail|skip) +` + code + ` .*$`).FindString(a.out)
}

// want wants these statuses and this exit code.
func (a answer) want(t *testing.T, code int, statuses map[string]string) {
	t.Helper()
	wrong := a.code != code
	for name, status := range statuses {
		wrong = wrong || a.statusOf(name) != status
	}
	if wrong {
		t.Errorf("exit code %d, want %d and %v:\n%s%s", a.code, code, statuses, a.out, a.errs)
	}
}

// user has the rights of nobody but what RBAC gives to names.
func user(t *testing.T, name string, groups ...string) (kubeconfig string) {
	t.Helper()
	kubeconfig, err := shared.User(name, groups...)
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// checker is who deploy/components/check runs as, with a token as in a Pod.
func checker(t *testing.T) (kubeconfig string) {
	t.Helper()
	token := strings.TrimSpace(mustKubectl(t, "-n", namespace, "create", "token", "tracehook-check"))
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}], users: [{name: u, user: {token: %q}}]}`,
		shared.First().URL, filepath.Join(shared.Dir, "pki", "ca.crt"), token)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// installation is tracehook with the shipped Pods.
type installation struct {
	way     string
	port    int // where the API server finds the replicas
	bundle  []byte
	certDir string
	pods    []*pod
	flags   []string // more, for all replicas
}

// pod is a Pod with the process that it is about.
type pod struct {
	name, ip string
	args     []string
	program  *cluster.Program
}

// ways to install, and what certificates component each has.
var ways = map[string]string{"files": "certs-files", "managed": "certs-managed", "split": "certs-authority"}

// install applies a way to install with components, and waits for the Pods. Nothing runs yet.
func install(t *testing.T, way string, components ...string) *installation {
	t.Helper()
	ctx := story.Within(t, time.Minute)
	i := &installation{way: way, port: forward(t)}
	all := append([]string{ways[way], "check"}, components...)
	options := cluster.InstallOptions{Port: i.port, Components: all}
	if way == "files" {
		i.certDir = t.TempDir()
		var err error
		if i.bundle, err = certificates.Issue(ctx, shared.tracehook, certificates.Service, i.certDir); err != nil {
			t.Fatal(err)
		}
		options.CABundle = i.bundle
	}
	t.Cleanup(func() {
		for _, p := range i.pods {
			if p.program != nil {
				_, _ = p.program.Stop()
			}
		}
		uninstall(t)
	})
	if err := shared.InstallWebhookWith(ctx, options); err != nil {
		t.Fatal(err)
	}
	for n := range len(strings.Fields(mustKubectl(t, "get", "mutatingwebhookconfiguration/tracehook", "-o", "jsonpath={.webhooks[*].name}"))) {
		patch := fmt.Sprintf(`[{"op":"replace","path":"/webhooks/%d/clientConfig/service/port","value":%d}]`, n, i.port)
		mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p", patch)
	}
	// What overlays/local leaves out, as it is processes that run: here they run as Pods.
	rendered := mustKubectl(t, "kustomize", filepath.Join(shared.deploy, "overlays", way))
	var documents []string
	for _, document := range strings.Split(rendered, "\n---\n") {
		if regexp.MustCompile(`(?m)^kind: (Deployment|NetworkPolicy)$`).MatchString(document) && regexp.MustCompile(`(?m)^  name: tracehook$`).MatchString(document) {
			documents = append(documents, document)
		}
	}
	mustKubectl(t, "apply", "-f", write(t, strings.Join(documents, "\n---\n")))
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/name=tracehook", "-o", "json")
		if err != nil {
			return err
		}
		var list corev1.PodList
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		if len(list.Items) != 2 {
			return fmt.Errorf("there are %d Pods", len(list.Items))
		}
		i.pods = nil
		for _, p := range list.Items {
			// Addresses of this machine, and nobody else's: the tests of other packages listen on 127.0.0.1.
			ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
			i.pods = append(i.pods, &pod{name: p.Name, ip: ip, args: p.Spec.Containers[0].Args})
		}
		return nil
	})
	return i
}

// start runs a Pod's command as its ServiceAccount. Until ready is called the API server thinks that it is still being made.
func (i *installation) start(t *testing.T, p *pod, env ...string) {
	t.Helper()
	args := append(slices.Clone(p.args),
		"--webhook-bind-address="+net.JoinHostPort(p.ip, "9443"), "--health-probe-bind-address="+net.JoinHostPort(p.ip, "8081"),
		"--metrics-bind-address="+net.JoinHostPort(p.ip, "8080"), "--shutdown-delay=0s")
	if i.certDir != "" {
		args = append(args, "--webhook-cert-path="+i.certDir)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // also in a cleanup
	defer cancel()
	program, err := shared.StartTracehook(ctx, cluster.TracehookOptions{Name: p.name, Args: append(args, i.flags...), Env: env})
	if err != nil {
		t.Fatal(err)
	}
	p.program = program // which ends with the installation
}

// ready waits until the process is, and says so in the Pod's status.
func (p *pod) ready(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func(ctx context.Context) error { return p.probe(ctx, "/readyz") })
	p.status(t, "True")
	p.lead()
}

// lead leads API servers to it.
func (p *pod) lead() {
	address := net.JoinHostPort(p.ip, "9443")
	if old := *routes.Load(); !slices.Contains(old, address) {
		routes.Store(new(append(slices.Clone(old), address)))
	}
}

// startAuthority runs the Pods that keep certificates, of which one is enough.
func startAuthority(t *testing.T, flags []string) {
	t.Helper()
	authority, err := shared.StartTracehook(story.Within(t, time.Minute), cluster.TracehookOptions{
		Name: "authority", ServiceAccount: "tracehook-authority",
		Args: append([]string{"certs", "authority", "--health-probe-bind-address=0", "--metrics-bind-address=0"}, flags...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = authority.Stop() })
}

// probe asks as a kubelet does.
func (p *pod) probe(ctx context.Context, path string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(p.ip, "8081")+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, text)
	}
	return nil
}

// status is what a kubelet writes.
func (p *pod) status(t *testing.T, ready string) {
	t.Helper()
	mustKubectl(t, "-n", namespace, "patch", "pod", p.name, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(
		`{"status":{"phase":"Running","podIP":%[1]q,"podIPs":[{"ip":%[1]q}],"conditions":[{"type":"Ready","status":%[2]q}]}}`, p.ip, ready))
}

// routes are the addresses of ready replicas.
var routes atomic.Pointer[[]string]

// forward stands for kube-proxy: a port that leads to ready replicas, alternately.
func forward(t *testing.T) (port int) {
	t.Helper()
	routes.Store(new([]string))
	ports, err := cluster.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for n := 0; ; n++ {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			to := *routes.Load()
			if len(to) == 0 {
				client.Close()
				continue
			}
			server, err := net.Dial("tcp", to[n%len(to)])
			if err != nil {
				client.Close()
				continue
			}
			go func() { _, _ = io.Copy(server, client); server.Close() }()
			go func() { _, _ = io.Copy(client, server); client.Close() }()
		}
	}()
	return ports[0]
}

// uninstall leaves the namespace: to make it anew takes long.
func uninstall(t *testing.T) {
	t.Helper()
	mustKubectl(t, "delete", "mutatingwebhookconfigurations", "-l", "app.kubernetes.io/part-of=tracehook")
	mustKubectl(t, "delete", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/part-of=tracehook")
	mustKubectl(t, "delete", "validatingadmissionpolicies,validatingadmissionpolicybindings", "-l", "app.kubernetes.io/part-of=tracehook")
	mustKubectl(t, "-n", namespace, "delete", "--wait=false", "deployments,services,serviceaccounts,roles,rolebindings,networkpolicies,cronjobs", "-l", "app.kubernetes.io/part-of=tracehook")
	mustKubectl(t, "-n", namespace, "delete", "--ignore-not-found", "secret/tracehook-ca", "secret/tracehook-certs", "lease/tracehook-certs")
	mustKubectl(t, "-n", namespace, "delete", "pods", "--all", "--force", "--grace-period=0")
}

func write(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
