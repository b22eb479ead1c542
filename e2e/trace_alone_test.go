package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// What `tracehook trace` must never be: worse than the command alone. Each test runs a command
// twice, alone and under trace, against a real API server.

// ran is what one run of a command came to.
type ran struct {
	code           int
	stdout, stderr string
}

// runCommand runs command with kubeconfig, alone or under trace.
func runCommand(t *testing.T, underTrace bool, kubeconfig string, env []string, command ...string) ran {
	t.Helper()
	if underTrace {
		command = append([]string{installed.tracehook, "trace", "--"}, command...)
	}
	cmd := exec.CommandContext(story.Within(t, 3*time.Minute), command[0], command[1:]...)
	cmd.Env = append(append(os.Environ(), installed.Env()...), append(env, "KUBECONFIG="+kubeconfig, "HOME="+t.TempDir())...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return ran{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// asHammer makes this program one that creates ConfigMaps with client-go, as many clients at once.
const asHammer = "TRACEHOOK_E2E_AS_HAMMER"

func init() { //nolint:gochecknoinits // before TestMain starts a cluster
	if clients := os.Getenv(asHammer); clients != "" {
		os.Exit(hammer(clients, os.Args[1:]))
	}
}

// hammer creates args[0] ConfigMaps (server dry run) with each client and prints what failed.
func hammer(clients string, args []string) int {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	n, _ := strconv.Atoi(clients)
	each, _ := strconv.Atoi(args[0])
	size, _ := strconv.Atoi(args[1])
	data := map[string]string{"data": strings.Repeat("x", size)}
	var mu sync.Mutex
	failed := map[string]int{}
	var wg sync.WaitGroup
	for c := range n {
		wg.Go(func() {
			for i := range each {
				object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("hammer-%d-%d", c, i)}, Data: data}
				_, err := client.CoreV1().ConfigMaps("default").Create(context.Background(), object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				if err != nil {
					mu.Lock()
					failed[err.Error()]++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	for message, times := range failed {
		fmt.Printf("failed %d times: %s\n", times, message)
	}
	if len(failed) > 0 {
		return 1
	}
	fmt.Println("all created")
	return 0
}

// With --goaway-chance an API server ends connections so that clients spread over all of them. It
// costs no client a write.
func TestGoawayCostsNoWriteUnderTrace(t *testing.T) {
	server, err := installed.StartAPIServerWith(story.Within(t, 2*time.Minute), cluster.APIServerOptions{Args: []string{"--goaway-chance=0.02"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []struct {
		name  string
		each  int
		bytes int
	}{{"small", 200, 10}, {"900 KB", 10, 900_000}} {
		for _, underTrace := range []bool{false, true} {
			got := runCommand(t, underTrace, server.Kubeconfig, []string{asHammer + "=10", "OTEL_TRACES_EXPORTER=none"}, self, strconv.Itoa(size.each), strconv.Itoa(size.bytes))
			if got.code != 0 || got.stdout != "all created\n" {
				t.Errorf("%s, under trace: %t: exit code %d\n%s%s", size.name, underTrace, got.code, got.stdout, got.stderr)
			}
		}
	}
}

// edited writes a copy of the cluster's kubeconfig with changes.
func edited(t *testing.T, change func(config *clientcmdapi.Config, cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo)) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(installed.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	current := config.Contexts[config.CurrentContext]
	change(config, config.Clusters[current.Cluster], config.AuthInfos[current.AuthInfo])
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

func nobodyListens(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// logged is a line of kubectl's log, which has times and process ids in it.
var logged = regexp.MustCompile(`(?m)^E\d{4} .*\n`)

// kubectl says why it cannot ask the API server, in the same words under trace.
func TestWhyTheAPIServerCannotBeAskedIsSaidUnderTraceToo(t *testing.T) {
	kubectl, err := installed.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(t.TempDir(), "configmap.yaml")
	if err := os.WriteFile(manifest, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: unreachable}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stranger, err := certs.NewCA(certs.CAOptions{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	strangerPEM, err := stranger.CertificatePEM()
	if err != nil {
		t.Fatal(err)
	}
	forbids := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	t.Cleanup(forbids.Close)

	for _, c := range []struct {
		name, want string
		env        []string
		change     func(config *clientcmdapi.Config, cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo)
	}{
		{name: "nobody listens", want: "refused", change: func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.Server = "https://" + nobodyListens(t)
		}},
		{name: "another authority", want: "x509: certificate signed by unknown authority", change: func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.CertificateAuthorityData = strangerPEM
		}},
		{name: "another name", want: "not api.shop.invalid", change: func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.TLSServerName = "api.shop.invalid"
		}},
		{name: "a name that nobody knows", want: "lookup api.shop.invalid", change: func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.Server = "https://api.shop.invalid:6443"
		}},
		{name: "a proxy that is not there", want: "refused", change: func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.Server, c.ProxyURL = "https://api.shop.invalid:6443", "http://"+nobodyListens(t)
		}},
		{name: "a site's proxy that refuses", want: "Forbidden", env: []string{"HTTPS_PROXY=" + forbids.URL}, change: func(_ *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			c.Server = "https://api.shop.invalid:6443"
		}},
		{name: "a credential plugin that fails", want: "getting credentials: exec: executable false failed with exit code 1", change: func(_ *clientcmdapi.Config, _ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			*u = clientcmdapi.AuthInfo{Exec: &clientcmdapi.ExecConfig{APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: clientcmdapi.NeverExecInteractiveMode, Command: "false"}}
		}},
		{name: "credentials that are none", want: "the server", change: func(_ *clientcmdapi.Config, _ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			*u = clientcmdapi.AuthInfo{Token: "expired"}
		}},
		{name: "a certificate file that is missing", want: "/nowhere.crt", change: func(_ *clientcmdapi.Config, _ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			*u = clientcmdapi.AuthInfo{ClientCertificate: "/nowhere.crt", ClientKey: "/nowhere.key"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			kubeconfig := edited(t, c.change)
			for _, command := range [][]string{
				{"get", "pods"}, {"version"}, {"apply", "-f", manifest}, {"get", "--raw", "/version"}, {"auth", "can-i", "get", "pods"},
			} {
				env := append(c.env, "OTEL_TRACES_EXPORTER=none")
				alone := runCommand(t, false, kubeconfig, env, append([]string{kubectl}, command...)...)
				under := runCommand(t, true, kubeconfig, env, append([]string{kubectl}, command...)...)
				if !strings.Contains(alone.stderr, c.want) {
					t.Errorf("the control: kubectl %s alone says\n%s", command, alone.stderr)
				}
				if c.name == "a certificate file that is missing" {
					under.stdout = alone.stdout // alone kubectl looks at it before it prints its own version
				}
				// The reason must be in kubectl's words, not only in ours.
				words := regexp.MustCompile(`(?m)^(tracehook: |trace id: ).*\n`).ReplaceAllString(under.stderr, "")
				if c.name == "credentials that are none" && logged.ReplaceAllString(words, "") != logged.ReplaceAllString(alone.stderr, "") {
					t.Errorf("kubectl %s\nunder trace says\n%s\nalone\n%s", command, under.stderr, alone.stderr)
				}
				if !strings.Contains(words, c.want) || under.code != alone.code || under.stdout != alone.stdout {
					t.Errorf("kubectl %s\nunder trace: exit code %d, %q\n%s\nalone: exit code %d, %q\n%s", command, under.code, under.stdout, under.stderr, alone.code, alone.stdout, alone.stderr)
				}
			}
		})
	}
}

// A command may name any context, cluster or user of the kubeconfig.
func TestACommandThatNamesAnotherContextIsTracedThere(t *testing.T) {
	kubectl, err := installed.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	second, err := installed.StartAPIServer(story.Within(t, 2*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.Stop(); err != nil {
			t.Error(err)
		}
	})
	ran := filepath.Join(t.TempDir(), "plugin-ran")
	kubeconfig := edited(t, func(config *clientcmdapi.Config, c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
		there := c.DeepCopy()
		there.Server = second.URL
		config.Clusters["second"] = there
		config.AuthInfos["plugin"] = &clientcmdapi.AuthInfo{Exec: &clientcmdapi.ExecConfig{APIVersion: "client.authentication.k8s.io/v1",
			InteractiveMode: clientcmdapi.NeverExecInteractiveMode, Command: "touch", Args: []string{ran}}}
		user := config.Contexts[config.CurrentContext].AuthInfo
		config.Contexts["there"] = &clientcmdapi.Context{Cluster: "second", AuthInfo: user, Namespace: "kube-public"}
		config.Contexts["plugin"] = &clientcmdapi.Context{Cluster: "second", AuthInfo: "plugin"}
	})
	for _, flags := range [][]string{{"--context=there"}, {"--cluster", "second", "--namespace=kube-public"}} {
		got := runCommand(t, true, kubeconfig, nil, append([]string{kubectl, "get", "configmaps", "-o", "name"}, flags...)...)
		id := printedTraceID.FindStringSubmatch(got.stderr)
		if got.code != 0 || id == nil || strings.Contains(got.stderr, "nothing was traced") {
			t.Fatalf("%v: exit code %d\n%s", flags, got.code, got.stderr)
		}
		trace := wantTrace(t, id[1], tree.Want{Name: "kubectl get", Service: "kubectl", Children: []tree.Want{
			{Name: "GET /api/v1/namespaces/{namespace}/configmaps", Kind: tracestore.KindClient, Children: []tree.Want{
				{Name: "GET /api/v1/namespaces/{:namespace}/configmaps", Service: "apiserver", Kind: tracestore.KindServer},
			}},
		}})
		address := strings.TrimPrefix(second.URL, "https://")
		if !slices.ContainsFunc(trace.Spans, func(s tracestore.Span) bool {
			full, _ := s.Attributes["url.full"].(string)
			return strings.Contains(full, address+"/api/v1/namespaces/kube-public/configmaps")
		}) {
			t.Errorf("%v: no call went to %s", flags, address)
		}
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the credential plugin of a context that nobody named has run")
	}

	// What no proxy can stand for is done as it is done alone, and said.
	for _, command := range [][]string{
		{"get", "namespace/default", "-o", "name", "--server=" + second.URL},
		{"config", "use-context", "there"},
	} {
		got := runCommand(t, true, kubeconfig, nil, append([]string{kubectl}, command...)...)
		if got.code != 0 || !strings.Contains(got.stderr, "tracehook: nothing was traced: ") {
			t.Errorf("%v: exit code %d\n%s%s", command, got.code, got.stdout, got.stderr)
		}
	}
	if config, err := clientcmd.LoadFromFile(kubeconfig); err != nil || config.CurrentContext != "there" {
		t.Errorf("the user's current context is %v, %v, want what the command chose", config.CurrentContext, err)
	}
}

// Where the API server does not trace, any user's trace goes on, and nobody is told otherwise.
func TestWithoutTracingInTheAPIServerAnyUsersTraceGoesOn(t *testing.T) {
	server, err := installed.StartAPIServerWith(story.Within(t, 2*time.Minute), cluster.APIServerOptions{Args: []string{"--tracing-config-file="}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	dora, err := installed.User("dora", "developers")
	if err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "create", "clusterrolebinding", "dora-creates", "--clusterrole=edit", "--user=dora")
	t.Cleanup(func() { mustKubectl(t, "delete", "clusterrolebinding/dora-creates") })
	config, err := clientcmd.LoadFromFile(dora)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range config.Clusters {
		c.Server = server.URL
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		t.Fatal(err)
	}
	id, _, stderr := traced(t, kubeconfig, "create", "configmap", "untraced-server")
	t.Cleanup(func() { mustKubectl(t, "delete", "configmap/untraced-server") })
	stamp := mustKubectl(t, "get", "configmap/untraced-server", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
	if match := traceparent.FindStringSubmatch(stamp); match == nil || match[1] != id {
		t.Errorf("stamped %q, want the trace %s", stamp, id)
	}
	if strings.Contains(stderr, "links to this one") {
		t.Errorf("stderr warns without need:\n%s", stderr)
	}
}

// A comma in a variable is no reason for a cluster without stamps, or for a command that does not
// run.
func TestVariablesThatCannotBeUsedKeepNobodyFromWorking(t *testing.T) {
	kubectl, err := installed.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	broken := []string{"OTEL_RESOURCE_ATTRIBUTES=team=a,", "OTEL_TRACES_SAMPLER=sometimes"}
	webhook, err := installed.StartWebhook(story.Within(t, time.Minute), cluster.WebhookOptions{CertDir: installed.certDir, Env: broken, Name: "broken-environment"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if code, err := webhook.Stop(); err != nil || code != 0 {
			t.Errorf("ended with %d, %v", code, err)
		}
	})
	plain := append(broken, "OTEL_TRACES_EXPORTER=console")
	alone := runCommand(t, false, installed.Kubeconfig, plain, kubectl, "get", "namespace/default", "-o", "json")
	under := runCommand(t, true, installed.Kubeconfig, plain, kubectl, "get", "namespace/default", "-o", "json")
	if under.code != 0 || under.stdout != alone.stdout {
		t.Errorf("exit code %d, and kubectl's output is\n%s", under.code, under.stdout)
	}
	for _, line := range []string{"tracehook: OTEL_RESOURCE_ATTRIBUTES: ", "tracehook: OTEL_TRACES_SAMPLER: "} {
		if strings.Count(under.stderr, line) != 1 {
			t.Errorf("stderr does not say once %q:\n%s", line, under.stderr)
		}
	}
}
