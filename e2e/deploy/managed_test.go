package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// The shipped binary, as the shipped ServiceAccounts, from nothing to stamped objects: whatever right were missing, this
// would stop at it.
func TestTracehookMakesItsOwnCertificatesWithTheRightsOfItsServiceAccounts(t *testing.T) {
	for _, way := range []string{"certs-managed", "certs-authority"} {
		t.Run(way, func(t *testing.T) {
			ctx := story.Within(t, 90*time.Second)
			apply := kustomization(t, "overlays/local", way)
			t.Cleanup(func() {
				uninstall(t, apply)
				mustKubectl(t, "-n", namespace, "delete", "--ignore-not-found", "secret/tracehook-ca", "secret/tracehook-certs", "lease/tracehook-certs")
			})
			port, err := cluster.FreePorts(1)
			if err != nil {
				t.Fatal(err)
			}
			if err := shared.InstallWebhookWith(ctx, cluster.InstallOptions{Port: port[0], Components: []string{way}}); err != nil {
				t.Fatal(err)
			}
			// Service default/kubernetes has no endpoints here, and ours is an ExternalName without a port 443.
			flags := []string{"--api-server=" + shared.First().URL, fmt.Sprintf("--service=tracehook:%d", port[0]), "--rotation-soak=1s"}
			mode, logs := "--certs=managed", []string(nil)
			if way == "certs-authority" {
				mode = "--certs=secret"
				authority, err := shared.StartTracehook(ctx, cluster.TracehookOptions{
					Name: "authority", ServiceAccount: "tracehook-authority",
					Args: append([]string{"certs", "authority", "--health-probe-bind-address=0", "--metrics-bind-address=0"}, flags...),
				})
				if err != nil {
					t.Fatal(err)
				}
				logs = append(logs, authority.LogFile)
				t.Cleanup(func() { _, _ = authority.Stop() })
				flags = nil
			}
			webhook, err := shared.StartWebhook(ctx, cluster.WebhookOptions{Port: port[0], Args: append(flags, mode, "--stamp=always")})
			if err != nil {
				t.Fatal(err)
			}
			logs = append(logs, webhook.LogFile)
			t.Cleanup(func() { _, _ = webhook.Stop() })
			eventually(t, 30*time.Second, func(ctx context.Context) error {
				stamp, err := shared.Kubectl(ctx, "create", "configmap", "managed", "--dry-run=server", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
				if err == nil && stamp == "" {
					err = errors.New("the object is not stamped")
				}
				return err
			})

			// A whole replacement of the CA, which needs every right that there is.
			tracehook, err := shared.Binary("tracehook")
			if err != nil {
				t.Fatal(err)
			}
			rotate := exec.CommandContext(ctx, tracehook, "certs", "rotate", "--ca", "--timeout=30s", "--kubeconfig", shared.Kubeconfig)
			if out, err := rotate.CombinedOutput(); err != nil {
				t.Errorf("certs rotate --ca: %v\n%s", err, out)
			}
			for _, name := range logs {
				log, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(string(log)) {
					if strings.Contains(line, "forbidden") {
						t.Errorf("a right is missing: %s", line)
					}
				}
			}
		})
	}
}
