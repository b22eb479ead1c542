package rotation

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/load"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// The control: what many systems do, one after the other, and what it costs. If this
// does not fail, no zero of the other tests is worth anything.
func TestTheUsualOrderFails(t *testing.T) {
	ctx := story.Within(t, 3*time.Minute)
	dir := t.TempDir()
	bundle := issue(ctx, t, dir)
	var replicas []*cluster.Webhook
	for _, server := range shared.servers {
		w, err := shared.StartWebhook(ctx, cluster.WebhookOptions{CertDir: dir, Name: "tracehook-naive", APIServer: server})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = w.Stop() })
		replicas = append(replicas, w)
	}
	b := balance(t, cluster.BalancerOptions{})
	b.Lead(ctx, replicas...)
	if err := shared.InstallWebhookWith(ctx, cluster.InstallOptions{Port: b.Port, CABundle: bundle, FailurePolicy: "Fail"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(uninstall)

	for _, order := range []struct {
		name string
		fail map[connections]bool
		swap func(ctx context.Context, switchLeaf func(), publish func())
	}{
		{
			name: "nothing is replaced",
			swap: func(ctx context.Context, _, _ func()) {},
			fail: map[connections]bool{},
		},
		{
			name: "the bundle is replaced, the leaf one second later",
			swap: func(_ context.Context, switchLeaf, publish func()) { publish(); time.Sleep(time.Second); switchLeaf() },
			fail: map[connections]bool{kept: true, cut: true}, // a new bundle is a new client, which knows no old connections
		},
		{
			name: "the leaf is replaced, the bundle 200 ms later",
			swap: func(_ context.Context, switchLeaf, publish func()) {
				switchLeaf()
				time.Sleep(200 * time.Millisecond)
				publish()
			},
			fail: map[connections]bool{cut: true}, // kept connections hide it, until one of them ends
		},
	} {
		for _, c := range []connections{kept, cut} {
			t.Run(order.name+", "+string(c), func(t *testing.T) {
				progress(t, "%s", order.name)
				// Made beforehand: only the order is to be seen.
				next := t.TempDir()
				nextBundle := issue(ctx, t, next)
				changed := false
				m := underLoad(ctx, t, b, c, 0, func(ctx context.Context, l *load.Load) {
					order.swap(ctx, func() {
						changed = true
						for _, name := range []string{"tls.crt", "tls.key"} {
							data, err := os.ReadFile(filepath.Join(next, name))
							if err != nil {
								t.Fatal(err)
							}
							if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
								t.Fatal(err)
							}
						}
					}, func() {
						if err := shared.WriteCABundle(ctx, nextBundle); err != nil {
							t.Fatal(err)
						}
					})
					if changed {
						for _, w := range replicas {
							if err := certificates.WaitServed(ctx, w.Port, dir); err != nil {
								t.Fatal(err)
							}
						}
					}
					if err := shared.WaitInForce(ctx); err != nil {
						t.Fatal(err)
					}
					// What comes now has nothing to suffer from any more.
					if err := l.Await(ctx, 100); err != nil {
						t.Fatal(err)
					}
				})
				switch {
				case order.fail[c] && m.Failures == 0:
					t.Errorf("none of %d requests failed: such a load sees nothing", m.Requests)
				case !changed:
					m.wantZero(t)
				}
			})
		}
	}
}

func issue(ctx context.Context, t *testing.T, dir string) (bundle []byte) {
	t.Helper()
	bundle, err := certificates.Issue(ctx, shared.tracehook, certificates.Service, dir)
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

func balance(t *testing.T, o cluster.BalancerOptions) *cluster.Balancer {
	t.Helper()
	b, err := cluster.StartBalancer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// uninstall removes what a test must not leave to the next one: a webhook that fails
// closed and is gone, certificates, rights that the next component does not give.
func uninstall() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, args := range [][]string{
		{"mutatingwebhookconfigurations", "tracehook", "tracehook-proof"},
		{"clusterrolebindings", "-l", "app.kubernetes.io/part-of=tracehook"},
		{"rolebindings", "-A", "-l", "app.kubernetes.io/part-of=tracehook"},
		{"secrets,leases", "-n", "tracehook-system", "--all"},
	} {
		if _, err := shared.Kubectl(ctx, append([]string{"delete", "--ignore-not-found"}, args...)...); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}
