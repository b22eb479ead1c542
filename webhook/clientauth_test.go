package webhook

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// testCA signs client certificates.
type testCA struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newTestCA(t *testing.T, name string) testCA {
	t.Helper()
	c, key := signed(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, nil)
	return testCA{c, key}
}

func (ca testCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.certificate.Raw})
}

// client makes a client certificate; change may be nil.
func (ca testCA) client(t *testing.T, name string, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if change != nil {
		change(template)
	}
	c, key := signed(t, template, &ca)
	return &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}
}

func signed(t *testing.T, template *x509.Certificate, by *testCA) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if by == nil {
		by = &testCA{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.certificate, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

type authLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *authLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *authLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// guarded is a TLS server that a ClientAuth guards.
type guarded struct {
	auth   *ClientAuth
	server *httptest.Server
	log    *authLog
	reader *sdkmetric.ManualReader
}

func startGuarded(t *testing.T, o ClientAuthOptions) *guarded {
	t.Helper()
	g := &guarded{log: &authLog{}, reader: sdkmetric.NewManualReader()}
	o.Logger = slog.New(slog.NewTextHandler(g.log, nil))
	o.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(g.reader))
	var err error
	if g.auth, err = NewClientAuth(o); err != nil {
		t.Fatal(err)
	}
	g.server = httptest.NewUnstartedServer(g.auth.Check(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "served")
	})))
	g.server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	g.auth.Ask(g.server.TLS)
	g.server.StartTLS()
	t.Cleanup(g.server.Close)
	return g
}

// call makes one request on a connection of its own.
func (g *guarded) call(t *testing.T, certificate *tls.Certificate) string {
	t.Helper()
	client := g.client(certificate)
	defer client.CloseIdleConnections()
	return g.get(t, client)
}

func (g *guarded) client(certificate *tls.Certificate) *http.Client {
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AddCert(g.server.Certificate())
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
}

func (g *guarded) get(t *testing.T, client *http.Client) string {
	t.Helper()
	resp, err := client.Get(g.server.URL + "/mutate")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(body)))
}

func (g *guarded) counts(t *testing.T) map[string]int64 {
	t.Helper()
	var data metricdata.ResourceMetrics
	if err := g.reader.Collect(context.Background(), &data); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	for _, p := range data.ScopeMetrics[0].Metrics[0].Data.(metricdata.Sum[int64]).DataPoints {
		result, _ := p.Attributes.Value(keyClientResult)
		counts[result.AsString()] = p.Value
	}
	return counts
}

func writeCAs(t *testing.T, path string, cas ...testCA) {
	t.Helper()
	var all []byte
	for _, ca := range cas {
		all = append(all, ca.pem()...)
	}
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOnlyTheRightClientCertificateIsAcceptedAndTheOthersAreToldApart(t *testing.T) {
	ours, theirs := newTestCA(t, "ours"), newTestCA(t, "theirs")
	file := filepath.Join(t.TempDir(), "clients.crt")
	writeCAs(t, file, ours)
	const name = "kube-apiserver"
	for _, test := range []struct {
		name        string
		certificate *tls.Certificate
		want        string
	}{
		{"the right common name", ours.client(t, name, nil), clientAccepted},
		{"the right DNS name", ours.client(t, "", func(c *x509.Certificate) { c.DNSNames = []string{"other", "kube-apiserver"} }), clientAccepted},
		{"the right URI", ours.client(t, "", func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster", Path: "/api"}} }), clientAccepted},
		{"none", nil, clientNoCertificate},
		{"another CA, the right name", theirs.client(t, name, nil), clientUntrusted},
		{"the right CA, another name", ours.client(t, "kubelet", nil), clientWrongName},
		{"the name as a part", ours.client(t, "kube-apiserver-not", nil), clientWrongName},
		{"no name at all", ours.client(t, "", nil), clientWrongName},
		{"expired", ours.client(t, name, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), clientExpired},
		{"not valid yet", ours.client(t, name, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), clientExpired},
		{"a server's", ours.client(t, name, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), clientWrongUsage},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, enforce := range []bool{true, false} {
				g := startGuarded(t, ClientAuthOptions{CAFile: file, Names: []string{name, "spiffe://cluster/api"}, Enforce: enforce})
				want := "200 served"
				if enforce && test.want != clientAccepted {
					want = "403 client certificate refused: " + test.want
				}
				if got := g.call(t, test.certificate); got != want {
					t.Errorf("enforce %t: got %q, want %q", enforce, got, want)
				}
				for result, n := range g.counts(t) {
					if want := map[bool]int64{true: 1}[result == test.want]; n != want {
						t.Errorf("enforce %t: counted %d of %s, want %d", enforce, n, result, want)
					}
				}
				if logged := strings.Contains(g.log.String(), "result="+test.want); logged != (test.want != clientAccepted) {
					t.Errorf("enforce %t: log %q", enforce, g.log)
				}
			}
		})
	}
}

func TestWithoutNamesEverybodyOfTheCAIsAccepted(t *testing.T) {
	ours := newTestCA(t, "ours")
	file := filepath.Join(t.TempDir(), "clients.crt")
	writeCAs(t, file, ours)
	g := startGuarded(t, ClientAuthOptions{CAFile: file, Enforce: true})
	if got := g.call(t, ours.client(t, "anybody", nil)); got != "200 served" {
		t.Errorf("got %q", got)
	}
}

func TestAKeptConnectionIsJudgedByTheFileAndTheTimeOfEachRequest(t *testing.T) {
	first, second := newTestCA(t, "first"), newTestCA(t, "second")
	file := filepath.Join(t.TempDir(), "clients.crt")
	writeCAs(t, file, first)
	var mu sync.Mutex
	now := time.Now()
	g := startGuarded(t, ClientAuthOptions{CAFile: file, Enforce: true, Interval: 5 * time.Millisecond, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.auth.Start(ctx) }()
	old, renewed := g.client(first.client(t, "a", nil)), g.client(second.client(t, "a", nil))
	defer old.CloseIdleConnections()
	defer renewed.CloseIdleConnections()
	eventually := func(what string, client *http.Client, want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			got := g.get(t, client)
			if got == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %q after 10s, want %q; log:\n%s", what, got, want, g.log)
			}
		}
	}
	const served, untrusted, expired = "200 served", "403 client certificate refused: untrusted", "403 client certificate refused: expired"
	if a, b := g.get(t, old), g.get(t, renewed); a != served || b != untrusted {
		t.Fatalf("before: %q, %q", a, b)
	}

	writeCAs(t, file, first, second)
	eventually("both CAs in the file", renewed, served)
	if got := g.get(t, old); got != served {
		t.Errorf("the first one: %q", got)
	}
	if err := os.WriteFile(file, []byte("-----BEGIN CERT"), 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(g.log.String(), "the last good ones stay"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("a broken file is not logged:\n%s", g.log)
		}
	}
	if a, b := g.get(t, old), g.get(t, renewed); a != served || b != served {
		t.Errorf("with a broken file: %q, %q", a, b)
	}
	writeCAs(t, file, second)
	eventually("the first CA taken away, on a kept connection", old, untrusted)
	if got := g.get(t, renewed); got != served {
		t.Errorf("the second one: %q", got)
	}

	mu.Lock()
	now = now.Add(24 * time.Hour)
	mu.Unlock()
	if got := g.get(t, renewed); got != expired {
		t.Errorf("a day later, on a kept connection: %q", got)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAClientAuthThatCouldAcceptNobodyIsAnError(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.crt")
	writeCAs(t, good, newTestCA(t, "ours"))
	if err := os.WriteFile(filepath.Join(dir, "bad.crt"), []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]ClientAuthOptions{
		"no file":       {CAFile: filepath.Join(dir, "nowhere.crt")},
		"no PEM":        {CAFile: filepath.Join(dir, "bad.crt")},
		"an empty name": {CAFile: good, Names: []string{"a", ""}},
	} {
		if _, err := NewClientAuth(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestWithoutTLSThereIsNoCertificate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clients.crt")
	writeCAs(t, file, newTestCA(t, "ours"))
	auth, err := NewClientAuth(ClientAuthOptions{CAFile: file, Enforce: true})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	auth.Check(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "http://localhost/mutate", nil))
	if w.Code != http.StatusForbidden {
		t.Errorf("got %d", w.Code)
	}
}

func TestAConnectionKeepsNoMoreThanSomeCertificates(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clients.crt")
	writeCAs(t, file, newTestCA(t, "ours"))
	auth, err := NewClientAuth(ClientAuthOptions{CAFile: file})
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	config := &tls.Config{VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { asked++; return nil }}
	auth.Ask(config)
	for name, test := range map[string]struct {
		certificates [][]byte
		refused      bool
	}{
		"none":            {nil, false},
		"as many as may":  {[][]byte{make([]byte, mostClientCertificates-1), make([]byte, 1)}, false},
		"one byte more":   {[][]byte{make([]byte, mostClientCertificates), make([]byte, 1)}, true},
		"many small ones": {slices.Repeat([][]byte{make([]byte, 100)}, 200), true},
	} {
		before := asked
		err := config.VerifyPeerCertificate(test.certificates, nil)
		if (err != nil) != test.refused || (asked == before) != test.refused {
			t.Errorf("%s: %v, and what was there before was asked %d times", name, err, asked-before)
		}
	}
}
