// Package e2e tests tracehook as its users have it: the built binary, the shipped
// manifests, a real control plane and a real trace pipeline. One story a file.
package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/version"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// installed is the cluster that the stories share: tracehook runs and is installed.
var installed struct {
	*cluster.Cluster
	webhook   *cluster.Webhook
	certDir   string
	caBundle  []byte
	tracehook string // path of the binary
}

func TestMain(m *testing.M) { os.Exit(story.Run(m, cluster.Options{Controllers: true}, install)) }

func install(ctx context.Context, c *cluster.Cluster) (err error) {
	installed.Cluster = c
	if installed.tracehook, err = c.Binary("tracehook"); err != nil {
		return err
	}
	installed.certDir = filepath.Join(c.Dir, "serving-certs")
	if installed.caBundle, err = certificates.Issue(ctx, installed.tracehook, certificates.Service, installed.certDir); err != nil {
		return err
	}
	if installed.webhook, err = c.StartWebhook(ctx, cluster.WebhookOptions{CertDir: installed.certDir}); err != nil {
		return err
	}
	return c.InstallWebhook(ctx, installed.webhook.Port, installed.caBundle)
}

// reinstall brings the webhook back to what the manifests say. For cleaning up.
func reinstall(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// What a test has added is not in the manifests' last-applied, so it goes only with all.
	mustKubectl(t, "delete", "mutatingwebhookconfiguration/tracehook")
	if err := installed.InstallWebhook(ctx, installed.webhook.Port, installed.caBundle); err != nil {
		t.Fatal(err)
	}
}

// atLeast says whether the API server is Kubernetes 1.minor or later.
func atLeast(minor uint) bool { return installed.Version.AtLeast(version.MajorMinor(1, minor)) }

// since are the attributes that API servers give from Kubernetes 1.minor on.
func since(minor uint, attributes map[string]any) map[string]any {
	if !atLeast(minor) {
		return nil
	}
	return attributes
}

// called is what the API server's span says that it calls: the Service's name, from 1.37 on the address that it dials.
func called(host, path string) *regexp.Regexp {
	if atLeast(37) {
		host = "localhost"
	}
	return regexp.MustCompile(`^https://` + regexp.QuoteMeta(host) + `:\d+` + regexp.QuoteMeta(path) + `\?timeout=5s$`)
}

var printedTraceID = regexp.MustCompile(`(?m)^trace id: ([0-9a-f]{32})$`)

// traced runs `tracehook trace -- kubectl args…` and returns the trace's id and what kubectl wrote.
func traced(t *testing.T, kubeconfig string, args ...string) (traceID, stdout, stderr string) {
	t.Helper()
	kubectl, err := installed.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(story.Within(t, time.Minute), installed.tracehook, append([]string{"trace", "--", kubectl}, args...)...)
	cmd.Env = append(os.Environ(), append(installed.Env(), "KUBECONFIG="+kubeconfig)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("tracehook trace -- kubectl %s: %v\n%s", strings.Join(args, " "), err, &errs)
	}
	match := printedTraceID.FindStringSubmatch(errs.String())
	if match == nil {
		t.Fatalf("no trace id in what `tracehook trace` wrote to stderr:\n%s", &errs)
	}
	return match[1], out.String(), errs.String()
}

// wantTrace waits until the trace is as wanted; what did arrive is in the failure.
func wantTrace(t *testing.T, id string, want tree.Want) tracestore.Trace {
	t.Helper()
	client := tracestore.Client{BaseURL: installed.JaegerURL}
	trace, err := client.Wait(story.Within(t, 30*time.Second), id, func(got tracestore.Trace) error { return tree.Match(got, want) })
	if err != nil {
		t.Fatalf("trace %s after 30s: %v", id, err)
	}
	return trace
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, installed.Cluster, args...)
}
