package certs_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/tracehook/tracehook/certs"
)

const host = "hook.team-a.svc"

// forge makes what Issue refuses to make: a serving certificate for host, changed. A nil issuer
// means that it signs itself.
func forge(t testing.TB, issuer *certs.KeyPair, changes ...func(*x509.Certificate)) certs.KeyPair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return forgeFor(t, key, issuer, changes...)
}

func forgeFor(t testing.TB, key crypto.Signer, issuer *certs.KeyPair, changes ...func(*x509.Certificate)) certs.KeyPair {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: host},
		DNSNames:     []string{host},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(80 * 24 * time.Hour),
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

func noSAN(c *x509.Certificate)   { c.DNSNames = nil }
func sha1(c *x509.Certificate)    { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }
func expired(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }
func asCA(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject, c.DNSNames, c.ExtKeyUsage = pkix.Name{CommonName: name}, nil, nil
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		c.NotAfter = now.Add(90 * 24 * time.Hour)
	}
}
func cn(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject.CommonName = name }
}
func sans(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames = names }
}
func ips(addresses ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, a := range addresses {
			c.IPAddresses = append(c.IPAddresses, net.ParseIP(a))
		}
	}
}

func bundle(pairs ...certs.KeyPair) []byte {
	var b []byte
	for _, p := range pairs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: p.Certificate.Raw})...)
	}
	return b
}

func chain(pairs ...certs.KeyPair) []*x509.Certificate {
	var c []*x509.Certificate
	for _, p := range pairs {
		c = append(c, p.Certificate)
	}
	return c
}

// verifyCase is a certificate with all that is to be said about it, and what a call does.
type verifyCase struct {
	name     string
	chain    []*x509.Certificate
	trust    certs.Trust
	host     string // "" is host
	findings []certs.Code
	works    bool
	counters []certs.Counter
}

// verifyCases start with the table of facts, measured on kube-apiserver 1.36.3.
func verifyCases(t testing.TB) []verifyCase {
	ca := forge(t, nil, asCA("CA"))
	other := forge(t, nil, asCA("other CA"))
	trusted := certs.Trust{Bundle: bundle(ca)}
	good := forge(t, &ca)
	selfSHA1 := forge(t, nil, sha1)
	pinnedSHA1 := forge(t, &ca, sha1)
	sha1Root := forge(t, nil, asCA("SHA-1 root"), sha1)
	sha1Intermediate := forge(t, &ca, asCA("intermediate"), sha1)
	intermediate := forge(t, &ca, asCA("intermediate"))
	expiredCA := forge(t, nil, asCA("expired CA"), expired)
	shortCA := forge(t, nil, asCA("short CA"), func(c *x509.Certificate) { c.NotAfter = now.Add(40 * 24 * time.Hour) })
	noSign := forge(t, nil, asCA("CA that may not sign"), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
	weakKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weakCA := forgeFor(t, weakKey, nil, asCA("weak CA"))
	both := func(fs ...func(*x509.Certificate)) []*x509.Certificate { return chain(forge(t, &ca, fs...)) }
	insecure := certs.Trust{APIService: true, InsecureSkipVerify: true}
	missing, uncounted := []certs.Counter{certs.WebhookMissingSAN}, []certs.Counter(nil)
	insecureSHA1 := []certs.Counter{certs.WebhookInsecureSHA1}

	return []verifyCase{
		// The table of facts.
		{"SAN matches the name dialled", chain(good), trusted, "", nil, true, nil},
		{"no SAN, CN is the host", both(noSAN), trusted, "", []certs.Code{certs.MissingSAN}, false, missing},
		{"no SAN, CN is the host, untrusted CA", both(noSAN), certs.Trust{Bundle: bundle(other)}, "", []certs.Code{certs.MissingSAN, certs.Untrusted}, false, missing},
		{"no SAN, CN is not the host", both(noSAN, cn("hook")), trusted, "", []certs.Code{certs.MissingSANUncounted}, false, uncounted},
		{"no SAN, CN is the host, expired", both(noSAN, expired), trusted, "", []certs.Code{certs.Expired, certs.MissingSAN}, false, nil},
		{"wrong SAN", both(sans("hook.team-b.svc")), trusted, "", []certs.Code{certs.WrongSAN}, false, nil},
		{"IP SAN only for a DNS host", both(noSAN, ips("127.0.0.1")), trusted, "", []certs.Code{certs.SANKindMismatch}, false, nil},
		{"only the name with the cluster's domain", both(sans(host + ".cluster.local")), trusted, "", []certs.Code{certs.WrongSAN}, false, nil},
		{"SHA-1 leaf from a CA", both(sha1), trusted, "", []certs.Code{certs.InsecureSHA1}, false, insecureSHA1},
		{"SHA-1 and no SAN", both(sha1, noSAN), trusted, "", []certs.Code{certs.MissingSAN, certs.InsecureSHA1}, false, missing},
		{"SHA-1 self-signed, in the bundle", chain(selfSHA1), certs.Trust{Bundle: bundle(selfSHA1)}, "", []certs.Code{certs.InsecureSHA1, certs.LeafPinned}, true, nil},
		{"SHA-1 CA-signed leaf, pinned", chain(pinnedSHA1), certs.Trust{Bundle: bundle(pinnedSHA1)}, "", []certs.Code{certs.InsecureSHA1, certs.LeafPinned}, true, insecureSHA1},
		{"SHA-256 leaf under a SHA-1 root", chain(forge(t, &sha1Root)), certs.Trust{Bundle: bundle(sha1Root)}, "", nil, true, nil},
		{"APIService, not verified, no SAN", both(noSAN), insecure, "", []certs.Code{certs.VerificationOff, certs.MissingSAN}, true, []certs.Counter{certs.AggregatorMissingSAN}},

		// What else there is.
		{"APIService, not verified, CN is not the host", both(noSAN, cn("hook")), insecure, "", []certs.Code{certs.VerificationOff, certs.MissingSANUncounted}, true, []certs.Counter{certs.AggregatorMissingSAN}},
		{"APIService, not verified, wrong SAN, SHA-1, expired", both(sans("x"), sha1, expired), insecure, "", []certs.Code{certs.VerificationOff, certs.Expired, certs.WrongSAN, certs.InsecureSHA1}, true, []certs.Counter{certs.AggregatorInsecureSHA1}},
		{"APIService, verified, no SAN", both(noSAN), certs.Trust{Bundle: bundle(ca), APIService: true}, "", []certs.Code{certs.MissingSAN}, false, nil},
		{"no SAN, CN is a wildcard for the host", both(noSAN, cn("*.team-a.svc")), trusted, "", []certs.Code{certs.MissingSAN}, false, missing},
		{"wildcard SAN", both(sans("*.team-a.svc")), trusted, "", nil, true, nil},
		{"address dialled, names only", chain(good), trusted, "127.0.0.1", []certs.Code{certs.SANKindMismatch}, false, nil},
		{"address dialled, another address", both(ips("127.0.0.2")), trusted, "127.0.0.1", []certs.Code{certs.WrongSAN}, false, nil},
		{"address dialled, the address", both(ips("::1")), trusted, "::1", nil, true, nil},
		{"SHA-1 intermediate", chain(forge(t, &sha1Intermediate), sha1Intermediate), trusted, "", []certs.Code{certs.InsecureSHA1}, false, insecureSHA1},
		{"SHA-1 leaf, unknown CA", both(sha1), certs.Trust{Bundle: bundle(other)}, "", []certs.Code{certs.InsecureSHA1, certs.Untrusted}, false, nil},
		{"SHA-1 certificate served and not needed", chain(good, forge(t, &other, asCA("x"), sha1)), trusted, "", []certs.Code{certs.InsecureSHA1}, true, insecureSHA1},
		{"through an intermediate", chain(forge(t, &intermediate), intermediate), trusted, "", nil, true, nil},
		{"intermediate not served", chain(forge(t, &intermediate)), trusted, "", []certs.Code{certs.Untrusted}, false, nil},
		{"expired", both(expired), trusted, "", []certs.Code{certs.Expired}, false, nil},
		{"everything at once", both(expired, sha1, sans("x"), func(c *x509.Certificate) { c.ExtKeyUsage = nil; c.KeyUsage = x509.KeyUsageKeyEncipherment }), trusted, "",
			[]certs.Code{certs.Expired, certs.WrongSAN, certs.InsecureSHA1, certs.KeyUsage}, false, nil},
		{"not yet valid", both(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }), trusted, "", []certs.Code{certs.NotYetValid}, false, nil},
		{"a fifth of its life left", both(func(c *x509.Certificate) { c.NotAfter = now.Add(14 * time.Minute) }), trusted, "", []certs.Code{certs.ExpiresSoon}, true, nil},
		{"a month left of ten years", both(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = now.AddDate(-10, 0, 0), now.Add(29*24*time.Hour)
		}), trusted, "", []certs.Code{certs.ExpiresSoon}, true, nil},
		{"CA that ends before its leaf", chain(forge(t, &shortCA)), certs.Trust{Bundle: bundle(shortCA)}, "", []certs.Code{certs.IssuerOutlived}, true, nil},
		{"CA that has ended", chain(forge(t, &expiredCA)), certs.Trust{Bundle: bundle(expiredCA)}, "", []certs.Code{certs.BundleExpired, certs.IssuerExpired}, false, nil},
		{"an old CA beside the one that counts", chain(good), certs.Trust{Bundle: bundle(expiredCA, ca)}, "", []certs.Code{certs.BundleExpired}, true, nil},
		{"CA that may not sign", chain(forge(t, &noSign)), certs.Trust{Bundle: bundle(noSign)}, "", []certs.Code{certs.Untrusted}, false, nil},
		{"another CA of the same name", chain(good), certs.Trust{Bundle: bundle(forge(t, nil, asCA("CA")))}, "", []certs.Code{certs.Untrusted}, false, nil},
		{"empty bundle, unknown to the system", chain(good), certs.Trust{}, "", []certs.Code{certs.BundleEmpty, certs.Untrusted}, false, nil},
		{"empty bundle, known to the system", chain(good), certs.Trust{SystemRoots: systemRoots(ca)}, "", []certs.Code{certs.BundleEmpty}, true, nil},
		{"a bundle replaces the system's roots", chain(good), certs.Trust{Bundle: bundle(other), SystemRoots: systemRoots(ca)}, "", []certs.Code{certs.Untrusted}, false, nil},
		{"bundle that is not PEM", both(noSAN), certs.Trust{Bundle: []byte("not PEM")}, "", []certs.Code{certs.BundleNotPEM, certs.MissingSAN, certs.Untrusted}, false, nil},
		{"bundle that is in base64 twice", chain(good), certs.Trust{Bundle: []byte("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t")}, "", []certs.Code{certs.BundleNotPEM, certs.Untrusted}, false, nil},
		{"bundle with more than certificates", chain(good), certs.Trust{Bundle: append([]byte("-----BEGIN X-----\n-----END X-----\n"), bundle(ca)...)}, "", []certs.Code{certs.BundleUnreadable}, true, nil},
		{"bundle that ends in the middle", chain(good), certs.Trust{Bundle: append(bundle(ca), bundle(other)[:99]...)}, "", []certs.Code{certs.BundleUnreadable}, true, nil},
		{"clientAuth only", both(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), trusted, "", []certs.Code{certs.ExtendedKeyUsage}, false, nil},
		{"no extended key usage", both(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), trusted, "", nil, true, nil},
		{"key usage without signatures", both(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), trusted, "", []certs.Code{certs.KeyUsage}, true, nil},
		{"weak key", chain(forgeFor(t, weakKey, &ca)), trusted, "", []certs.Code{certs.WeakKey}, true, nil},
		{"weak key of the CA", chain(forge(t, &weakCA)), certs.Trust{Bundle: bundle(weakCA)}, "", []certs.Code{certs.WeakKey}, true, nil},
		{"a key that TLS refuses", withKey(good, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 511), E: 65537}), trusted, "", []certs.Code{certs.UnusableKey}, false, nil},
		{"an extension that nobody knows", both(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), trusted, "", []certs.Code{certs.CriticalExtension}, false, nil},
		{"nothing served", nil, trusted, "", []certs.Code{certs.NoCertificate}, false, nil},
	}
}

func systemRoots(pairs ...certs.KeyPair) *x509.CertPool {
	roots := x509.NewCertPool()
	for _, p := range pairs {
		roots.AddCert(p.Certificate)
	}
	return roots
}

// withKey is the certificate as if it were for that key. (Go does not sign for a key so short.)
func withKey(p certs.KeyPair, key crypto.PublicKey) []*x509.Certificate {
	c := *p.Certificate
	c.PublicKey = key
	return []*x509.Certificate{&c}
}

func TestVerifySaysAllThereIsToSayAndWhatACallDoes(t *testing.T) {
	for _, c := range verifyCases(t) {
		t.Run(c.name, func(t *testing.T) {
			name := c.host
			if name == "" {
				name = host
			}
			findings := certs.Verify(c.chain, c.trust, name, now)
			var codes []certs.Code
			for _, f := range findings {
				codes = append(codes, f.Code)
				if f.Message == "" || f.Means == "" || f.Remedy == "" || f.Severity == certs.Healthy {
					t.Errorf("a finding leaves something open: %+v", f)
				}
				if f.Breaks && f.Severity != certs.Error {
					t.Errorf("%s breaks calls and is only %s", f.Code, f.Severity)
				}
			}
			if !slices.Equal(codes, c.findings) {
				t.Errorf("findings %v, want %v\n%s", codes, c.findings, lines(findings))
			}
			got := certs.Predict(findings)
			if got.Works != c.works || !slices.Equal(got.Counters, c.counters) {
				t.Errorf("a call works: %t, moves %v; want %t, %v\n%s", got.Works, got.Counters, c.works, c.counters, lines(findings))
			}
			agree(t, c.chain, c.trust, name, now)
		})
	}
}

func TestWhatComesFirstMasksTheRestInWhicheverOrderItIsSaid(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	findings := certs.Verify(chain(forge(t, &ca, noSAN, sha1, expired)), certs.Trust{Bundle: bundle(ca)}, host, now)
	for range len(findings) {
		findings = append(findings[1:], findings[0])
		if got := certs.Predict(findings); got.Works || got.Cause != certs.Expired || got.Counters != nil {
			t.Errorf("%+v, want it to fail for expired and count nothing", got)
		}
	}
}

func TestACallIsGoodUntilTheFirstOfItsChainEnds(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	short := forge(t, nil, asCA("short"), func(c *x509.Certificate) { c.NotAfter = now.Add(time.Hour) })
	other := forge(t, nil, asCA("other"))
	leaf, outlives := forge(t, &ca), forge(t, &short)
	for _, c := range []struct {
		what  string
		chain []*x509.Certificate
		trust certs.Trust
		want  time.Time
	}{
		{"the leaf ends first", chain(leaf), certs.Trust{Bundle: bundle(ca)}, leaf.Certificate.NotAfter},
		{"the CA ends first", chain(outlives), certs.Trust{Bundle: bundle(short)}, short.Certificate.NotAfter},
		{"nobody trusts it", chain(leaf), certs.Trust{Bundle: bundle(other)}, leaf.Certificate.NotAfter},
		{"not verified", chain(outlives), certs.Trust{InsecureSkipVerify: true}, outlives.Certificate.NotAfter},
		{"nothing", nil, certs.Trust{}, time.Time{}},
	} {
		if got := certs.ValidUntil(c.chain, c.trust); !got.Equal(c.want) {
			t.Errorf("%s: valid until %s, want %s", c.what, got, c.want)
		}
	}
}

func TestACertificateCannotWriteOnTheTerminal(t *testing.T) {
	ca := forge(t, nil, asCA("CA \x1b[31mred"))
	leaf := forge(t, &ca, cn("\x1b]0;owned\a"), sans("\x1b[2J"))
	if said := lines(certs.Verify(chain(leaf), certs.Trust{Bundle: []byte("-----BEGIN \x1b[31m-----\n-----END \x1b[31m-----\n")}, host, now)); strings.ContainsAny(said, "\x1b\a") {
		t.Errorf("control characters in %q", said)
	}
}

func TestSeveritiesAreWords(t *testing.T) {
	for _, s := range []certs.Severity{certs.Info, certs.Warning, certs.Error} {
		if got, err := certs.ParseSeverity(s.String()); err != nil || got != s {
			t.Errorf("%s reads back as %s, %v", s, got, err)
		}
	}
	for _, word := range []string{"", "healthy", "fatal", "Error"} {
		if got, err := certs.ParseSeverity(word); err == nil {
			t.Errorf("%q reads as %s", word, got)
		}
	}
}

func lines(findings []certs.Finding) string {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "  %s %s (breaks: %t, counter: %s): %s\n", f.Severity, f.Code, f.Breaks, f.Counter, f.Message)
	}
	return b.String()
}

// agree asks Go's verifier what it makes of the chain, and the rule of the API server's counters what it
// makes of Go's answer, and compares both with what Verify predicts.
func agree(t *testing.T, served []*x509.Certificate, trust certs.Trust, name string, at time.Time) {
	t.Helper()
	if len(served) == 0 || trust.InsecureSkipVerify || at.IsZero() {
		return
	}
	findings := certs.Verify(served, trust, name, at)
	got := certs.Predict(findings)

	roots, intermediates := trust.SystemRoots, x509.NewCertPool()
	if roots == nil {
		roots = x509.NewCertPool()
	}
	usable := true
	if len(trust.Bundle) > 0 {
		roots = x509.NewCertPool()
		usable = roots.AppendCertsFromPEM(trust.Bundle)
	}
	for _, c := range served[1:] {
		intermediates.AddCert(c)
	}
	_, err := served[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: intermediates, CurrentTime: at})
	if got.Cause == certs.UnusableKey { // TLS's affair
		return
	}
	if got.Works != (err == nil && usable) {
		t.Fatalf("Verify says that a call works: %t; Go's verifier says %v\n%s", got.Works, err, lines(findings))
	}

	var hostname x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var want []certs.Counter
	switch {
	case !usable:
	case errors.As(err, &hostname) && strings.Contains(err.Error(), "x509: certificate relies on legacy Common Name field"):
		want = []certs.Counter{certs.WebhookMissingSAN}
	case errors.As(err, &unknown) && strings.Contains(err.Error(), "insecure algorithm") && strings.Contains(err.Error(), "SHA1"):
		want = []certs.Counter{certs.WebhookInsecureSHA1}
	case err == nil:
		for _, c := range served {
			if (c.SignatureAlgorithm == x509.SHA1WithRSA || c.SignatureAlgorithm == x509.ECDSAWithSHA1) && c.Issuer.String() != c.Subject.String() {
				want = []certs.Counter{certs.WebhookInsecureSHA1}
			}
		}
	}
	if trust.APIService && err != nil { // unavailable, so nobody calls
		want = nil
	}
	if trust.APIService {
		for i, c := range want {
			want[i] = map[certs.Counter]certs.Counter{certs.WebhookMissingSAN: certs.AggregatorMissingSAN, certs.WebhookInsecureSHA1: certs.AggregatorInsecureSHA1}[c]
		}
	}
	if !slices.Equal(got.Counters, want) {
		t.Fatalf("Verify says that a call moves %v; by the API server's rule it is %v, for %v\n%s", got.Counters, want, err, lines(findings))
	}
}

// What an API server reads from a bundle is what ParseBundle reads.
func FuzzABundleIsReadAsTheAPIServerReadsIt(f *testing.F) {
	for _, c := range verifyCases(f) {
		f.Add(c.trust.Bundle)
	}
	f.Fuzz(func(t *testing.T, bundle []byte) {
		want, got := x509.NewCertPool(), x509.NewCertPool()
		ok := want.AppendCertsFromPEM(bundle)
		read, ignored := certs.ParseBundle(bundle)
		for _, c := range read {
			got.AddCert(c)
		}
		if ok != (len(read) > 0) || !got.Equal(want) {
			t.Errorf("ParseBundle reads %d certificates, and Go others", len(read))
		}
		if !ok && len(ignored) == 0 && strings.TrimSpace(string(bundle)) != "" {
			t.Error("nothing read, and nothing said")
		}
	})
}

// Whatever is served and trusted, at whatever time and by whatever name.
func FuzzVerifyAgreesWithGo(f *testing.F) {
	var parts []*x509.Certificate
	for i, c := range verifyCases(f) {
		trusted, _ := certs.ParseBundle(c.trust.Bundle)
		for _, part := range slices.Concat(c.chain, trusted) {
			if !slices.ContainsFunc(parts, part.Equal) && len(part.Raw) > 0 {
				parts = append(parts, part)
			}
		}
		served := []byte{}
		for _, part := range c.chain {
			served = append(served, byte(slices.IndexFunc(parts, part.Equal)))
		}
		picked := []byte{}
		for _, part := range trusted {
			picked = append(picked, byte(slices.IndexFunc(parts, part.Equal)))
		}
		f.Add(served, picked, []byte{}, []byte{}, host, int64(i), c.trust.APIService)
	}
	pick := func(choice []byte) []*x509.Certificate {
		var picked []*x509.Certificate
		for _, i := range choice[:min(len(choice), 6)] {
			picked = append(picked, parts[int(i)%len(parts)])
		}
		return picked
	}
	f.Fuzz(func(t *testing.T, serve, trust, der, raw []byte, name string, minutes int64, apiService bool) {
		served := pick(serve)
		if c, err := x509.ParseCertificate(der); err == nil {
			served = append([]*x509.Certificate{c}, served...)
		}
		var trusted []byte
		for _, c := range pick(trust) {
			trusted = append(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		at := now.Add(time.Duration(minutes%(200*24*60)) * time.Minute)
		with := certs.Trust{Bundle: append(trusted, raw...), APIService: apiService}
		agree(t, served, with, name, at)
		with.InsecureSkipVerify = true
		if got := certs.Predict(certs.Verify(served, with, name, at)); !got.Works && got.Cause != certs.UnusableKey && got.Cause != certs.NoCertificate {
			t.Errorf("with verification off the call fails for %s", got.Cause)
		}
		certs.ValidUntil(served, with)
	})
}
