package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

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

func filesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestFilesOfAPairReplaceNothingThatTheyShouldNot(t *testing.T) {
	now := time.Now()
	files := []certFile{{"ca.key", []byte("secret"), 0o600}, {"tls.crt", []byte("certificate"), 0o644}}
	write := func(dir string, force bool) error { return writeCertFiles(t.Context(), dir, files, force, now) }

	t.Run("a link to elsewhere is replaced and not followed", func(t *testing.T) {
		dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "elsewhere")
		if err := os.WriteFile(elsewhere, []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(elsewhere, filepath.Join(dir, "ca.key")); err != nil {
			t.Fatal(err)
		}
		if err := write(dir, false); err == nil || !strings.Contains(err.Error(), "--force replaces the whole set") {
			t.Errorf("without --force: %v", err)
		}
		if err := write(dir, true); err != nil {
			t.Fatal(err)
		}
		if theirs, err := os.ReadFile(elsewhere); err != nil || string(theirs) != "theirs" {
			t.Errorf("elsewhere there is %q, %v", theirs, err)
		}
		if info, err := os.Lstat(filepath.Join(dir, "ca.key")); err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 {
			t.Errorf("the key is %v, %v", info.Mode(), err)
		}
	})
	t.Run("a file that comes meanwhile stays, and nothing is written beside it", func(t *testing.T) {
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if err := writeSynced(root, "tls.crt", []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := writeSynced(root, "tls.crt", []byte("ours"), 0o600); !errors.Is(err, fs.ErrExist) {
			t.Errorf("written over it: %v", err)
		}
		if err := writeSynced(root, "../out", nil, 0o600); err == nil {
			t.Error("written outside of the directory")
		}
	})
	t.Run("a signal before the end leaves nothing", func(t *testing.T) {
		dir := t.TempDir()
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(interrupted{syscall.SIGINT})
		err := writeCertFiles(ctx, dir, files, false, now)
		if names := filesIn(t, dir); len(names) > 0 || !errors.As(err, new(interrupted)) {
			t.Errorf("left %q; %v", names, err)
		}
		var exit *exitError
		if !errors.As(signalled(ctx, err), &exit) || exit.code != 130 {
			t.Errorf("%v", signalled(ctx, err))
		}
	})
	t.Run("what a killed run has left", func(t *testing.T) {
		dir := t.TempDir()
		left := filepath.Join(dir, stagingPrefix+"ABC-ca.key")
		if err := os.WriteFile(left, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := write(dir, false); err == nil || !strings.Contains(err.Error(), left) {
			t.Errorf("a moment later it is not named: %v", err)
		}
		if err := os.Chtimes(left, now.Add(-time.Hour), now.Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		if err := write(dir, false); err != nil {
			t.Fatal(err)
		}
		if names := filesIn(t, dir); !slices.Equal(names, []string{"ca.key", "tls.crt"}) {
			t.Errorf("there are %q", names)
		}
	})
}

// Nobody renews what is issued here: until when it is to be replaced, how, and what becomes of requests otherwise.
func TestIssueSaysWhatToDoBeforeTheCertificateEnds(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	dir := filepath.Join(t.TempDir(), "pki")
	for _, c := range []struct {
		o    certsIssueOptions
		want []string
	}{
		{certsIssueOptions{service: "shop/hook", lifetime: certs.DefaultLeafLifetime}, []string{
			"Nobody renews the certificate: from 2026-12-05 12:00 UTC on every call of it fails.",
			"Replace it before, best by 2026-12-03 04:00 UTC; no request fails while this does it:\n" +
				"  tracehook certs migrate mutatingwebhookconfiguration/hook --to issued --secret shop/hook-certs --lifetime 168h0m0s --apply\n",
		}},
		{certsIssueOptions{service: "shop/hook", lifetime: 365 * 24 * time.Hour}, []string{
			"tls.crt, tls.key   valid until 2027-11-28 12:00 UTC (365 days)", "ca.crt, ca.key     valid until 2027-11-28 12:00 UTC (365 days)", "from 2027-11-28 12:00 UTC on",
		}},
		{certsIssueOptions{service: "shop/hook", lifetime: time.Hour}, []string{"valid until 2026-11-28 13:00 UTC (1h0m0s)", "(90 days); keep ca.key"}},
	} {
		c.o.dir, c.o.clusterDomain, c.o.output, c.o.force = dir, certs.DefaultClusterDomain, "text", true
		var out strings.Builder
		if err := issueCerts(t.Context(), c.o, now, &out, io.Discard); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, &out)
			}
		}
	}
	for _, c := range []struct {
		kind   string
		policy []string
		want   string
	}{
		{certs.KindValidating, []string{"Ignore", "Fail"}, "every request that it is called for is refused (failurePolicy: Fail)"},
		{certs.KindMutating, []string{"Ignore"}, "requests pass without it, and nobody is told (failurePolicy: Ignore)"},
		{certs.KindCRD, []string{""}, "no object of it can be read or written in another version than the stored one"},
		{certs.KindAPIService, []string{""}, "its API is unavailable, and no namespace can be deleted"},
	} {
		var live []certs.LiveBundle
		for _, policy := range c.policy {
			live = append(live, certs.LiveBundle{Field: "webhooks[0].clientConfig.caBundle", ServerName: "hook.shop.svc", FailurePolicy: policy})
		}
		s, err := subjectOf(certs.Ref{Kind: c.kind, Name: "policy"}, live, "")
		if err != nil || s.otherwise != c.want {
			t.Errorf("%s: %q, %v", c.kind, s.otherwise, err)
		}
	}
}
