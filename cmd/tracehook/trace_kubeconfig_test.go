package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// userKubeconfig has two contexts and every kind of secret, each spelled hunter2.
const userKubeconfig = `apiVersion: v1
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
	return writeFile(t, strings.ReplaceAll(userKubeconfig, "office.invalid:6443", "127.0.0.1:1"))
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
	file := writeFile(t, userKubeconfig)
	for _, c := range []struct {
		name, env, kubeconfig, context string
		want                           userCluster
		host                           string
	}{
		{name: "the current context of KUBECONFIG", env: file,
			want: userCluster{context: "work", cluster: "office", user: "alice", namespace: "shop"}, host: "https://office.invalid:6443"},
		{name: "--kubeconfig", env: "/nowhere", kubeconfig: file,
			want: userCluster{context: "work", cluster: "office", user: "alice", namespace: "shop"}, host: "https://office.invalid:6443"},
		{name: "--context", env: file, context: "home",
			want: userCluster{context: "home", cluster: "cellar", user: "bob", namespace: "default"}, host: "https://cellar.invalid/k8s/clusters/c-1"},
		{name: "the first of several files", env: "/nowhere" + string(filepath.ListSeparator) + file,
			want: userCluster{context: "work", cluster: "office", user: "alice", namespace: "shop"}, host: "https://office.invalid:6443"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.env)
			got, err := loadCluster(c.kubeconfig, c.context)
			if err != nil {
				t.Fatal(err)
			}
			if got.rest.Host != c.host {
				t.Errorf("got the server %s, want %s", got.rest.Host, c.host)
			}
			got.rest = nil
			if *got != c.want {
				t.Errorf("got %+v\nwant %+v", *got, c.want)
			}
		})
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
		{name: "an unknown context", kubeconfig: writeFile(t, userKubeconfig), context: "hoem", want: `context "hoem" does not exist`},
		{name: "a missing certificate", kubeconfig: writeFile(t, strings.ReplaceAll(userKubeconfig, "token: hunter2", "client-certificate: /nowhere.crt, client-key: /nowhere.key")),
			want: "unable to read client-cert /nowhere.crt"},
		{name: "no certificate", kubeconfig: writeFile(t, strings.ReplaceAll(userKubeconfig, "token: hunter2", "client-certificate-data: aGk=, client-key-data: aGk=")),
			want: "tls: failed to find any PEM data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.env)
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			_, err := loadCluster(c.kubeconfig, c.context)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v\nwant one line with %q", err, c.want)
			}
		})
	}
}

func TestTheTemporaryKubeconfigHoldsNoneOfTheRealCredentials(t *testing.T) {
	for context, want := range map[string]string{
		"work": `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: cGlubmVk
    disable-compression: true
    server: https://127.0.0.1:12345
  name: office
contexts:
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
    token: once
`,
		"home": `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: cGlubmVk
    server: https://127.0.0.1:12345
  name: cellar
contexts:
- context:
    cluster: cellar
    namespace: default
    user: bob
  name: home
current-context: home
kind: Config
users:
- name: bob
  user:
    token: once
`,
	} {
		t.Run(context, func(t *testing.T) {
			cluster, err := loadCluster(writeFile(t, userKubeconfig), context)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "kubeconfig")
			proxy := &traceProxy{url: "https://127.0.0.1:12345", certificate: []byte("pinned"), token: "once"}
			if err := writeKubeconfig(file, cluster, proxy); err != nil {
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
			if string(content) != want {
				t.Errorf("got\n%s\nwant\n%s", content, want)
			}
		})
	}
}

func TestAServiceAccountHasNoNamesToKeep(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	cluster := &userCluster{rest: &rest.Config{}, context: "tracehook", cluster: "tracehook", user: "tracehook", namespace: "shop"}
	if err := writeKubeconfig(file, cluster, &traceProxy{url: "https://127.0.0.1:12345", token: "once"}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", file)
	got, err := loadCluster("", "")
	if err != nil {
		t.Fatal(err)
	}
	if got.namespace != "shop" || got.rest.Host != "https://127.0.0.1:12345" || got.rest.BearerToken != "once" {
		t.Errorf("got the namespace %q, the server %q and the token %q", got.namespace, got.rest.Host, got.rest.BearerToken)
	}
}
