package e2e

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
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

// runTracehook returns both outputs together, and the exit code.
func runTracehook(ctx context.Context, t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	cmd := exec.CommandContext(ctx, installed.tracehook, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run() // the code says it
	return out.String(), cmd.ProcessState.ExitCode()
}
