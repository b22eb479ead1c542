package rotation

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/load"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// Whatever somebody makes of the Secret: the last good pair keeps serving, everybody is
// told, and whoever leads repairs it. Nobody leads at first, or there would be nothing to see.
func TestABrokenSecretFailsNoRequest(t *testing.T) {
	ctx := story.Within(t, 5*time.Minute)
	d := deploy(ctx, t, "certs-authority")
	other := t.TempDir()
	issue(ctx, t, other)
	expired := expiredPair(t)

	for _, test := range []struct {
		name  string
		patch map[string][]byte // nil value: the key is removed; nil: the Secret is deleted
	}{
		{"half a pair", map[string][]byte{"tls.key": nil}},
		{"garbage", map[string][]byte{"tls.crt": []byte("garbage"), "tls.key": []byte("garbage")}},
		{"the key of another certificate", map[string][]byte{"tls.key": []byte(read(t, filepath.Join(other, "tls.key")))}},
		{"an expired pair", expired},
		{"deleted", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := d.look(ctx, t)
			d.stopAuthorities(t)
			logged := d.logged(t)
			underLoad(ctx, t, d.front, cut, 500, func(ctx context.Context, l *load.Load) {
				secrets := shared.clients.CoreV1().Secrets(namespace)
				if test.patch == nil {
					if err := secrets.Delete(ctx, certs.DefaultServingSecret, metav1.DeleteOptions{}); err != nil {
						t.Fatal(err)
					}
				} else if _, err := secrets.Patch(ctx, certs.DefaultServingSecret, types.MergePatchType, secretPatch(t, test.patch), metav1.PatchOptions{FieldManager: "somebody"}); err != nil {
					t.Fatal(err)
				}
				code, said := d.awaitWarning(ctx, t)
				progress(t, "%s: %s", test.name, said)
				d.wantTold(ctx, t, code, logged)
				if err := l.Await(ctx, 200); err != nil {
					t.Fatal(err)
				}
				if after := d.look(ctx, t); !after.leaf.Equal(before.leaf) {
					t.Error("another leaf is served")
				}
				begin := time.Now()
				for _, p := range d.authorities {
					if err := p.Restart(ctx); err != nil {
						t.Fatal(err)
					}
				}
				d.awaitNoWarning(ctx, t)
				progress(t, "%s: healed %.1fs after there is an authority", test.name, time.Since(begin).Seconds())
			}).wantZero(t)
			d.look(ctx, t)
		})
	}
}

func (d *deployment) stopAuthorities(t *testing.T) {
	t.Helper()
	for _, p := range d.authorities {
		if code, err := p.Stop(); err != nil || code != 0 {
			t.Fatalf("stop authority: exit code %d, %v", code, err)
		}
	}
}

// secretPatch is a merge patch of a Secret's data.
func secretPatch(t *testing.T, data map[string][]byte) []byte {
	t.Helper()
	values := map[string]any{}
	for key, value := range data {
		if values[key] = nil; value != nil {
			values[key] = base64.StdEncoding.EncodeToString(value)
		}
	}
	patch, err := json.Marshal(map[string]any{"data": values})
	if err != nil {
		t.Fatal(err)
	}
	return patch
}

// expiredPair is one whose time is over in every other respect right.
func expiredPair(t *testing.T) map[string][]byte {
	t.Helper()
	past := time.Now().Add(-48 * time.Hour)
	ca, err := certs.NewCA(certs.CAOptions{Now: past})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: past, Lifetime: time.Hour, Names: []string{certificates.ServerName}})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := leaf.CertificatePEM()
	if err != nil {
		t.Fatal(err)
	}
	key, err := leaf.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"tls.crt": certificate, "tls.key": key}
}

// readiness is what the replicas say of themselves, first line and the rest.
func (d *deployment) readiness(ctx context.Context, t *testing.T) (status []int, warnings []string) {
	t.Helper()
	for _, w := range d.replicas {
		code, text := page(ctx, t, w.HealthURL+"/readyz")
		_, warning, _ := strings.Cut(text, "\n")
		status, warnings = append(status, code), append(warnings, warning)
	}
	return status, warnings
}

func page(ctx context.Context, t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// awaitWarning wants both replicas to be ready and to say what is wrong all the same. It
// returns the first finding's code, and all that one of them says.
func (d *deployment) awaitWarning(ctx context.Context, t *testing.T) (code, said string) {
	t.Helper()
	for {
		status, warnings := d.readiness(ctx, t)
		if status[0] != http.StatusOK || status[1] != http.StatusOK {
			t.Fatalf("replicas say %v %q, want them ready", status, warnings)
		}
		if warnings[0] != "" && warnings[1] != "" {
			_, rest, _ := strings.Cut(warnings[0], ": ") // the severity
			code, _, _ = strings.Cut(rest, ": ")
			return code, warnings[0]
		}
		pause(ctx, t, fmt.Sprintf("replicas say what is wrong, and not %q", warnings))
	}
}

// logged is what each replica has written so far.
func (d *deployment) logged(t *testing.T) []string {
	t.Helper()
	var logs []string
	for _, w := range d.replicas {
		logs = append(logs, read(t, w.LogFile))
	}
	return logs
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// wantTold wants the finding in each replica's log, after what was there before, and in
// its metrics.
func (d *deployment) wantTold(ctx context.Context, t *testing.T, code string, before []string) {
	t.Helper()
	for i, log := range d.logged(t) {
		if !strings.Contains(log[len(before[i]):], code) {
			t.Errorf("%s says nothing of %q:\n%s", d.replicas[i].LogFile, code, log[len(before[i]):])
		}
		if _, metrics := page(ctx, t, d.replicas[i].MetricsURL); !strings.Contains(metrics, fmt.Sprintf("%q", code)) {
			t.Errorf("%s says nothing of %q", d.replicas[i].MetricsURL, code)
		}
	}
}

func (d *deployment) awaitNoWarning(ctx context.Context, t *testing.T) {
	t.Helper()
	for {
		status, warnings := d.readiness(ctx, t)
		if status[0] == http.StatusOK && status[1] == http.StatusOK && warnings[0] == "" && warnings[1] == "" {
			return
		}
		pause(ctx, t, fmt.Sprintf("replicas are well, and do not say %v %q\n%s", status, warnings, d.logs()))
	}
}

func pause(ctx context.Context, t *testing.T, until string) {
	t.Helper()
	select {
	case <-ctx.Done():
		t.Fatalf("wait until %s: %v", until, context.Cause(ctx))
	case <-time.After(50 * time.Millisecond):
	}
}

// No proof can help against a bundle that is taken away: API servers that hear of it
// refuse until they hear of the next one. What can be done is to put it back at once, to say so, and to
// leave what else somebody has written in it.
func TestAWipedBundleIsPutBackAtOnce(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	d := deploy(ctx, t, "certs-managed")
	foreign := issue(ctx, t, t.TempDir())
	for _, test := range []struct {
		name    string
		bundle  []byte
		trusted int // CAs at the end
	}{
		{"emptied", nil, 1},
		{"replaced by a foreign CA", foreign, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := d.look(ctx, t)
			m := underLoad(ctx, t, d.front, cut, 500, func(ctx context.Context, _ *load.Load) {
				begin := time.Now()
				patch := fmt.Sprintf(`[{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": %q}]`, base64.StdEncoding.EncodeToString(test.bundle))
				configurations := shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations()
				if _, err := configurations.Patch(ctx, "tracehook", types.JSONPatchType, []byte(patch), metav1.PatchOptions{FieldManager: "somebody"}); err != nil {
					t.Fatal(err)
				}
				for {
					live, err := configurations.Get(ctx, "tracehook", metav1.GetOptions{})
					if err != nil {
						t.Fatal(err)
					}
					if strings.Count(string(live.Webhooks[0].ClientConfig.CABundle), "BEGIN CERTIFICATE") == test.trusted {
						break
					}
					pause(ctx, t, "the bundle is back")
				}
				progress(t, "%s: back after %.2fs", test.name, time.Since(begin).Seconds())
				d.awaitReady(ctx, t, 2)
			})
			if m.Failures > m.Requests/4 {
				t.Errorf("%d of %d requests failed: it was away for too long", m.Failures, m.Requests)
			}
			if after := d.look(ctx, t); !after.leaf.Equal(before.leaf) {
				t.Error("another leaf is served, for no reason")
			}
			// From here on nothing fails any more.
			underLoad(ctx, t, d.front, cut, 300, func(context.Context, *load.Load) {}).wantZero(t)
		})
	}
}

// With nobody to put it back: that calls fail now is a reason not to be ready, told everywhere.
func TestABundleThatNobodyPutsBackIsTold(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	d := deploy(ctx, t, "certs-authority")
	before, logged := d.look(ctx, t), d.logged(t)
	d.stopAuthorities(t)
	if err := shared.WriteCABundle(ctx, issue(ctx, t, t.TempDir())); err != nil {
		t.Fatal(err)
	}
	d.awaitReady(ctx, t, 0)
	for _, w := range d.replicas {
		if code, text := page(ctx, t, w.HealthURL+"/readyz"); code == http.StatusOK || !strings.Contains(text, string(certs.Untrusted)) {
			t.Errorf("/readyz says %d %q, want that nobody trusts the certificate", code, text)
		}
	}
	d.wantTold(ctx, t, string(certs.Untrusted), logged)
	for _, p := range d.authorities {
		if err := p.Restart(ctx); err != nil {
			t.Fatal(err)
		}
	}
	d.awaitReady(ctx, t, 2)
	if after := d.look(ctx, t); !after.leaf.Equal(before.leaf) {
		t.Error("another leaf is served, for no reason")
	}
	underLoad(ctx, t, d.front, cut, 300, func(context.Context, *load.Load) {}).wantZero(t)
}

// The clock of a machine cannot be moved in a test; lifetimes can be short. Nobody asks for anything here.
func TestRenewalsByTheClockFailNoRequest(t *testing.T) {
	ctx := story.Within(t, 4*time.Minute)
	d := deploy(ctx, t, "certs-managed", "--leaf-lifetime=30s", "--ca-lifetime=60s")
	leaves, cas := map[string]bool{}, map[string]bool{}
	underLoad(ctx, t, d.front, cut, 3000, func(ctx context.Context, _ *load.Load) {
		begin := time.Now()
		for len(leaves) < 4 || len(cas) < 2 {
			status := d.await(ctx, t, "settled", func(s certs.Status) bool { return s.Settled && s.Phase == certs.PhaseStable })
			if !leaves[status.Leaf.Fingerprint] {
				leaves[status.Leaf.Fingerprint] = true
				progress(t, "leaf %d, CA %d after %.0fs, the next one in %.0fs", len(leaves), len(cas)+1, time.Since(begin).Seconds(), time.Until(status.Leaf.RenewAt).Seconds())
			}
			cas[status.CA.Fingerprint] = true
			pause(ctx, t, fmt.Sprintf("there were 4 leaves and 2 CAs, not %d and %d", len(leaves), len(cas)))
		}
	}).wantZero(t)
}
