package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// kubectl's flags reach the API server in the same way from every command, also as a plugin of kubectl.
func TestKubectlsFlagsMeanTheSameOnEveryCommand(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	clients := kubernetes.NewForConfigOrDie(installed.RESTConfig)
	namespace, err := clients.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "flags-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clients.CoreV1().ConfigMaps(namespace.Name).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "here"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := clientcmd.LoadFromFile(installed.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig.AuthInfos["nobody"] = &clientcmdapi.AuthInfo{} // without a client certificate, which would come before a token
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*kubeconfig, file); err != nil {
		t.Fatal(err)
	}
	current := kubeconfig.Contexts[kubeconfig.CurrentContext]
	server := kubeconfig.Clusters[current.Cluster].Server

	// The commands, and what each says where it may read.
	commands := map[string]struct {
		args []string
		says string
	}{
		"explain":       {[]string{"explain", "configmap/here", "-n", namespace.Name}, "ConfigMap"},
		"certs audit":   {[]string{"certs", "audit", "--fail-on", "error"}, "SERVER NAME"},
		"certs migrate": {[]string{"certs", "migrate", "mutatingwebhookconfiguration/tracehook"}, "MutatingWebhookConfiguration/tracehook"},
		"certs issue":   {[]string{"certs", "issue", "--for", "mutatingwebhookconfiguration/tracehook", "--force", "--output-dir", filepath.Join(t.TempDir(), "pki")}, "ca.crt"},
		"certs rotate":  {[]string{"certs", "rotate", "-n", namespace.Name}, "nobody to ask: there is no Lease tracehook-certs in namespace " + namespace.Name},
	}
	for name, flags := range map[string]struct {
		args []string
		says string // ""; what the command says where it may read
	}{
		"--kubeconfig alone":               {nil, ""},
		"--context --cluster --user":       {[]string{"--context", kubeconfig.CurrentContext, "--cluster", current.Cluster, "--user", current.AuthInfo}, ""},
		"--server":                         {[]string{"--server", server}, ""},
		"--request-timeout":                {[]string{"--request-timeout", "50s"}, ""},
		"--as with rights":                 {[]string{"--as", "eve", "--as-group", "readers", "--as-group", "system:masters"}, ""},
		"--as without rights":              {[]string{"--as", "eve", "--as-group", "readers"}, `User "eve" cannot`},
		"--token of nobody":                {[]string{"--user", "nobody", "--token", "of-nobody"}, "nauthorized"},
		"--insecure-skip-tls-verify":       {[]string{"--insecure-skip-tls-verify"}, ""},
		"--tls-server-name of another":     {[]string{"--tls-server-name", "other.example"}, "not other.example"},
		"--certificate-authority of other": {[]string{"--certificate-authority", filepath.Join(installed.certDir, "ca.crt")}, "certificate signed by unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for command, c := range commands {
				want := flags.says
				if want == "" {
					want = c.says
				}
				output, code := runTracehook(ctx, t, append(append(append([]string{}, c.args...), "--kubeconfig", file), flags.args...)...)
				if !strings.Contains(output, want) {
					t.Errorf("%s ended with %d and wrote:\n%s\nwant %q in it", command, code, output, want)
				}
				if flags.says != "" && code == 0 {
					t.Errorf("%s ended with 0, want an error:\n%s", command, output)
				}
			}
		})
	}
}

// The Tab key offers what the API server knows, and `version` tells its version.
func TestTheAPIServerAnswersCompletionAndVersion(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	clients := kubernetes.NewForConfigOrDie(installed.RESTConfig)
	namespace, err := clients.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "completion-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"first", "second"} {
		if _, err := clients.CoreV1().ConfigMaps(namespace.Name).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// As kubectl calls it: by this name.
	complete := filepath.Join(t.TempDir(), "kubectl_complete-tracehook")
	if err := os.Symlink(installed.tracehook, complete); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line string // after `kubectl tracehook`
		want []string
	}{
		{"explain ", []string{"configmaps", "deployments.apps", "pods"}},
		{"explain -n NAMESPACE configmap/", []string{"configmap/first", "configmap/second"}},
		{"explain -n NAMESPACE cm fi", []string{"first"}},
		{"explain namespaces ", []string{"default", namespace.Name}},
		{"explain -n ", []string{"default", namespace.Name}},
		{"certs migrate mutatingwebhookconfiguration/", []string{"mutatingwebhookconfiguration/tracehook"}},
		{"certs issue --for apiservice/", []string{"apiservice/v1.apps"}},
	} {
		words := strings.Split(strings.ReplaceAll(c.line, "NAMESPACE", namespace.Name), " ")
		cmd := exec.CommandContext(ctx, complete, words...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+installed.Kubeconfig, "HOME="+t.TempDir())
		text, err := cmd.Output()
		offered := strings.Split(string(text), "\n")
		for _, want := range c.want {
			if err != nil || !slices.Contains(offered, want) {
				t.Errorf("%q offers %q (%v), want %q among it", c.line, offered, err, want)
			}
		}
	}

	output, code := runTracehook(ctx, t, "version", "-o", "json", "--kubeconfig", installed.Kubeconfig)
	var document struct{ ServerVersion struct{ GitVersion string } }
	if err := json.Unmarshal([]byte(output), &document); err != nil || code != 0 || !strings.Contains(document.ServerVersion.GitVersion, installed.Version.String()) {
		t.Errorf("version -o json ended with %d (%v): %s, want the API server's version %s", code, err, output, installed.Version)
	}
	// Of the audit's targets only those that lead to a Service of the namespace.
	if output, code := runTracehook(ctx, t, "certs", "audit", "-n", namespace.Name, "--kubeconfig", installed.Kubeconfig); code != 0 || !strings.Contains(output, "no webhook, no conversion webhook") {
		t.Errorf("certs audit of a namespace without servers ended with %d:\n%s", code, output)
	}
}

// runTracehook returns both outputs together, and the exit code.
func runTracehook(ctx context.Context, t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	cmd := exec.CommandContext(ctx, installed.tracehook, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run() // the code says it
	return out.String(), cmd.ProcessState.ExitCode()
}
