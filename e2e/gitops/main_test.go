// Package gitops has somebody apply manifests again and again beside tracehook, with Flux' own library as its kustomize-controller
// calls it, against a real API server. A stamp must be no drift, and whoever applies must take nothing away.
package gitops

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

var shared *cluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(story.Run(m, cluster.Options{Controllers: true}, prepare))
}

// prepare installs tracehook with certificates of its own making: nobody else writes caBundle then.
func prepare(ctx context.Context, c *cluster.Cluster) error {
	shared = c
	ports, err := cluster.FreePorts(1)
	if err != nil {
		return err
	}
	if err := c.InstallWebhookWith(ctx, cluster.InstallOptions{Port: ports[0], Components: []string{"certs-managed"}}); err != nil {
		return err
	}
	// Service default/kubernetes has no endpoints here, and ours is an ExternalName without a port 443.
	if _, err := c.StartWebhook(ctx, cluster.WebhookOptions{Port: ports[0], Args: []string{
		"--certs=managed", fmt.Sprintf("--service=tracehook:%d", ports[0]), "--api-server=" + c.First().URL, "--rotation-soak=1s", "--stamp=always",
	}}); err != nil {
		return err
	}
	for {
		stamp, err := c.Kubectl(ctx, "create", "configmap", "any", "--dry-run=server", "-o", "jsonpath="+stampPath)
		if err == nil && stamp != "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("nothing is stamped"), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

const stampPath = `{.metadata.annotations.tracehook\.dev/traceparent}`

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, shared, args...)
}
