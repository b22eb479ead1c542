package rotation

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

const namespace = "tracehook-system"

// Quick enough for a test, slow enough that a busy machine does not lose its Lease.
var quickly = []string{
	"--rotation-soak=2s",
	"--leader-elect-lease-duration=4s", "--leader-elect-renew-deadline=3s", "--leader-elect-retry-period=500ms",
}

// deployment is tracehook with certificates of its own, as the shipped components have it.
type deployment struct {
	component   string
	front       *cluster.Balancer // Service tracehook
	proof       *cluster.Balancer // Service tracehook-proof
	flags       []string          // of whoever is an Authority
	replicas    []*cluster.Webhook
	authorities []*cluster.Program // where they are processes of their own
}

// deploy installs a component, starts two replicas and returns when all is well. With
// certs-managed they are Authorities, too; with certs-authority two processes beside them are.
func deploy(ctx context.Context, t *testing.T, component string, flags ...string) *deployment {
	t.Helper()
	begin := time.Now()
	d := install(ctx, t, component, flags...)
	d.startReplicas(ctx, t)
	if component == "certs-authority" {
		d.startAuthorities(ctx, t)
	}
	d.awaitReady(ctx, t, len(d.replicas))
	progress(t, "%s: %d replicas ready %.1fs after nothing was there", component, len(d.replicas), time.Since(begin).Seconds())
	d.await(ctx, t, "settled", func(s certs.Status) bool { return s.Settled && s.Phase == certs.PhaseStable })
	if err := shared.WaitInForce(ctx); err != nil {
		t.Fatal(err)
	}
	return d
}

// install is deploy without a process of ours.
func install(ctx context.Context, t *testing.T, component string, flags ...string) *deployment {
	t.Helper()
	d := &deployment{
		component: component,
		front:     balance(t, cluster.BalancerOptions{}), proof: balance(t, cluster.BalancerOptions{NotReady: true}),
	}
	t.Cleanup(uninstall)
	d.apply(ctx, t)
	if err := shared.WaitInForce(ctx); err != nil {
		t.Fatal(err)
	}
	d.flags = append(d.flags, fmt.Sprintf("--service=tracehook:%d", d.front.Port))
	for _, server := range shared.servers {
		d.flags = append(d.flags, "--api-server="+server.URL)
	}
	d.flags = slices.Concat(d.flags, quickly, flags)
	return d
}

// apply applies the manifests, as `kubectl apply` or a GitOps tool does.
func (d *deployment) apply(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := shared.ApplyWebhook(ctx, cluster.InstallOptions{
		Port: d.front.Port, ProofPort: d.proof.Port, FailurePolicy: "Fail", Components: []string{d.component},
	}); err != nil {
		t.Fatal(err)
	}
}

// startReplicas starts two replicas, each talking to an API server of its own. They are not waited for.
func (d *deployment) startReplicas(ctx context.Context, t *testing.T) {
	t.Helper()
	args := append([]string{"--certs=managed"}, d.flags...)
	if d.component == "certs-authority" {
		args = []string{"--certs=secret"}
	}
	for i := range 2 {
		name := fmt.Sprintf("tracehook-%c", 'a'+i)
		w, err := shared.StartWebhook(ctx, cluster.WebhookOptions{
			Name: name, Args: args, APIServer: shared.servers[i], Unready: true,
			Env: []string{"POD_NAME=" + name, "POD_NAMESPACE=" + namespace},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = w.Stop() })
		d.replicas = append(d.replicas, w)
	}
	d.front.Lead(ctx, d.replicas...)
	d.proof.Lead(ctx, d.replicas...)
}

func authorityName(i int) string { return fmt.Sprintf("authority-%c", 'a'+i) }

func (d *deployment) startAuthorities(ctx context.Context, t *testing.T) {
	t.Helper()
	for i := range 2 {
		name := authorityName(i)
		p, err := shared.StartTracehook(ctx, cluster.TracehookOptions{
			Name: name, ServiceAccount: "tracehook-authority", APIServer: shared.servers[i],
			Args: slices.Concat([]string{"certs", "authority", "--health-probe-bind-address=0", "--metrics-bind-address=0"}, d.flags),
			Env:  []string{"POD_NAME=" + name, "POD_NAMESPACE=" + namespace},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = p.Stop() })
		d.authorities = append(d.authorities, p)
	}
}

func (d *deployment) awaitReady(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	for d.front.Ready() != n {
		select {
		case <-ctx.Done():
			t.Fatalf("%d replicas are ready, want %d\n%s", d.front.Ready(), n, d.logs())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// await watches the status until it is as wanted.
func (d *deployment) await(ctx context.Context, t *testing.T, what string, wanted func(certs.Status) bool) certs.Status {
	t.Helper()
	var last certs.Status
	err := certs.WatchStatus(ctx, shared.clients, namespace, certs.DefaultServingSecret, func(s certs.Status) bool {
		last = s
		return !wanted(s)
	})
	if err != nil || !wanted(last) {
		t.Fatalf("wait until %s: %v; the last status was %+v\n%s", what, err, last, d.logs())
	}
	return last
}

func (d *deployment) logs() string {
	var files []string
	for _, w := range d.replicas {
		files = append(files, w.LogFile)
	}
	for _, p := range d.authorities {
		files = append(files, p.LogFile)
	}
	var text strings.Builder
	for _, file := range files {
		data, _ := os.ReadFile(file) // for people who look for another error
		lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
		fmt.Fprintf(&text, "--- the end of %s\n%s\n", file, bytes.Join(lines[max(0, len(lines)-15):], []byte("\n")))
	}
	return text.String()
}

// rotate runs `tracehook certs rotate` as an operator would.
func (d *deployment) rotate(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	begin := time.Now()
	cmd := exec.CommandContext(ctx, shared.tracehook, append([]string{"certs", "rotate", "--kubeconfig", shared.Kubeconfig}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("certs rotate %s: %v\n%s\n%s", strings.Join(args, " "), err, out, d.logs())
	}
	progress(t, "certs rotate %s: %.1fs", strings.Join(args, " "), time.Since(begin).Seconds())

	// Replicas learn of the new leaf by a watch.
	secret, err := shared.clients.CoreV1().Secrets("tracehook-system").Get(ctx, certs.DefaultServingSecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(secret.Data["tls.crt"])
	for _, w := range d.replicas {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", w.Port))
			if err == nil {
				served := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
				conn.Close()
				if bytes.Equal(served.Raw, block.Bytes) {
					break
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("a replica does not serve the new leaf 10 s after the rotation: %v\n%s", err, d.logs())
			}
		}
	}
}

// seen is what the world sees of the certificates.
type seen struct {
	leaf *x509.Certificate
	// CAs in the live bundle, by fingerprint.
	trusted []string
}

// look wants both replicas to serve the same leaf, and it to be what the live bundle
// vouches for under the name that API servers dial.
func (d *deployment) look(ctx context.Context, t *testing.T) seen {
	t.Helper()
	configuration, err := shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, "tracehook", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var s seen
	roots := x509.NewCertPool()
	for rest := configuration.Webhooks[0].ClientConfig.CABundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		roots.AddCert(ca)
		s.trusted = append(s.trusted, certs.Fingerprint(ca))
	}
	for _, w := range d.replicas {
		dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: certificates.ServerName}}
		conn, err := dialer.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", w.Port))
		if err != nil {
			t.Fatalf("shake hands as an API server does, trusting %q: %v\n%s", s.trusted, err, d.logs())
		}
		leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
		conn.Close()
		if s.leaf != nil && !s.leaf.Equal(leaf) {
			t.Errorf("the replicas serve different certificates, %x and %x", s.leaf.SerialNumber, leaf.SerialNumber)
		}
		s.leaf = leaf
	}
	return s
}
