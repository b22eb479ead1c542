package e2e

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	admissionreview "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// tableRow is a certificate, what is trusted, and what happened when it was measured.
type tableRow struct {
	name     string
	chain    []certs.KeyPair
	bundle   []byte
	byURL    bool   // dialled as https://127.0.0.1, not as a Service
	urlHost  string // instead of 127.0.0.1
	works    bool
	counters []certs.Counter
	// What is odd about the server.
	tls     func(*tls.Config)
	accept  func(net.Conn) net.Conn // every connection; nil: none is left
	plain   bool                    // HTTP
	seconds int32                   // the webhook's timeoutSeconds; zero: 10
}

// tableRows are the table of facts, then what else an API server may meet. Every certificate is
// for host unless it says otherwise.
func tableRows(t *testing.T, host func(row int) string) []tableRow {
	var rows []tableRow
	row := func(name string, make func(host string) (chain []certs.KeyPair, bundle []byte), works bool, counters ...certs.Counter) {
		chain, bundle := make(host(len(rows)))
		rows = append(rows, tableRow{name: name, chain: chain, bundle: bundle, works: works, counters: counters})
	}
	ca, other := forge(t, nil, forgedCA("CA")), forge(t, nil, forgedCA("other CA"))
	expiredCA := forge(t, nil, forgedCA("expired CA"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	sha1CA := forge(t, nil, forgedCA("SHA-1 root"), withSHA1)
	sha1Intermediate := forge(t, &ca, forgedCA("SHA-1 intermediate"), withSHA1)
	// leaf is a certificate from the CA for the host, changed, and the CA as bundle.
	leaf := func(changes ...func(*x509.Certificate)) func(string) ([]certs.KeyPair, []byte) {
		return func(host string) ([]certs.KeyPair, []byte) {
			return []certs.KeyPair{forge(t, &ca, append([]func(*x509.Certificate){forHost(host)}, changes...)...)}, pemOf(ca)
		}
	}
	from := func(issuer *certs.KeyPair, bundle func(leaf certs.KeyPair) []byte, changes ...func(*x509.Certificate)) func(string) ([]certs.KeyPair, []byte) {
		return func(host string) ([]certs.KeyPair, []byte) {
			made := forge(t, issuer, append([]func(*x509.Certificate){forHost(host)}, changes...)...)
			return []certs.KeyPair{made}, bundle(made)
		}
	}
	holds := func(pairs ...certs.KeyPair) func(certs.KeyPair) []byte {
		return func(certs.KeyPair) []byte { return pemOf(pairs...) }
	}
	itself := func(leaf certs.KeyPair) []byte { return pemOf(leaf) }
	commonName := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject.CommonName = name }
	}

	row("SAN matches the name dialled", leaf(), true)
	row("no SAN, CN is the host", leaf(withoutSAN), false, certs.WebhookMissingSAN)
	row("no SAN, CN is the host, untrusted CA", from(&ca, holds(other), withoutSAN), false, certs.WebhookMissingSAN)
	row("no SAN, CN is not the host", leaf(withoutSAN, commonName("webhook")), false)
	row("no SAN, CN is the host, expired", leaf(withoutSAN, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), false)
	row("wrong SAN", leaf(func(c *x509.Certificate) { c.DNSNames = []string{"another.default.svc"} }), false)
	row("IP SAN only for a DNS host", leaf(withoutSAN, withIP), false)
	row("only the name with the cluster's domain", leaf(func(c *x509.Certificate) { c.DNSNames[0] += ".cluster.local" }), false)
	row("SHA-1 leaf from a CA", leaf(withSHA1), false, certs.WebhookInsecureSHA1)
	row("SHA-1 and no SAN", leaf(withSHA1, withoutSAN), false, certs.WebhookMissingSAN)
	row("SHA-1 self-signed, in the bundle", from(nil, itself, withSHA1), true)
	row("SHA-1 CA-signed leaf, itself pinned in the bundle", from(&ca, itself, withSHA1), true, certs.WebhookInsecureSHA1)
	row("SHA-256 leaf under a SHA-1 root", from(&sha1CA, holds(sha1CA)), true)

	row("expired", leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), false)
	row("not yet valid", leaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), false)
	row("untrusted", from(&ca, holds(other)), false)
	row("SHA-1 leaf, unknown CA", from(&ca, holds(other), withSHA1), false)
	row("CA that has expired", from(&expiredCA, holds(expiredCA)), false)
	row("expired CA beside the right one", from(&ca, holds(expiredCA, ca)), true)
	row("CN is a wildcard for the host", leaf(withoutSAN, commonName("*.default.svc")), false, certs.WebhookMissingSAN)
	row("SAN is a wildcard for the host", leaf(func(c *x509.Certificate) { c.DNSNames = []string{"*.default.svc"} }), true)
	row("SHA-1 intermediate", func(host string) ([]certs.KeyPair, []byte) {
		return []certs.KeyPair{forge(t, &sha1Intermediate, forHost(host)), sha1Intermediate}, pemOf(ca)
	}, false, certs.WebhookInsecureSHA1)
	row("SHA-1 certificate served and not needed", func(host string) ([]certs.KeyPair, []byte) {
		return []certs.KeyPair{forge(t, &ca, forHost(host)), sha1Intermediate}, pemOf(ca)
	}, true, certs.WebhookInsecureSHA1)
	row("extended key usage clientAuth only", leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), false)
	row("no extended key usage", leaf(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), true)
	row("key usage without signatures", leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), true)
	row("RSA with 1024 bits", func(host string) ([]certs.KeyPair, []byte) {
		key, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		return []certs.KeyPair{forgeFor(t, key, &ca, forHost(host))}, pemOf(ca)
	}, true)
	row("leaf that outlives its CA", leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().AddDate(5, 0, 0) }), true)
	row("bundle that is not PEM", from(&ca, func(certs.KeyPair) []byte { return []byte("not PEM") }, withoutSAN), false)
	row("bundle of which a part is PEM", from(&ca, func(certs.KeyPair) []byte {
		return append(append([]byte("-----BEGIN NOTHING-----\n-----END NOTHING-----\n"), pemOf(ca)...), "and more"...)
	}), true)
	row("bundle empty, CA unknown to the system", from(&ca, holds()), false)
	row("URL with an address, certificate for it", leaf(withIP), true)
	rows[len(rows)-1].byURL = true
	row("URL with an address, certificate for names only", leaf(), false)
	rows[len(rows)-1].byURL = true
	row("URL with an address, which is the CN", leaf(withoutSAN, commonName("127.0.0.1")), false, certs.WebhookMissingSAN)
	rows[len(rows)-1].byURL = true
	return append(rows, oddRows(t, ca, host, len(rows))...)
}

// For each certificate: the call's result and the delta of all four counters, as measured once,
// as the audit predicts, and as they are now.
func TestEveryCertificateDoesWhatTheAuditPredicts(t *testing.T) {
	ctx := story.Within(t, 3*time.Minute)
	config := rest.CopyConfig(installed.RESTConfig)
	config.QPS = -1
	clients := kubernetes.NewForConfigOrDie(config)
	const label = "e2e.tracehook.dev/certificate"
	service := func(row int) string { return fmt.Sprintf("certificate-%d", row) }
	host := func(row int) string { return certs.ServerName("default", service(row)) }
	rows := tableRows(t, host)

	// One configuration with a webhook for each row. Only objects with the row's label go there.
	hooks := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "certificate-table"}}
	for i, row := range rows {
		port := oddServer(t, row)
		webhook := admissionv1.MutatingWebhook{
			Name:                    fmt.Sprintf("row-%d.e2e.tracehook.dev", i),
			AdmissionReviewVersions: []string{"v1"},
			SideEffects:             new(admissionv1.SideEffectClassNone),
			FailurePolicy:           new(admissionv1.Fail),
			ObjectSelector:          &metav1.LabelSelector{MatchLabels: map[string]string{label: strconv.Itoa(i)}},
			ClientConfig:            admissionv1.WebhookClientConfig{CABundle: row.bundle},
			TimeoutSeconds:          new(cmp.Or(row.seconds, 10)),
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			}},
		}
		if row.byURL {
			webhook.ClientConfig.URL = new(fmt.Sprintf("https://%s:%d/", cmp.Or(row.urlHost, "127.0.0.1"), port))
		} else {
			webhook.ClientConfig.Service = &admissionv1.ServiceReference{Namespace: "default", Name: service(i), Port: new(int32(port))}
			leadToLocalhost(ctx, t, clients, service(i))
		}
		hooks.Webhooks = append(hooks.Webhooks, webhook)
	}
	if _, err := clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, hooks, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", "mutatingwebhookconfiguration", hooks.Name) })
	if err := installed.SetCABundle(ctx, installed.caBundle); err != nil { // changes nothing, and waits until all of the above is in force
		t.Fatal(err)
	}

	report, err := certs.Audit(ctx, certs.AuditOptions{Clients: clients, Dynamic: dynamic.NewForConfigOrDie(config), Now: time.Now(), OnAPIServer: true})
	if err != nil || report.Incomplete {
		t.Fatalf("%v, %q", err, report.Problems)
	}
	audited := map[string]certs.EndpointReport{}
	for _, target := range report.Targets {
		if target.Name == hooks.Name {
			audited[target.Webhook] = target.Endpoints[0]
		}
	}

	for i, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			findings := audited[hooks.Webhooks[i].Name].Findings
			if audited[hooks.Webhooks[i].Name].Call == nil {
				t.Fatalf("the audit predicts nothing: %v", findings)
			}
			predicted := *audited[hooks.Webhooks[i].Name].Call

			const calls = 2
			before := allCounters(ctx, t, clients)
			for range calls {
				_, err := clients.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Name: "certificate-table", Labels: map[string]string{label: strconv.Itoa(i)}},
				}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				switch {
				case err != nil && !strings.Contains(err.Error(), "failed calling webhook"):
					t.Fatal(err)
				case (err == nil) != row.works:
					t.Errorf("the call ends with %v; when measured it worked: %t", err, row.works)
				case (err == nil) != predicted.Works:
					t.Errorf("the call ends with %v; the audit predicts that it works: %t, for %v", err, predicted.Works, findings)
				}
			}
			moved := minus(allCounters(ctx, t, clients), before)
			if want := times(calls, row.counters); moved != want {
				t.Errorf("counters moved by %v; when measured it was %v", moved, want)
			}
			if want := times(calls, predicted.Counters); moved != want {
				t.Errorf("counters moved by %v; the audit predicts %v, for %v", moved, want, findings)
			}
		})
	}
}

// The row of the table that only an aggregated API can have, with its opposite.
func TestAnAPIServiceThatIsNotVerifiedIsCountedForItsCertificate(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	config := rest.CopyConfig(installed.RESTConfig)
	config.QPS = -1
	clients, objects := kubernetes.NewForConfigOrDie(config), dynamic.NewForConfigOrDie(config)
	apiServices := objects.Resource(schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"})
	ca := forge(t, nil, forgedCA("CA"))

	for i, c := range []struct {
		name     string
		changes  []func(*x509.Certificate)
		counters []certs.Counter
	}{
		{"no SAN", []func(*x509.Certificate){withoutSAN}, []certs.Counter{certs.AggregatorMissingSAN}},
		{"no SAN, CN is not the host", []func(*x509.Certificate){withoutSAN, func(c *x509.Certificate) { c.Subject.CommonName = "x" }}, []certs.Counter{certs.AggregatorMissingSAN}},
		{"SHA-1, wrong SAN, expired", []func(*x509.Certificate){withSHA1, func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"x"}, time.Now().Add(-time.Minute)
		}}, []certs.Counter{certs.AggregatorInsecureSHA1}},
		{"SAN", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			service, group := fmt.Sprintf("aggregated-%d", i), fmt.Sprintf("aggregated-%d.e2e.tracehook.dev", i)
			leaf := forge(t, &ca, append([]func(*x509.Certificate){forHost(certs.ServerName("default", service))}, c.changes...)...)
			port := strangerServer(t, []certs.KeyPair{leaf}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"%s/v1","resources":[]}`, group)
			}))
			leadToLocalhost(ctx, t, clients, service)
			_, err := apiServices.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
				"metadata": map[string]any{"name": "v1." + group},
				"spec": map[string]any{
					"group": group, "version": "v1", "groupPriorityMinimum": int64(100), "versionPriority": int64(100),
					"insecureSkipTLSVerify": true,
					"service":               map[string]any{"namespace": "default", "name": service, "port": int64(port)},
				},
			}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { mustKubectl(t, "delete", "apiservice", "v1."+group) })
			mustKubectl(t, "wait", "--for=condition=Available", "--timeout=30s", "apiservice/v1."+group)

			predicted := certs.Predict(certs.Verify(certificatesOf([]certs.KeyPair{leaf}),
				certs.Trust{APIService: true, InsecureSkipVerify: true}, certs.ServerName("default", service), time.Now()))
			if !predicted.Works {
				t.Errorf("Verify predicts that calls fail for %s", predicted.Cause)
			}
			// The API server asks for the group's documents itself now and then, which counts too: a
			// few attempts, one of which it leaves alone.
			const calls = 10
			var moved, want [4]int64
			for range 5 {
				before := allCounters(ctx, t, clients)
				for range calls {
					if _, err := clients.CoreV1().RESTClient().Get().AbsPath("/apis", group, "v1", "things").DoRaw(ctx); err != nil {
						t.Fatal(err)
					}
				}
				moved = minus(allCounters(ctx, t, clients), before)
				if want = times(calls, c.counters); moved == want && moved == times(calls, predicted.Counters) {
					return
				}
			}
			t.Errorf("%d calls: counters moved by %v, want %v; Verify predicts %v", calls, moved, want, predicted.Counters)
		})
	}
}

// allCounters are the four in the order of certs.Counters.
func allCounters(ctx context.Context, t *testing.T, clients kubernetes.Interface) (values [4]int64) {
	t.Helper()
	metrics, err := clients.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		t.Fatal(err)
	}
	counters, err := certs.ReadCounters(metrics)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range counters {
		values[i] = c.Value
	}
	return values
}

func minus(after, before [4]int64) [4]int64 {
	for i := range after {
		after[i] -= before[i]
	}
	return after
}

func times(calls int64, moved []certs.Counter) (values [4]int64) {
	for i, counter := range certs.Counters() {
		for _, m := range moved {
			if m == counter {
				values[i] += calls
			}
		}
	}
	return values
}

// leadToLocalhost makes a Service that the API server knows by its name and finds on this host.
func leadToLocalhost(ctx context.Context, t *testing.T, clients kubernetes.Interface, name string) {
	t.Helper()
	services := clients.CoreV1().Services("default")
	_, err := services.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := services.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// strangerServer serves a certificate that tracehook would not make. Every call shakes hands anew.
func strangerServer(t *testing.T, chain []certs.KeyPair, handler http.Handler) (port int) {
	t.Helper()
	return serveOddly(t, tableRow{chain: chain}, handler)
}

// oddServer is the server of a row.
func oddServer(t *testing.T, row tableRow) (port int) {
	t.Helper()
	return serveOddly(t, row, http.HandlerFunc(admitEverything))
}

// oddListener changes what it accepts.
type oddListener struct {
	net.Listener
	accept func(net.Conn) net.Conn
}

func (l oddListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || l.accept == nil {
			return c, err
		}
		if c = l.accept(c); c != nil {
			return c, nil
		}
	}
}

func serveOddly(t *testing.T, row tableRow, handler http.Handler) (port int) {
	t.Helper()
	chain := row.chain
	pair := tls.Certificate{PrivateKey: chain[0].Key}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Certificate.Raw)
	}
	// Below 32768, where no outgoing connection of anybody's can be in the way.
	var listener net.Listener
	for range 100 {
		var err error
		if listener, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+mathrand.IntN(12000))); err == nil {
			break
		}
	}
	if listener == nil {
		t.Fatal("no free port")
	}
	server := &http.Server{
		Handler:           handler,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{pair}},
		ErrorLog:          log.New(io.Discard, "", 0), // refusals are the point
		ReadHeaderTimeout: 10 * time.Second,
	}
	server.SetKeepAlivesEnabled(false)
	server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){} // HTTP/2 has wishes of its own about cipher suites
	if row.tls != nil {
		row.tls(server.TLSConfig)
	}
	odd := oddListener{listener, row.accept}
	go func() { // ends with Close
		if row.plain {
			_ = server.Serve(odd)
		} else {
			_ = server.ServeTLS(odd, "", "")
		}
	}()
	t.Cleanup(func() { server.Close() })
	return listener.Addr().(*net.TCPAddr).Port
}

// admitEverything is as little as a webhook can be.
func admitEverything(w http.ResponseWriter, r *http.Request) {
	var review admissionreview.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, "no AdmissionReview", http.StatusBadRequest)
		return
	}
	review.Response = &admissionreview.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	review.Request = nil
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(review) // who hung up is told nothing
}

// forge makes certificates that package certs refuses to make. A nil issuer means that it signs itself.
func forge(t *testing.T, issuer *certs.KeyPair, changes ...func(*x509.Certificate)) certs.KeyPair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return forgeFor(t, key, issuer, changes...)
}

func forgeFor(t *testing.T, key crypto.Signer, issuer *certs.KeyPair, changes ...func(*x509.Certificate)) certs.KeyPair {
	t.Helper()
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(60 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, change := range changes {
		change(template)
	}
	if issuer == nil {
		issuer = &certs.KeyPair{Certificate: template, Key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.Certificate, key.Public(), issuer.Key)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certs.KeyPair{Certificate: made, Key: key}
}

func forgedCA(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject, c.ExtKeyUsage = pkix.Name{CommonName: name}, nil
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		c.NotAfter = time.Now().Add(90 * 24 * time.Hour)
	}
}

func forHost(host string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject, c.DNSNames = pkix.Name{CommonName: host}, []string{host} }
}

func withoutSAN(c *x509.Certificate) { c.DNSNames = nil }
func withSHA1(c *x509.Certificate)   { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }
func withIP(c *x509.Certificate)     { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }

func certificatesOf(pairs []certs.KeyPair) (list []*x509.Certificate) {
	for _, p := range pairs {
		list = append(list, p.Certificate)
	}
	return list
}

func pemOf(pairs ...certs.KeyPair) (bundle []byte) {
	for _, p := range pairs {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate.Raw})...)
	}
	return bundle
}
