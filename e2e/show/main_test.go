// Package show drives what a user sees of a trace: `tracehook trace` on a terminal and
// elsewhere, `tracehook show`, and the store behind both.
package show

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

var shared struct {
	*cluster.Cluster
	tracehook string // path of the binary
	kubectl   string
}

func TestMain(m *testing.M) { os.Exit(story.Run(m, cluster.Options{Controllers: true}, install)) }

func install(ctx context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.tracehook, err = c.Binary("tracehook"); err != nil {
		return err
	}
	if shared.kubectl, err = c.Binary("kubectl"); err != nil {
		return err
	}
	certs := filepath.Join(c.Dir, "serving-certs")
	bundle, err := certificates.Issue(ctx, shared.tracehook, certificates.Service, certs)
	if err != nil {
		return err
	}
	webhook, err := c.StartWebhook(ctx, cluster.WebhookOptions{CertDir: certs})
	if err != nil {
		return err
	}
	return c.InstallWebhook(ctx, webhook.Port, bundle)
}

// store is how a user names the cluster's trace store.
func store() string { return "TRACEHOOK_STORE=jaeger=" + shared.JaegerURL }

// command is tracehook with what a user of the cluster has in the environment.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(story.Within(t, time.Minute), shared.tracehook, args...)
	cmd.Env = append(os.Environ(), append(shared.Env(), "KUBECONFIG="+shared.Kubeconfig, "TERM=xterm", "NO_COLOR=", store())...)
	return cmd
}

// run wants the exit code and returns what was printed.
func run(t *testing.T, exitCode int, cmd *exec.Cmd) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != exitCode {
		t.Fatalf("%v: %v, want exit code %d\n%s%s", cmd.Args, err, exitCode, &out, &errs)
	}
	return out.String(), errs.String()
}
