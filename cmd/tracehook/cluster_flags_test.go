package main

import (
	"slices"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
)

// kubectlFlags are those that kubectl's users expect of a plugin.
var kubectlFlags = []string{
	"as", "as-group", "as-uid", "as-user-extra", "certificate-authority", "client-certificate", "client-key", "cluster", "context",
	"insecure-skip-tls-verify", "kubeconfig", "namespace", "server", "tls-server-name", "token", "user",
}

func TestEveryCommandThatTalksToAClusterHasKubectlsFlags(t *testing.T) {
	ofNoCluster := []string{"tracehook", "tracehook certs", "tracehook probe", "tracehook show", "tracehook trace"}
	processes := []string{"tracehook serve", "tracehook lifecycle", "tracehook certs authority"}
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
		if slices.Contains(ofNoCluster, cmd.CommandPath()) {
			return
		}
		want := slices.Clone(kubectlFlags)
		if !slices.Contains(processes, cmd.CommandPath()) {
			want = append(want, "request-timeout")
		}
		for _, name := range want {
			if cmd.Flags().Lookup(name) == nil {
				t.Errorf("%s has no --%s", cmd.CommandPath(), name)
			}
		}
		for letter, name := range map[string]string{"n": "namespace", "s": "server"} {
			if f := cmd.Flags().ShorthandLookup(letter); f == nil || f.Name != name {
				t.Errorf("%s: -%s is %v, want --%s", cmd.CommandPath(), letter, f, name)
			}
		}
	}
	visit(newRootCommand())
}

func TestEveryCommandWithADocumentHasTheOutputFlag(t *testing.T) {
	root := newRootCommand()
	for _, path := range [][]string{
		{"check"}, {"explain"}, {"show"}, {"trace"}, {"certs", "audit"}, {"certs", "issue"}, {"certs", "migrate"}, {"certs", "rotate"}, {"version"},
	} {
		cmd, _, err := root.Find(path)
		if err != nil {
			t.Fatal(err)
		}
		if f := cmd.Flags().ShorthandLookup("o"); f == nil || f.Name != "output" {
			t.Errorf("%s: -o is %v, want --output", cmd.CommandPath(), f)
		}
	}
}

func TestInAPodTheFlagsComeBeforeItsServiceAccount(t *testing.T) {
	pod := &rest.Config{
		Host: "https://10.0.0.1:443", BearerToken: "pod", BearerTokenFile: "/token",
		TLSClientConfig: rest.TLSClientConfig{CAFile: "/ca.crt"},
	}
	for name, flags := range map[string]struct{ in, want rest.Config }{
		"none": {rest.Config{}, rest.Config{
			Host: pod.Host, BearerToken: "pod", BearerTokenFile: "/token", TLSClientConfig: pod.TLSClientConfig,
		}},
		"--as and --request-timeout": {
			rest.Config{Impersonate: rest.ImpersonationConfig{UserName: "eve"}, Timeout: time.Second},
			rest.Config{
				Host: pod.Host, BearerToken: "pod", BearerTokenFile: "/token", TLSClientConfig: pod.TLSClientConfig,
				Impersonate: rest.ImpersonationConfig{UserName: "eve"}, Timeout: time.Second,
			},
		},
		"--token": {rest.Config{BearerToken: "mine"}, rest.Config{Host: pod.Host, BearerToken: "mine", TLSClientConfig: pod.TLSClientConfig}},
		"--insecure-skip-tls-verify": {rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, rest.Config{
			Host: pod.Host, BearerToken: "pod", BearerTokenFile: "/token", TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := flags.in
			fillIn(&got, pod)
			if got.String() != flags.want.String() || got.BearerToken != flags.want.BearerToken || got.BearerTokenFile != flags.want.BearerTokenFile || got.CAFile != flags.want.CAFile {
				t.Errorf("got %+v, want %+v", got, flags.want)
			}
		})
	}
}

func TestAFlagOfTheSameNameMeansTheSameLetter(t *testing.T) {
	letters := map[string]string{}
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Shorthand == "" {
				return
			}
			if before, ok := letters[f.Name]; ok && before != f.Shorthand {
				t.Errorf("%s: --%s is -%s here and -%s elsewhere", cmd.CommandPath(), f.Name, f.Shorthand, before)
			}
			letters[f.Name] = f.Shorthand
		})
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(newRootCommand())
}
