package migrate

import (
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/certs"
)

// One server, a webhook that leads to its Service and one that leads to its address: the new certificate is for both, whoever makes it,
// and no request fails.
func TestTheNewCertificateIsForEveryNameAndAddressOfTheServer(t *testing.T) {
	t.Parallel()
	for _, to := range []certs.MigrateTo{certs.ToIssued, certs.ToManaged} {
		t.Run(string(to), func(t *testing.T) {
			name := "address-" + string(to)
			authority := forge(t, nil, ca("policy CA"))
			s := startStranger(t, name, forge(t, &authority, host(name), func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }))
			// The Service leads to an address, as others do through their endpoints.
			_, err := shared.clients.CoreV1().Services(name).Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":{"externalName":"127.0.0.1"}}`), metav1.PatchOptions{})
			must(t, err)
			s.validate(t, pemOf(authority), nil)
			s.mutate(t, pemOf(authority), name)
			configurations := shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations()
			byURL, err := configurations.Get(t.Context(), name, metav1.GetOptions{})
			must(t, err)
			byURL.Webhooks[0].ClientConfig = admissionv1.WebhookClientConfig{CABundle: pemOf(authority), URL: new(fmt.Sprintf("https://127.0.0.1:%d/", s.port))}
			_, err = configurations.Update(t.Context(), byURL, metav1.UpdateOptions{})
			must(t, err)
			s.inForce(t, s.admission, true)
			l := startLoad(t, s.admission)
			out, code := run(t, fmt.Sprintf("tracehook certs migrate validatingwebhookconfiguration/%[1]s --to %[2]s --secret %[1]s/serving-cert --apply", name, to))
			if code != 0 || !strings.Contains(out, "together: MutatingWebhookConfiguration/"+name) {
				t.Errorf("exit code %d:\n%s", code, out)
			}
			if to == certs.ToManaged && !strings.Contains(out, "--serving-name 127.0.0.1") {
				t.Errorf("it does not say what the Authority needs from then on:\n%s", out)
			}
			l.settle()
			if requests, failed, last := l.stop(); failed > 0 {
				t.Errorf("%d of %d requests failed: %s", failed, requests, last)
			}
			deadline := time.Now().Add(30 * time.Second)
			for ; ; time.Sleep(50 * time.Millisecond) {
				leaf := s.pair.Load().Leaf
				if leaf.VerifyHostname("127.0.0.1") == nil && leaf.VerifyHostname(certs.ServerName(name, name)) == nil && !leaf.NotBefore.Before(byURL.CreationTimestamp.Add(-2*time.Hour)) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("the certificate is for %q and %v", leaf.DNSNames, leaf.IPAddresses)
				}
			}
		})
	}
}

// Somebody else switches, which takes as long as it takes: the cluster is not listed again and again meanwhile.
func TestAMigrationThatWaitsDoesNotListTheCluster(t *testing.T) {
	const name = "patient"
	authority := forge(t, nil, ca("policy CA"))
	s := startStranger(t, name, forge(t, &authority, host(name)))
	s.validate(t, pemOf(authority), nil)
	s.inForce(t, s.admission, true)
	r := startRun(t, shared.Kubeconfig, "certs", "migrate", "validatingwebhookconfiguration/"+name, "--to", "issued", "--apply", "--step-timeout", "20s")
	proving(t, name)
	for len(proofsOf(t, name)) > 0 {
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(3 * time.Second) // it waits for the switch by now
	before, begin := listsOfCRDs(t), time.Now()
	time.Sleep(10 * time.Second)
	if lists := listsOfCRDs(t) - before; lists > 2 { // others' among them
		t.Errorf("%d lists of CustomResourceDefinitions in %s", lists, time.Since(begin))
	}
	if out, code := r.ends(t); code != 1 || !strings.Contains(out, "yours to do: have the server read tls.crt and tls.key of Secret patient/") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

var crdLists = regexp.MustCompile(`(?m)^apiserver_request_total\{[^}]*resource="customresourcedefinitions"[^}]*verb="LIST"[^}]*\} (\d+)`)

// listsOfCRDs is how often they were listed at both API servers.
func listsOfCRDs(t *testing.T) (sum int) {
	t.Helper()
	for _, server := range shared.servers {
		metrics, err := kubernetes.NewForConfigOrDie(server.RESTConfig).CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
		must(t, err)
		for _, match := range crdLists.FindAllSubmatch(metrics, -1) {
			n, err := strconv.Atoi(string(match[1]))
			must(t, err)
			sum += n
		}
	}
	if sum == 0 && os.Getenv("KUBERNETES") == "" {
		t.Error("nobody has ever listed them: the metric is another one")
	}
	return sum
}
