package certs_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

var now = time.Date(2026, 11, 22, 10, 30, 0, 123456789, time.UTC)

func newCA(t *testing.T, o certs.CAOptions) certs.KeyPair {
	t.Helper()
	if o.Now.IsZero() {
		o.Now = now
	}
	ca, err := certs.NewCA(o)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newLeaf(t *testing.T, ca certs.KeyPair, o certs.LeafOptions) certs.KeyPair {
	t.Helper()
	if o.Now.IsZero() {
		o.Now = now
	}
	if o.Names == nil && o.IPs == nil {
		names, err := certs.ServiceNames("tracehook-system", "tracehook", "")
		if err != nil {
			t.Fatal(err)
		}
		o.Names = names
	}
	leaf, err := certs.Issue(ca, o)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// hostCertificate is just enough of a certificate to ask Go's verifier about host names.
func hostCertificate(names ...string) *x509.Certificate {
	return &x509.Certificate{DNSNames: names}
}

// handshake is a real TLS handshake: the server has what would be in tls.crt and tls.key
// (more, if intermediates are given), the client trusts what would be in caBundle.
func handshake(t *testing.T, ca, leaf certs.KeyPair, serverName string, at time.Time, intermediates ...[]byte) error {
	t.Helper()
	chain := must(t)(leaf.CertificatePEM())
	serving, err := tls.X509KeyPair(append(chain, bytes.Join(intermediates, nil)...), must(t)(leaf.KeyPEM()))
	if err != nil {
		t.Fatalf("load what was issued: %v", err)
	}
	bundle := x509.NewCertPool()
	if !bundle.AppendCertsFromPEM(must(t)(ca.CertificatePEM())) {
		t.Fatal("the CA's PEM holds no certificate")
	}

	// A loopback connection and not net.Pipe: a server that is still sending while the client
	// refuses its certificate would block for ever on an unbuffered pipe.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	serverDone := make(chan error, 1)
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			serverDone <- err
			return
		}
		defer connection.Close()
		serverDone <- tls.Server(connection, &tls.Config{Certificates: []tls.Certificate{serving}}).Handshake()
	}()
	connection, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	clientErr := tls.Client(connection, &tls.Config{
		RootCAs:    bundle,
		ServerName: serverName,
		Time:       func() time.Time { return at },
	}).Handshake()
	connection.Close()
	serverErr := <-serverDone
	if clientErr == nil && serverErr != nil {
		t.Fatalf("the client is content and the server is not: %v", serverErr)
	}
	return clientErr
}

func must(t *testing.T) func([]byte, error) []byte {
	return func(out []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

func TestAHandshakeSucceedsUnderEveryNameOfTheServiceAndNoOther(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	leaf := newLeaf(t, ca, certs.LeafOptions{})
	for _, name := range []string{
		"tracehook",
		"tracehook.tracehook-system",
		"tracehook.tracehook-system.svc",
		"tracehook.tracehook-system.svc.cluster.local",
	} {
		if err := handshake(t, ca, leaf, name, now); err != nil {
			t.Errorf("as %s: %v", name, err)
		}
	}
	for _, name := range []string{"localhost", "tracehook.default.svc", "tracehook.tracehook-system.svc.cluster", "127.0.0.1"} {
		err := handshake(t, ca, leaf, name, now)
		var hostname x509.HostnameError
		if !errors.As(err, &hostname) {
			t.Errorf("as %s: error %v, want a HostnameError", name, err)
		}
	}
}

func TestAHandshakeByAddressNeedsTheAddress(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	leaf := newLeaf(t, ca, certs.LeafOptions{IPs: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP("fd00::1")}})
	for _, address := range []string{"127.0.0.1", "fd00::1"} {
		if err := handshake(t, ca, leaf, address, now); err != nil {
			t.Errorf("as %s: %v", address, err)
		}
	}
	if err := handshake(t, ca, leaf, "127.0.0.2", now); err == nil {
		t.Error("as 127.0.0.2: no error, though the certificate names other addresses only")
	}
}

func TestAnotherCAOfTheSameNameIsNotTrusted(t *testing.T) {
	ca := newCA(t, certs.CAOptions{CommonName: "the CA"})
	other := newCA(t, certs.CAOptions{CommonName: "the CA"})
	leaf := newLeaf(t, ca, certs.LeafOptions{})
	err := handshake(t, other, leaf, "tracehook", now)
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		t.Errorf("error %v, want an UnknownAuthorityError", err)
	}
}

func TestACertificateIsValidFromAnHourBeforeItsIssueUntilItsLastSecond(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	leaf := newLeaf(t, ca, certs.LeafOptions{})
	issued := now.Truncate(time.Second)
	for _, c := range []struct {
		what                string
		pair                certs.KeyPair
		notBefore, notAfter time.Time
	}{
		{"CA", ca, issued.Add(-time.Hour), issued.Add(90 * 24 * time.Hour)},
		{"leaf", leaf, issued.Add(-time.Hour), issued.Add(7 * 24 * time.Hour)},
	} {
		if !c.pair.Certificate.NotBefore.Equal(c.notBefore) || !c.pair.Certificate.NotAfter.Equal(c.notAfter) {
			t.Errorf("%s is valid %s – %s, want %s – %s", c.what,
				c.pair.Certificate.NotBefore, c.pair.Certificate.NotAfter, c.notBefore, c.notAfter)
		}
	}
	for _, c := range []struct {
		at    time.Time
		valid bool
	}{
		{issued.Add(-time.Hour - time.Second), false},
		{issued.Add(-time.Hour), true},
		{issued.Add(7 * 24 * time.Hour), true},
		{issued.Add(7*24*time.Hour + time.Second), false},
	} {
		err := handshake(t, ca, leaf, "tracehook", c.at)
		var invalid x509.CertificateInvalidError
		switch {
		case c.valid && err != nil:
			t.Errorf("at %s: %v, want no error", c.at, err)
		case !c.valid && (!errors.As(err, &invalid) || invalid.Reason != x509.Expired):
			t.Errorf("at %s: error %v, want one of validity", c.at, err)
		}
	}
}

func TestALeafNeverOutlivesItsCA(t *testing.T) {
	ca := newCA(t, certs.CAOptions{Lifetime: 48 * time.Hour})
	leaf := newLeaf(t, ca, certs.LeafOptions{Now: now.Add(24 * time.Hour)})
	if !leaf.Certificate.NotAfter.Equal(ca.Certificate.NotAfter) {
		t.Errorf("leaf ends at %s, its CA at %s, want the same", leaf.Certificate.NotAfter, ca.Certificate.NotAfter)
	}
	lastSecond := ca.Certificate.NotAfter.Add(-time.Second)
	if leaf := newLeaf(t, ca, certs.LeafOptions{Now: lastSecond}); leaf.Certificate.NotAfter.After(ca.Certificate.NotAfter) {
		t.Errorf("a leaf of the CA's last second ends at %s, after the CA's %s", leaf.Certificate.NotAfter, ca.Certificate.NotAfter)
	}
}

func TestACASignsOnlyWhileItIsValid(t *testing.T) {
	ca := newCA(t, certs.CAOptions{Lifetime: time.Hour})
	for _, at := range []time.Time{now.Add(-2 * time.Hour), ca.Certificate.NotAfter, now.Add(24 * time.Hour)} {
		_, err := certs.Issue(ca, certs.LeafOptions{Now: at, Names: []string{"a"}})
		if err == nil || !strings.Contains(err.Error(), "is valid from") {
			t.Errorf("at %s: error %v, want one that says from when until when the CA is valid", at, err)
		}
	}
}

func TestACertificateSaysWhatItsKeyIsFor(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	leaf := newLeaf(t, ca, certs.LeafOptions{})

	if c := ca.Certificate; !c.IsCA || c.KeyUsage != x509.KeyUsageCertSign || len(c.ExtKeyUsage) != 0 || c.MaxPathLen != 1 {
		t.Errorf("CA: IsCA %t, key usage %b, extended %v, path length %d", c.IsCA, c.KeyUsage, c.ExtKeyUsage, c.MaxPathLen)
	}
	if c := leaf.Certificate; c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != x509.KeyUsageDigitalSignature ||
		!slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
		t.Errorf("leaf: IsCA %t, key usage %b, extended %v", c.IsCA, c.KeyUsage, c.ExtKeyUsage)
	}
	for what, pair := range map[string]certs.KeyPair{"CA": ca, "leaf": leaf} {
		c := pair.Certificate
		if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
			t.Errorf("%s: key %T, want P-256", what, c.PublicKey)
		}
		if c.SignatureAlgorithm != x509.ECDSAWithSHA256 {
			t.Errorf("%s: signed with %s, want ECDSA-SHA256", what, c.SignatureAlgorithm)
		}
		if len(c.SubjectKeyId) == 0 {
			t.Errorf("%s: no subject key identifier", what)
		}
		if c.PermittedDNSDomainsCritical || len(c.PermittedDNSDomains) > 0 {
			t.Errorf("%s: name constraints %v", what, c.PermittedDNSDomains)
		}
	}
	if !bytes.Equal(leaf.Certificate.AuthorityKeyId, ca.Certificate.SubjectKeyId) {
		t.Errorf("leaf names CA key %x, want %x", leaf.Certificate.AuthorityKeyId, ca.Certificate.SubjectKeyId)
	}
	if bytes.Equal(leaf.Certificate.SubjectKeyId, ca.Certificate.SubjectKeyId) {
		t.Error("leaf and CA have the same key identifier")
	}
}

func TestTheCommonNameIsShortOrMissing(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	label := strings.Repeat("a", 63)
	names, err := certs.ServiceNames(label, label, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		names []string
		want  string
	}{
		{names, label},
		{names[1:], ""},
		{[]string{"b", "b.a", "b.a.svc"}, "b.a.svc"},
	} {
		leaf := newLeaf(t, ca, certs.LeafOptions{Names: c.names})
		if got := leaf.Certificate.Subject.CommonName; got != c.want {
			t.Errorf("names %q: common name %q, want %q", c.names, got, c.want)
		}
		if err := handshake(t, ca, leaf, c.names[len(c.names)-1], now); err != nil {
			t.Errorf("common name %q: %v", c.want, err)
		}
	}
}

// The order of a rollover stops mattering when the old CA signs the new one's key, so
// a CA made today must leave room for that.
func TestTheOldCACanVouchForTheNewOne(t *testing.T) {
	oldCA, nextCA := newCA(t, certs.CAOptions{}), newCA(t, certs.CAOptions{})
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               nextCA.Certificate.Subject,
		SubjectKeyId:          nextCA.Certificate.SubjectKeyId,
		NotBefore:             nextCA.Certificate.NotBefore,
		NotAfter:              nextCA.Certificate.NotAfter,
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, oldCA.Certificate, nextCA.Certificate.PublicKey, oldCA.Key)
	if err != nil {
		t.Fatal(err)
	}
	cross, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	crossPEM := must(t)(certs.KeyPair{Certificate: cross}.CertificatePEM())

	leaf := newLeaf(t, nextCA, certs.LeafOptions{})
	if err := handshake(t, oldCA, leaf, "tracehook", now, crossPEM); err != nil {
		t.Errorf("an API server that trusts the old CA only: %v", err)
	}
	if err := handshake(t, nextCA, leaf, "tracehook", now, crossPEM); err != nil {
		t.Errorf("an API server that trusts the new CA only: %v", err)
	}
	if err := handshake(t, oldCA, leaf, "tracehook", now); err == nil {
		t.Error("the old CA alone, without the cross-signed certificate: no error")
	}
}

func TestSerialNumbersAre128RandomBits(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	bits := bytes.Repeat([]byte{0xfe}, 16)
	leaf := newLeaf(t, ca, certs.LeafOptions{Rand: bytes.NewReader(bits)})
	if want := new(big.Int).SetBytes(bits); leaf.Certificate.SerialNumber.Cmp(want) != 0 {
		t.Errorf("serial number %x, want the bits that were passed in, %x", leaf.Certificate.SerialNumber, want)
	}

	seen := map[string]bool{}
	for range 50 {
		serial := newLeaf(t, ca, certs.LeafOptions{}).Certificate.SerialNumber
		if seen[serial.String()] {
			t.Fatalf("serial number %x was given twice", serial)
		}
		seen[serial.String()] = true
		if serial.Sign() <= 0 || serial.BitLen() > 128 {
			t.Fatalf("serial number %x is not a positive number of at most 128 bits", serial)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestOptionsThatNoValidCertificateCanBeMadeOfAreRefused(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	leaf := newLeaf(t, ca, certs.LeafOptions{})
	other := newCA(t, certs.CAOptions{})
	named := certs.LeafOptions{Now: now, Names: []string{"a"}}

	for _, c := range []struct {
		what   string
		issue  func() (certs.KeyPair, error)
		reason string
	}{
		{"a CA without a time", func() (certs.KeyPair, error) { return certs.NewCA(certs.CAOptions{}) }, "issue CA: the time of issue is missing"},
		{"a CA that ended before it began", func() (certs.KeyPair, error) {
			return certs.NewCA(certs.CAOptions{Now: now, Lifetime: -time.Hour})
		}, "too short"},
		{"a CA with a long name", func() (certs.KeyPair, error) {
			return certs.NewCA(certs.CAOptions{Now: now, CommonName: strings.Repeat("a", 65)})
		}, "longer than 64"},
		{"a CA without randomness", func() (certs.KeyPair, error) {
			return certs.NewCA(certs.CAOptions{Now: now, Rand: bytes.NewReader(nil)})
		}, "draw serial number: EOF"},
		{"a CA from a broken source of randomness", func() (certs.KeyPair, error) {
			return certs.NewCA(certs.CAOptions{Now: now, Rand: zeros{}})
		}, "zeros only"},
		{"a leaf without a time", func() (certs.KeyPair, error) {
			return certs.Issue(ca, certs.LeafOptions{Names: []string{"a"}})
		}, "issue serving certificate: "},
		{"a leaf without a name", func() (certs.KeyPair, error) { return certs.Issue(ca, certs.LeafOptions{Now: now}) }, "neither a name nor an address"},
		{"a leaf with half an address", func() (certs.KeyPair, error) {
			return certs.Issue(ca, certs.LeafOptions{Now: now, IPs: []net.IP{{127, 0}}})
		}, "no IP address"},
		{"a leaf with a name of no letters", func() (certs.KeyPair, error) {
			return certs.Issue(ca, certs.LeafOptions{Now: now, Names: []string{"é"}})
		}, "sign: "},
		{"a leaf that ended before it began", func() (certs.KeyPair, error) {
			return certs.Issue(ca, certs.LeafOptions{Now: now, Names: []string{"a"}, Lifetime: time.Nanosecond})
		}, "too short"},
		{"a leaf signed by nothing", func() (certs.KeyPair, error) { return certs.Issue(certs.KeyPair{}, named) }, "lacks its certificate or its key"},
		{"a leaf signed by a leaf", func() (certs.KeyPair, error) { return certs.Issue(leaf, named) }, "is no CA"},
		{"a leaf signed with another CA's key", func() (certs.KeyPair, error) {
			return certs.Issue(certs.KeyPair{Certificate: ca.Certificate, Key: other.Key}, named)
		}, "the key is not that of CA"},
	} {
		pair, err := c.issue()
		if err == nil || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: error %v, want one that says %q", c.what, err, c.reason)
		}
		if pair.Certificate != nil || pair.Key != nil {
			t.Errorf("%s: a key pair beside error %v", c.what, err)
		}
	}
}

func TestAPairWithoutContentsDoesNotEncode(t *testing.T) {
	if out, err := (certs.KeyPair{}).KeyPEM(); err == nil {
		t.Errorf("no key encodes as %q", out)
	}
	if out, err := (certs.KeyPair{}).CertificatePEM(); err == nil {
		t.Errorf("no certificate encodes as %q", out)
	}
}

// ExampleIssue makes what the server needs and what the API server needs.
func ExampleIssue() {
	now := time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)
	ca, err := certs.NewCA(certs.CAOptions{Now: now})
	if err != nil {
		fmt.Println(err)
		return
	}
	names, err := certs.ServiceNames("tracehook-system", "tracehook", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: now, Names: names})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(leaf.Certificate.NotAfter.Format(time.DateOnly), leaf.Certificate.DNSNames[2])
	// Output: 2026-11-29 tracehook.tracehook-system.svc
}
