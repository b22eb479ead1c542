package e2e

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// oddRows are further rows of the table: odd certificates, odd chains, odd bundles, odd servers, odd URLs. None of them moves a counter.
func oddRows(t *testing.T, ca certs.KeyPair, host func(row int) string, first int) (rows []tableRow) {
	add := func(name string, works bool, make func(host string) (chain []certs.KeyPair, bundle []byte), changes ...func(*tableRow)) {
		row := tableRow{name: name, works: works}
		row.chain, row.bundle = make(host(first + len(rows)))
		for _, change := range changes {
			change(&row)
		}
		rows = append(rows, row)
	}
	leaf := func(changes ...func(*x509.Certificate)) func(string) ([]certs.KeyPair, []byte) {
		return func(host string) ([]certs.KeyPair, []byte) {
			return []certs.KeyPair{forge(t, &ca, append([]func(*x509.Certificate){forHost(host)}, changes...)...)}, pemOf(ca)
		}
	}
	// below serves a leaf of the last of the CAs, with all but the first of them, which is trusted.
	below := func(cas ...certs.KeyPair) func(string) ([]certs.KeyPair, []byte) {
		return func(host string) ([]certs.KeyPair, []byte) {
			chain := []certs.KeyPair{forge(t, &cas[len(cas)-1], forHost(host))}
			for i := len(cas) - 1; i > 0; i-- {
				chain = append(chain, cas[i])
			}
			return chain, pemOf(cas[0])
		}
	}
	names := func(list ...string) func(*x509.Certificate) { return func(c *x509.Certificate) { c.DNSNames = list } }
	extra := func(critical bool) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 55555, 1}, Critical: critical, Value: []byte{5, 0}})
		}
	}

	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	add("Ed25519", true, func(host string) ([]certs.KeyPair, []byte) {
		return []certs.KeyPair{forgeFor(t, edKey, &ca, forHost(host))}, pemOf(ca)
	})
	for _, curve := range []elliptic.Curve{elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		add(curve.Params().Name, true, func(host string) ([]certs.KeyPair, []byte) {
			return []certs.KeyPair{forgeFor(t, key, &ca, forHost(host))}, pemOf(ca)
		})
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	withRSA := func(host string) ([]certs.KeyPair, []byte) {
		return []certs.KeyPair{forgeFor(t, rsaKey, &ca, forHost(host), func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment })}, pemOf(ca)
	}
	add("RSA with 2048 bits", true, withRSA)
	add("SHA-512", true, leaf(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA512 }))
	add("until the year 9999", true, leaf(func(c *x509.Certificate) { c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }))
	add("a serial number of 160 bits", true, leaf(func(c *x509.Certificate) { c.SerialNumber.Lsh(c.SerialNumber, 96) }))
	add("a leaf that may sign certificates", true, leaf(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }))
	add("an extension that nobody knows", true, leaf(extra(false)))
	add("a critical extension that nobody knows", false, leaf(extra(true)))
	add("any extended key usage", true, leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }))

	// Names.
	add("SAN in upper case", true, func(host string) ([]certs.KeyPair, []byte) { return leaf(names(strings.ToUpper(host)))(host) })
	add("SAN with a dot at its end", false, func(host string) ([]certs.KeyPair, []byte) { return leaf(names(host + "."))(host) })
	add("SAN with a wildcard in a word", false, leaf(names("certificate-*.default.svc")))
	add("SAN with a wildcard for the namespace", false, func(host string) ([]certs.KeyPair, []byte) {
		service, _, _ := strings.Cut(host, ".")
		return leaf(names(service + ".*.svc"))(host)
	})
	add("SAN with a wildcard for two words", false, leaf(names("*.svc")))
	add("SAN among a hundred others", true, func(host string) ([]certs.KeyPair, []byte) {
		var many []string
		for i := range 100 {
			many = append(many, fmt.Sprintf("other-%d.example.org", i))
		}
		return leaf(names(append(many, host)...))(host)
	})
	byURL := func(host string) func(*tableRow) {
		return func(row *tableRow) { row.byURL, row.urlHost = true, host }
	}
	add("URL with localhost in upper case", true, leaf(names("localhost")), byURL("LOCALHOST"))
	add("URL with localhost, certificate for the address", false, leaf(withoutSAN, withIP), byURL("localhost"))
	add("URL with an IPv4 address as IPv6 has it", true, leaf(withIP), byURL("[::ffff:127.0.0.1]"))
	add("URL with an address, as a DNS name in the certificate", false, leaf(names("127.0.0.1")), byURL("127.0.0.1"))
	add("URL with another address of this host", false, leaf(withIP), byURL("127.0.0.2"))
	rows[len(rows)-1].name += ", where nobody listens"

	// Chains.
	root := forge(t, nil, forgedCA("root"))
	intermediate := forge(t, &root, forgedCA("intermediate"))
	add("an intermediate", true, below(root, intermediate))
	add("an intermediate that is not served", false, func(host string) ([]certs.KeyPair, []byte) {
		chain, bundle := below(root, intermediate)(host)
		return chain[:1], bundle
	})
	add("an intermediate that is not served, and trusted", true, func(host string) ([]certs.KeyPair, []byte) {
		chain, _ := below(root, intermediate)(host)
		return chain[:1], pemOf(intermediate)
	})
	add("a chain in the wrong order", true, func(host string) ([]certs.KeyPair, []byte) {
		second := forge(t, &intermediate, forgedCA("second"))
		chain, bundle := below(root, intermediate, second)(host)
		chain[1], chain[2] = chain[2], chain[1]
		return chain, bundle
	})
	add("an intermediate that has expired", false, below(root, forge(t, &root, forgedCA("expired"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })))
	add("a CA that is not yet valid", false, below(forge(t, nil, forgedCA("early"), func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })))
	short := forge(t, nil, forgedCA("short"), func(c *x509.Certificate) { c.MaxPathLenZero = true })
	add("a path longer than the CA allows", false, below(short, forge(t, &short, forgedCA("too many"))))
	add("an issuer that is no CA", false, below(root, forge(t, &root, forHost("leaf"), func(c *x509.Certificate) { c.BasicConstraintsValid = true })))
	add("a CA for clients only", false, below(root, forge(t, &root, forgedCA("clients"), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })))
	permitted := func(domain string) certs.KeyPair {
		return forge(t, &root, forgedCA("constrained"), func(c *x509.Certificate) {
			c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{domain}
		})
	}
	add("a CA constrained to the name", true, below(root, permitted("default.svc")))
	add("a CA constrained to other names", false, below(root, permitted("example.org")))
	add("a CA from which the name is excluded", false, below(root, forge(t, &root, forgedCA("excluding"), func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"svc"} })))
	add("a CA with a critical extension that nobody knows", false, below(forge(t, nil, forgedCA("odd"), extra(true))))

	// Bundles.
	add("a leaf signed by itself, in the bundle", true, func(host string) ([]certs.KeyPair, []byte) {
		made := forge(t, nil, forHost(host))
		return []certs.KeyPair{made}, pemOf(made)
	})
	add("another CA of the same name and another key, first in the bundle", true, func(host string) ([]certs.KeyPair, []byte) {
		chain, bundle := leaf()(host)
		return chain, append(pemOf(forge(t, nil, forgedCA(ca.Certificate.Subject.CommonName))), bundle...)
	})
	add("the CA twice in the bundle", true, func(host string) ([]certs.KeyPair, []byte) {
		chain, bundle := leaf()(host)
		return chain, append(bundle, bundle...)
	})
	add("a certificate that cannot be read in the bundle", true, func(host string) ([]certs.KeyPair, []byte) {
		chain, bundle := leaf()(host)
		return chain, append([]byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"), bundle...)
	})
	add("a bundle with nothing but a certificate that cannot be read", false, func(host string) ([]certs.KeyPair, []byte) {
		chain, _ := leaf()(host)
		return chain, []byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
	})

	// Servers.
	server := func(change func(*tls.Config)) func(*tableRow) { return func(row *tableRow) { row.tls = change } }
	add("TLS 1.2 only", true, leaf(), server(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }))
	add("TLS 1.3 only", true, leaf(), server(func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }))
	add("TLS 1.1 only", false, leaf(), server(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }))
	add("a cipher suite of before: CBC", true, leaf(), server(func(c *tls.Config) {
		c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
	}))
	add("a cipher suite of before: key exchange by RSA", false, withRSA, server(func(c *tls.Config) {
		c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
	}))
	add("another protocol by ALPN", false, leaf(), server(func(c *tls.Config) {
		strict := c.Clone() // net/http adds its own to the other
		strict.NextProtos = []string{"smtp"}
		c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return strict, nil }
	}))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		asks := func(how tls.ClientAuthType) func(*tableRow) {
			return server(func(c *tls.Config) {
				c.MinVersion, c.MaxVersion, c.ClientAuth, c.ClientCAs = version, version, how, x509.NewCertPool()
			})
		}
		add(tls.VersionName(version)+", a client certificate is demanded", false, leaf(), asks(tls.RequireAndVerifyClientCert))
		add(tls.VersionName(version)+", any client certificate is demanded", false, leaf(), asks(tls.RequireAnyClientCert))
		add(tls.VersionName(version)+", a client certificate is asked for", true, leaf(), asks(tls.RequestClientCert))
		add(tls.VersionName(version)+", a client certificate is looked at if there is one", true, leaf(), asks(tls.VerifyClientCertIfGiven))
	}
	add("a client certificate is demanded, and the name is wrong", false, leaf(names("x")), server(func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }))
	add("plain HTTP", false, leaf(), func(row *tableRow) { row.plain = true })
	add("it hangs up at once", false, leaf(), func(row *tableRow) {
		row.accept = func(c net.Conn) net.Conn { c.Close(); return nil }
	})
	add("it hangs up after the handshake", false, leaf(), func(row *tableRow) {
		row.accept = func(c net.Conn) net.Conn { return &hangsUp{Conn: c} }
	})
	add("it takes 2 s for the handshake", true, leaf(), func(row *tableRow) { row.accept = later(2 * time.Second) })
	add("it takes 3 s for the handshake, and the call has 1 s", false, leaf(), func(row *tableRow) { row.accept, row.seconds = later(3*time.Second), 1 })
	return rows
}

// later answers nothing for a while.
func later(wait time.Duration) func(net.Conn) net.Conn {
	return func(c net.Conn) net.Conn { return &slowConn{Conn: c, until: time.Now().Add(wait)} }
}

type slowConn struct {
	net.Conn
	until time.Time
}

func (c *slowConn) Read(p []byte) (int, error) {
	time.Sleep(time.Until(c.until))
	return c.Conn.Read(p)
}

// hangsUp ends the connection when the client has said all that belongs to the handshake: what follows on ChangeCipherSpec is
// its Finished (RFC 5246, 7.3; RFC 8446, D.4). It reads record by record, because the request may arrive together with that.
type hangsUp struct {
	net.Conn
	record         []byte // what is left of it
	changed, ended bool
}

func (c *hangsUp) Read(p []byte) (int, error) {
	if len(c.record) == 0 {
		if c.ended {
			c.Close()
			return 0, io.EOF
		}
		header := make([]byte, 5)
		if _, err := io.ReadFull(c.Conn, header); err != nil {
			return 0, err
		}
		c.record = append(header, make([]byte, binary.BigEndian.Uint16(header[3:]))...)
		if _, err := io.ReadFull(c.Conn, c.record[len(header):]); err != nil {
			return 0, err
		}
		const changeCipherSpec = 20
		c.ended, c.changed = c.changed, header[0] == changeCipherSpec
	}
	n := copy(p, c.record)
	c.record = c.record[n:]
	return n, nil
}

// An APIService that is verified: what the API server refuses is unavailable, and what is unavailable is not counted. It is
// counted only while a certificate that it refuses has taken the place of a good one and the API server has not looked again.
func TestAVerifiedAPIServiceIsCountedOnlyWhileItIsAvailable(t *testing.T) {
	ctx := story.Within(t, 4*time.Minute)
	config := rest.CopyConfig(installed.RESTConfig)
	config.QPS = -1
	clients, objects := kubernetes.NewForConfigOrDie(config), dynamic.NewForConfigOrDie(config)
	apiServices := objects.Resource(schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"})
	ca := forge(t, nil, forgedCA("CA"))
	for i, c := range []struct {
		name    string
		changes []func(*x509.Certificate)
		works   bool
		counts  []certs.Counter
	}{
		{name: "SAN", works: true},
		{name: "no SAN, CN is the host", changes: []func(*x509.Certificate){withoutSAN}, counts: []certs.Counter{certs.AggregatorMissingSAN}},
		{name: "SHA-1", changes: []func(*x509.Certificate){withSHA1}, counts: []certs.Counter{certs.AggregatorInsecureSHA1}},
		{name: "wrong SAN", changes: []func(*x509.Certificate){func(c *x509.Certificate) { c.DNSNames = []string{"x"} }}},
	} {
		t.Run(c.name, func(t *testing.T) {
			service, group := fmt.Sprintf("verified-%d", i), fmt.Sprintf("verified-%d.e2e.tracehook.dev", i)
			good := forge(t, &ca, forHost(certs.ServerName("default", service)))
			leaf := forge(t, &ca, append([]func(*x509.Certificate){forHost(certs.ServerName("default", service))}, c.changes...)...)
			var served atomic.Pointer[certs.KeyPair]
			served.Store(&leaf)
			port := serveOddly(t, tableRow{chain: []certs.KeyPair{leaf}, tls: func(config *tls.Config) {
				config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
					now := config.Clone()
					now.GetConfigForClient = nil
					pair := served.Load()
					now.Certificates = []tls.Certificate{{Certificate: [][]byte{pair.Certificate.Raw}, PrivateKey: pair.Key}}
					return now, nil
				}
			}}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"%s/v1","resources":[]}`, group)
			}))
			leadToLocalhost(ctx, t, clients, service)
			_, err := apiServices.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
				"metadata": map[string]any{"name": "v1." + group},
				"spec": map[string]any{
					"group": group, "version": "v1", "groupPriorityMinimum": int64(100), "versionPriority": int64(100),
					"caBundle": encodePEM(ca),
					"service":  map[string]any{"namespace": "default", "name": service, "port": int64(port)},
				},
			}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { mustKubectl(t, "delete", "apiservice", "v1."+group) })
			available := func(want string) {
				mustKubectl(t, "wait", "--for=condition=Available="+want, "--timeout=90s", "apiservice/v1."+group)
			}
			ask := func() ([]byte, error) {
				return clients.CoreV1().RESTClient().Get().AbsPath("/apis", group, "v1", "things").MaxRetries(0).DoRaw(ctx)
			}
			call := func() error {
				_, err := ask()
				return err
			}
			if available(fmt.Sprint(c.works)); c.works {
				if err := call(); err != nil {
					t.Errorf("it is available, and a call ends with %v", err)
				}
			}
			report, err := certs.Audit(ctx, certs.AuditOptions{Clients: clients, Dynamic: objects, Now: time.Now()})
			if err != nil {
				t.Fatal(err)
			}
			for _, target := range report.Targets {
				if target.Name != "v1."+group {
					continue
				}
				if found := target.Endpoints[0].Call; found == nil || found.Works != c.works || len(found.Counters) > 0 {
					t.Errorf("the audit says %+v, for %+v", found, target.Endpoints[0].Findings)
				}
			}
			if c.works {
				return
			}
			// The condition is written before the API server itself goes by it.
			for answer, deadline := "", time.Now().Add(30*time.Second); !strings.Contains(answer, "service unavailable"); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("unavailable for 30 s, and the API server still answers %s", answer)
				}
				body, err := ask()
				answer = fmt.Sprintf("%s: %v", body, err)
			}
			const calls = 5
			before := allCounters(ctx, t, clients)
			for range calls {
				if call() == nil {
					t.Error("a call works")
				}
			}
			if moved := minus(allCounters(ctx, t, clients), before); moved != ([4]int64{}) {
				t.Errorf("unavailable, and the counters moved by %v", moved)
			}
			// A good certificate makes it available. The one of before takes its place.
			served.Store(&good)
			available("true")
			served.Store(&leaf)
			before = allCounters(ctx, t, clients)
			if call() == nil {
				t.Error("a call works")
			}
			moved := minus(allCounters(ctx, t, clients), before)
			for j, want := range times(1, c.counts) {
				if want > 0 && moved[j] == 0 || want == 0 && moved[j] > 0 {
					t.Errorf("still available, and one call moved %v, want %v", moved, times(1, c.counts))
				}
			}
		})
	}
}

func encodePEM(pairs ...certs.KeyPair) string {
	text, _ := json.Marshal(pemOf(pairs...)) // in base64
	return strings.Trim(string(text), `"`)
}

// The cases of EKS and GKE, and further ways to say loopback: they are the API server's, nobody is dialled here, and whoever
// listens here is not to be trusted. On the API server they are looked at.
func TestALoopbackAddressInAURLIsTheAPIServers(t *testing.T) {
	ctx := story.Within(t, time.Minute)
	var dialled atomic.Int32
	stranger := forge(t, nil, forHost("stranger"))
	port := serveOddly(t, tableRow{chain: []certs.KeyPair{stranger}, accept: func(c net.Conn) net.Conn { dialled.Add(1); return c }}, http.HandlerFunc(admitEverything))
	ca := forge(t, nil, forgedCA("CA of the provider"))
	hosts := []string{"127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.0.0.53", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "pod-identity.localhost"}
	var webhooks []string
	for i, host := range hosts {
		webhooks = append(webhooks, fmt.Sprintf(`
- name: hook-%d.example.org
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  clientConfig: {url: "https://%s:%d/mutate", caBundle: %s}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [podtemplates]}]`, i, host, port, encodePEM(ca)))
	}
	// As only an API server that has an egress proxy, or a DNS of its own, can resolve it.
	webhooks = append(webhooks, fmt.Sprintf(`
- name: egress.example.org
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  clientConfig: {url: "https://hooks.control-plane.invalid/mutate", caBundle: %s}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [podtemplates]}]`, encodePEM(ca)))
	file := filepath.Join(t.TempDir(), "loopback.yaml")
	text := "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: loopback}\nwebhooks:" + strings.Join(webhooks, "") + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "apply", "-f", file)
	t.Cleanup(func() { mustKubectl(t, "delete", "-f", file) })

	report := auditReport(t, installed.Kubeconfig, 0)
	if report.Worst != certs.Info || report.Incomplete {
		t.Errorf("worst %s, problems %q", report.Worst, report.Problems)
	}
	seen := 0
	for _, target := range report.Targets {
		if target.Name != "loopback" {
			continue
		}
		seen++
		e := target.Endpoints[0]
		if len(e.Findings) != 1 || e.Findings[0].Code != certs.OutOfReach || e.Call != nil || !strings.Contains(e.Findings[0].Message, "cannot be looked at from here") {
			t.Errorf("%s: %+v", target.URL, e)
		}
	}
	if seen != len(hosts)+1 || dialled.Load() != 0 {
		t.Errorf("%d of %d webhooks are in the report, %d times somebody dialled", seen, len(hosts)+1, dialled.Load())
	}
	there := auditReport(t, installed.Kubeconfig, 1, "--on-api-server")
	if got := found(there)["MutatingWebhookConfiguration/loopback hook-0.example.org"]; len(got) != 2 || got[1] != certs.Untrusted {
		t.Errorf("on the API server: %v", got)
	}
	if got := found(there)["MutatingWebhookConfiguration/loopback egress.example.org"]; len(got) != 1 || got[0] != certs.Unreachable {
		t.Errorf("on the API server a name that nobody knows is no error: %v", got)
	}
	if dialled.Load() == 0 {
		t.Error("on the API server nobody dialled")
	}
	if out, err := installed.Kubectl(ctx, "get", "mutatingwebhookconfiguration", "loopback"); err != nil {
		t.Error(out, err)
	}
}
