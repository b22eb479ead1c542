package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeconfigOfTwo has two contexts and every kind of secret, each spelled hunter2.
const kubeconfigOfTwo = `apiVersion: v1
kind: Config
current-context: work
contexts:
- name: work
  context: {cluster: office, user: alice, namespace: shop}
- name: home
  context: {cluster: cellar, user: bob}
clusters:
- name: office
  cluster: {server: "https://office.invalid:6443", insecure-skip-tls-verify: true, tls-server-name: api, disable-compression: true}
- name: cellar
  cluster: {server: "https://cellar.invalid/k8s/clusters/c-1", proxy-url: "http://proxy:hunter2@proxy.invalid"}
users:
- name: alice
  user: {token: hunter2, as: hunter2, as-groups: [hunter2]}
- name: bob
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: sh
      args: [-c, hunter2]
      env: [{name: PASSWORD, value: hunter2}]
      interactiveMode: Never
`

// writeUserKubeconfig writes a kubeconfig whose cluster nobody serves.
func writeUserKubeconfig(t *testing.T) string {
	t.Helper()
	return writeFile(t, strings.ReplaceAll(kubeconfigOfTwo, "office.invalid:6443", "127.0.0.1:1"))
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestTheClusterIsTheOneKubectlWouldTake(t *testing.T) {
	file := writeFile(t, kubeconfigOfTwo)
	const office, cellar = "https://office.invalid:6443", "https://cellar.invalid/k8s/clusters/c-1"
	for _, c := range []struct {
		name, env, kubeconfig, context string

		current, cluster, user, namespace, host string
	}{
		{"the current context of KUBECONFIG", file, "", "", "work", "office", "alice", "shop", office},
		{"--kubeconfig", "/nowhere", file, "", "work", "office", "alice", "shop", office},
		{"--context", file, "", "home", "home", "cellar", "bob", "", cellar},
		{"the first of several files", "/nowhere" + string(filepath.ListSeparator) + file, "", "", "work", "office", "alice", "shop", office},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.env)
			got, err := loadKubeconfig(c.kubeconfig, c.context)
			if err != nil {
				t.Fatal(err)
			}
			cluster, user := got.currentCluster()
			config, err := got.connect(cluster, user)
			if err != nil {
				t.Fatal(err)
			}
			if got.current != c.current || cluster != c.cluster || user != c.user || got.contexts[got.current].Namespace != c.namespace || config.Host != c.host {
				t.Errorf("got %s, %s as %s in %q at %s", got.current, cluster, user, got.contexts[got.current].Namespace, config.Host)
			}
		})
	}
}

// As kubectl has it with --cluster and --user.
func TestAnyClusterGoesWithAnyUser(t *testing.T) {
	t.Setenv("KUBECONFIG", writeFile(t, kubeconfigOfTwo))
	k, err := loadKubeconfig("", "")
	if err != nil {
		t.Fatal(err)
	}
	config, err := k.connect("cellar", "alice")
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://cellar.invalid/k8s/clusters/c-1" || config.BearerToken != "hunter2" || config.Impersonate.UserName != "hunter2" || config.Proxy == nil {
		t.Errorf("got %+v", config)
	}
	if _, err := k.connect("castle", "alice"); err == nil {
		t.Error("a cluster that is not there can be connected to")
	}
}

// What else is wrong with a kubeconfig is nothing to the context that is used.
func TestABrokenContextBreaksNoOther(t *testing.T) {
	broken := strings.ReplaceAll(kubeconfigOfTwo, "token: hunter2", "client-certificate: /nowhere.crt, client-key: /nowhere.key")
	t.Setenv("KUBECONFIG", writeFile(t, broken))
	k, err := loadKubeconfig("", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.connect("cellar", "bob"); err != nil {
		t.Error(err)
	}
	if config, err := k.connect("office", "alice"); err == nil {
		if _, err = newUpstream(config); err == nil {
			t.Error("the control: the broken context works")
		}
	}
}

func TestAKubeconfigThatCannotBeUsedIsExplainedInOneLine(t *testing.T) {
	directory := t.TempDir()
	for _, c := range []struct{ name, kubeconfig, env, context, want string }{
		{name: "a missing file", kubeconfig: "/nowhere/kubeconfig", want: "load the kubeconfig: stat /nowhere/kubeconfig: no such file or directory"},
		{name: "missing files in KUBECONFIG", env: "/nowhere/kubeconfig", want: "no cluster is configured; set KUBECONFIG or give --kubeconfig (Config not found: /nowhere/kubeconfig)"},
		{name: "a directory", kubeconfig: directory, want: "is a directory"},
		{name: "no YAML", kubeconfig: writeFile(t, "a: b: c\n\t"), want: "error loading config file"},
		{name: "an empty file", kubeconfig: writeFile(t, ""), want: "no cluster is configured"},
		{name: "an unknown context", kubeconfig: writeFile(t, kubeconfigOfTwo), context: "hoem", want: `context "hoem" does not exist`},
		{name: "a missing certificate", context: "work", kubeconfig: writeFile(t, strings.ReplaceAll(kubeconfigOfTwo, "token: hunter2", "client-certificate: /nowhere.crt, client-key: /nowhere.key")),
			want: "unable to read client-cert /nowhere.crt"},
		{name: "no certificate", kubeconfig: writeFile(t, strings.ReplaceAll(kubeconfigOfTwo, "token: hunter2", "client-certificate-data: aGk=, client-key-data: aGk=")),
			want: "tls: failed to find any PEM data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.env)
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			_, err := loadKubeconfig(c.kubeconfig, c.context)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v\nwant one line with %q", err, c.want)
			}
		})
	}
}

func TestTheTemporaryKubeconfigHoldsAllContextsAndNoneOfTheRealCredentials(t *testing.T) {
	t.Setenv("KUBECONFIG", writeFile(t, kubeconfigOfTwo))
	for current, want := range map[string]string{
		"work": `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: cGlubmVk
    server: https://127.0.0.1:12345/tracehook/0
  name: cellar
- cluster:
    certificate-authority-data: cGlubmVk
    disable-compression: true
    server: https://127.0.0.1:12345
  name: office
contexts:
- context:
    cluster: cellar
    user: bob
  name: home
- context:
    cluster: office
    namespace: shop
    user: alice
  name: work
current-context: work
kind: Config
users:
- name: alice
  user:
    token: alice's
- name: bob
  user:
    token: bob's
`,
		"home": `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: cGlubmVk
    server: https://127.0.0.1:12345
  name: cellar
- cluster:
    certificate-authority-data: cGlubmVk
    disable-compression: true
    server: https://127.0.0.1:12345/tracehook/1
  name: office
contexts:
- context:
    cluster: cellar
    user: bob
  name: home
- context:
    cluster: office
    namespace: shop
    user: alice
  name: work
current-context: home
kind: Config
users:
- name: alice
  user:
    token: alice's
- name: bob
  user:
    token: bob's
`,
	} {
		t.Run(current, func(t *testing.T) {
			k, err := loadKubeconfig("", current)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "kubeconfig")
			proxy := &traceProxy{url: "https://127.0.0.1:12345", certificate: []byte("pinned"), prefixes: prefixesOf(k),
				tokens: map[string]string{"alice": "alice's", "bob": "bob's"}}
			written, err := writeKubeconfig(file, k, proxy)
			if err != nil {
				t.Fatal(err)
			}

			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("the file has mode %o, want 600", info.Mode().Perm())
			}
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(content) != want || string(written) != want {
				t.Errorf("got\n%s\nwant\n%s", content, want)
			}
		})
	}
}

// A context without a user is one of somebody without credentials, and a context whose cluster
// nobody knows is refused by the command in its own words.
func TestOddContextsStayAsTheyAre(t *testing.T) {
	const odd = `apiVersion: v1
kind: Config
contexts:
- {name: anonymous, context: {cluster: cellar}}
- {name: broken, context: {cluster: castle, user: carol}}
clusters:
- {name: cellar, cluster: {server: "https://cellar.invalid"}}
users:
- {name: tracehook, user: {token: hunter2}}
`
	t.Setenv("KUBECONFIG", writeFile(t, odd))
	k, err := loadKubeconfig("", "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	proxy := &traceProxy{url: "https://127.0.0.1:12345", prefixes: prefixesOf(k), tokens: map[string]string{"tracehook": "its", "": "nobody's"}}
	if _, err := writeKubeconfig(file, k, proxy); err != nil {
		t.Fatal(err)
	}
	got, err := clientcmd.LoadFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if user := got.Contexts["anonymous"].AuthInfo; got.AuthInfos[user] == nil || got.AuthInfos[user].Token != "nobody's" {
		t.Errorf("the user of the context without one is %q", user)
	}
	if c := got.Contexts["broken"]; c.Cluster != "castle" || c.AuthInfo != "carol" || got.Clusters["castle"] != nil || got.AuthInfos["carol"] != nil {
		t.Errorf("the broken context is %+v", c)
	}
	if got.CurrentContext != "" {
		t.Errorf("the current context is %q", got.CurrentContext)
	}
	config, err := k.connect("cellar", "")
	if err != nil || config.BearerToken != "" {
		t.Errorf("got %v, %v, want nobody's credentials", config, err)
	}
}

func TestAServiceAccountHasNoNamesToKeep(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	k := oneCluster(&rest.Config{}, "shop")
	proxy := &traceProxy{url: "https://127.0.0.1:12345", prefixes: prefixesOf(k), tokens: map[string]string{"tracehook": "once"}}
	if _, err := writeKubeconfig(file, k, proxy); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", file)
	got, err := loadKubeconfig("", "")
	if err != nil {
		t.Fatal(err)
	}
	config, err := got.connect(got.currentCluster())
	if err != nil {
		t.Fatal(err)
	}
	if namespace := got.contexts[got.current].Namespace; namespace != "shop" || config.Host != "https://127.0.0.1:12345" || config.BearerToken != "once" {
		t.Errorf("got the namespace %q, the server %q and the token %q", namespace, config.Host, config.BearerToken)
	}
}
