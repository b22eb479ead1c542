package main

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/tracehook/tracehook/certs"
)

func TestIssueForALiveObjectServesEveryNameThatItsCallersVerify(t *testing.T) {
	ref := certs.Ref{Kind: certs.KindValidating, Name: "policy"}
	s, err := subjectOf(ref, []certs.LiveBundle{
		{Field: "webhooks[0].clientConfig.caBundle", ServerName: "hook.shop.svc"},
		{Field: "webhooks[1].clientConfig.caBundle", ServerName: "hooks.example.org"},
		{Field: "webhooks[2].clientConfig.caBundle", ServerName: "10.0.0.7"},
		{Field: "webhooks[3].clientConfig.caBundle", ServerName: "hook.shop.svc"},
		{Field: "webhooks[4].clientConfig.caBundle", ServerName: "a.b.svc.example.org"},
		{Field: "webhooks[5].clientConfig.caBundle", ServerName: "10.0.0.7"},
	}, "k8s.local")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"hook", "hook.shop", "hook.shop.svc", "hook.shop.svc.k8s.local", "hooks.example.org", "a.b.svc.example.org"}; !slices.Equal(s.names, want) {
		t.Errorf("names %q, want %q", s.names, want)
	}
	if len(s.ips) != 1 || !s.ips[0].Equal(net.IPv4(10, 0, 0, 7)) {
		t.Errorf("addresses %v", s.ips)
	}
	commands := nextCommands(s, func(file string) string { return "pki/" + file })
	if len(commands) != 2 || !strings.HasPrefix(commands[0], "kubectl -n shop create secret tls hook-certs ") ||
		!strings.HasPrefix(commands[1], "kubectl patch validatingwebhookconfiguration policy --type=json ") || strings.Count(commands[1], `"op":"add"`) != 6 ||
		!strings.Contains(commands[1], `"path":"/webhooks/5/clientConfig/caBundle"`) {
		t.Errorf("commands:\n%s", strings.Join(commands, "\n"))
	}
}

func TestIssueForAnAPIServiceSwitchesVerificationOnInTheSameUpdate(t *testing.T) {
	s, err := subjectOf(certs.Ref{Kind: certs.KindAPIService, Name: "v1.metrics.example.org"}, []certs.LiveBundle{
		{Field: "spec.caBundle", ServerName: "metrics.kube-system.svc", InsecureSkipVerify: true}}, "")
	if err != nil {
		t.Fatal(err)
	}
	commands := nextCommands(s, func(file string) string { return file })
	want := `kubectl patch apiservice v1.metrics.example.org --type=json -p '[{"op":"add","path":"/spec/caBundle","value":"'"$(base64 < ca.crt | tr -d '\n')"'"},{"op":"add","path":"/spec/insecureSkipTLSVerify","value":false}]'`
	if commands[len(commands)-1] != want {
		t.Errorf("got  %s\nwant %s", commands[len(commands)-1], want)
	}
}
