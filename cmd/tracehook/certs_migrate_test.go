package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

// What cannot begin ends with exit code 2, before anything is written.
func TestAMigrationThatCannotBegin(t *testing.T) {
	const target = "validatingwebhookconfiguration/policy"
	dead := apiServer(t, map[string]string{mutatingPath: "403", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations": "403",
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions": "403", "/apis/apiregistration.k8s.io/v1/apiservices": "403"})
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"no target", nil, "KIND/NAME is missing"},
		{"a target of no kind", []string{"pod/policy"}, "is none of mutatingwebhookconfiguration"},
		{"a target that does not exist", []string{target}, "does not exist"},
		{"two targets", []string{target, target}, "unknown argument"},
		{"no such destination", []string{target, "--to", "vault"}, `--to "vault": want issued, cert-manager, managed`},
		{"cert-manager without its Secret", []string{target, "--to", "cert-manager"}, "needs --new-secret"},
		{"a Secret without a namespace", []string{target, "--secret", "serving-cert"}, `--secret "serving-cert": want NAMESPACE/NAME`},
		{"to tracehook without a Secret", []string{target, "--to", "managed"}, "needs --secret"},
		{"a new Secret for nobody", []string{target, "--new-secret", "a/b"}, "is for --to cert-manager"},
		{"both to do it and not to", []string{target, "--apply", "--dry-run"}, "contradict"},
		{"no such format", []string{target, "-o", "xml"}, "want table, json, yaml"},
		{"no cluster", []string{target, "--kubeconfig", "/nowhere/kubeconfig"}, "find the cluster"},
		{"a cluster that does not answer", []string{target, "--kubeconfig", dead}, "look for ValidatingWebhookConfiguration/policy: list mutating"},
		{"nothing to take back", []string{target, "--abort"}, "does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			cmd := newCertsMigrateCommand()
			cmd.SilenceUsage, cmd.SilenceErrors = true, true
			cmd.SetOut(&out)
			cmd.SetErr(&out)
			cmd.SetArgs(append([]string{"--kubeconfig", apiServer(t, nil)}, c.args...))
			err := cmd.ExecuteContext(context.Background())
			var exit *exitError
			if !errors.As(err, &exit) || exit.code != exitUsage || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want exit code %d and %q", err, exitUsage, c.says)
			}
			if out.Len() > 0 {
				t.Errorf("it wrote %q", &out)
			}
		})
	}
}

func TestStepsAreShownAsTheyAreTaken(t *testing.T) {
	step := certs.PlannedStep{Step: certs.MigrateServed, Does: "shake hands"}
	for _, c := range []struct {
		colour bool
		want   string
	}{
		{false, "\n2/2 served: shake hands\n    not yet served at \ufffd[31m10.0.0.1\n    proven: accepted at 10.0.0.1\n            and 10.0.0.2\n"},
		{true, "\n2/2 served: shake hands\n    not yet served at \ufffd[31m10.0.0.1\n    \x1b[32mproven\x1b[0m: accepted at 10.0.0.1\n            and 10.0.0.2\n"},
	} {
		var out bytes.Buffer
		p := &migrateProgress{w: &out, colour: c.colour, steps: []certs.PlannedStep{{Step: certs.MigrateSwitch}, step}}
		p.step(step, "")
		p.step(step, "not yet served at \x1b[31m10.0.0.1")
		done := step
		done.Done = &certs.StepDone{At: time.Now(), Certainty: certs.Proven, Result: "accepted at 10.0.0.1; and 10.0.0.2"}
		p.step(done, "")
		if out.String() != c.want {
			t.Errorf("got %q\nwant %q", &out, c.want)
		}
	}
}
