package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// The healthy certificate moves no counter but the one of calls; the one without a
// subject alternative name moves the counter by exactly the calls made. Without
// this control a zero would prove nothing.
func TestOnlyACertificateWithoutSANMovesTheCounter(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	count := func(t *testing.T, calls func()) cluster.Counters {
		t.Helper()
		before, err := installed.Counters(ctx)
		if err != nil {
			t.Fatal(err)
		}
		calls()
		after, err := installed.Counters(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return after.Sub(before)
	}
	dryRun := func(times int) func() {
		return func() {
			for range times {
				mustKubectl(t, "create", "configmap", "counted", "--dry-run=server")
			}
		}
	}

	if got, want := count(t, dryRun(3)), (cluster.Counters{RequestTotal: 3}); got != want {
		t.Errorf("healthy certificate, 3 calls: counters moved by %+v, want %+v", got, want)
	}

	// The same webhook, once more, with the other certificate; the API server is sent there.
	dir := t.TempDir()
	bundle, err := certificates.IssueWithoutSAN(dir)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := installed.StartWebhook(ctx, cluster.WebhookOptions{CertDir: dir, Name: "tracehook-without-san"})
	if err != nil {
		t.Fatal(err)
	}
	if err := installed.InstallWebhook(ctx, wrong.Port, bundle); err != nil {
		t.Fatal(err)
	}

	if got, want := count(t, dryRun(5)), (cluster.Counters{RequestTotal: 5, MissingSAN: 5, FailOpen: 5}); got != want {
		t.Errorf("no SAN, ignored, 5 calls: counters moved by %+v, want %+v", got, want)
	}
	blamed, err := installed.WaitAuditEvent(ctx, func(e cluster.AuditEvent) bool {
		return e.Annotations["missing-san.invalid-cert.kubernetes.io/"+certificates.ServerName] != ""
	})
	if err != nil {
		t.Errorf("no audit event blames %s: %v", certificates.ServerName, err)
	} else if blamed.ObjectRef.Resource != "configmaps" {
		t.Errorf("the audit event that blames the host is about %q", blamed.ObjectRef.Resource)
	}

	mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json",
		"-p", `[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Fail"}]`)
	if err := installed.SetCABundle(ctx, bundle); err != nil { // waits until the policy is in force too
		t.Fatal(err)
	}
	got := count(t, func() {
		_, err := installed.Kubectl(ctx, "create", "configmap", "counted", "--dry-run=server")
		if err == nil || !strings.Contains(err.Error(), "certificate relies on legacy Common Name field, use SANs instead") {
			t.Errorf("no SAN, not ignored: got %v, want the error that names the cause", err)
		}
	})
	if want := (cluster.Counters{RequestTotal: 1, MissingSAN: 1, Rejections: 1}); got != want {
		t.Errorf("no SAN, not ignored, 1 call: counters moved by %+v, want %+v", got, want)
	}

	// Back to the certificate with names: the counter stands still.
	if code, err := wrong.Stop(); code != 0 || err != nil {
		t.Errorf("the webhook ended with code %d, %v", code, err)
	}
	if err := installed.InstallWebhook(ctx, installed.webhook.Port, installed.caBundle); err != nil {
		t.Fatal(err)
	}
	if got, want := count(t, dryRun(3)), (cluster.Counters{RequestTotal: 3}); got != want {
		t.Errorf("healthy certificate again, 3 calls: counters moved by %+v, want %+v", got, want)
	}
}
