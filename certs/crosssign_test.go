package certs_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

func crossSign(t *testing.T, ca certs.KeyPair, other *x509.Certificate, o certs.CrossOptions) *x509.Certificate {
	t.Helper()
	if o.Now.IsZero() {
		o.Now = now
	}
	cross, err := certs.CrossSign(ca, other, o)
	if err != nil {
		t.Fatal(err)
	}
	return cross
}

func TestWithCrossSigningEitherLeafIsTrustedByEitherBundle(t *testing.T) {
	oldCA, nextCA := newCA(t, certs.CAOptions{CommonName: "old"}), newCA(t, certs.CAOptions{CommonName: "next"})
	crossOld := crossSign(t, nextCA, oldCA.Certificate, certs.CrossOptions{})
	crossNext := crossSign(t, oldCA, nextCA.Certificate, certs.CrossOptions{})
	oldLeaf, nextLeaf := newLeaf(t, oldCA, certs.LeafOptions{}), newLeaf(t, nextCA, certs.LeafOptions{})
	for _, c := range []struct {
		what   string
		leaf   certs.KeyPair
		cross  *x509.Certificate
		bundle certs.KeyPair
	}{
		{"old leaf, old bundle", oldLeaf, crossOld, oldCA},
		{"old leaf, next bundle", oldLeaf, crossOld, nextCA},
		{"next leaf, old bundle", nextLeaf, crossNext, oldCA},
		{"next leaf, next bundle", nextLeaf, crossNext, nextCA},
	} {
		if err := handshake(t, c.bundle, c.leaf, "tracehook", now, must(t)(certs.KeyPair{Certificate: c.cross}.CertificatePEM())); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		bundle := must(t)(c.bundle.CertificatePEM())
		if findings := certs.Verify([]*x509.Certificate{c.leaf.Certificate, c.cross}, certs.Trust{Bundle: bundle}, "tracehook", now); len(findings) > 0 {
			t.Errorf("%s: Verify says\n%s", c.what, lines(findings))
		}
		alone := handshake(t, c.bundle, c.leaf, "tracehook", now)
		if own := strings.Fields(c.what)[0] == strings.Fields(c.what)[2]; own != (alone == nil) {
			t.Errorf("%s, without what is sent along: %v", c.what, alone)
		}
	}
}

func TestACrossSignedCAEndsWithTheFirstOfBothAndSignsNoOtherCA(t *testing.T) {
	long, short := newCA(t, certs.CAOptions{}), newCA(t, certs.CAOptions{Lifetime: 24 * time.Hour})
	for what, cross := range map[string]*x509.Certificate{
		"signed by the shorter":     crossSign(t, short, long.Certificate, certs.CrossOptions{}),
		"for the shorter":           crossSign(t, long, short.Certificate, certs.CrossOptions{}),
		"with a lifetime too long":  crossSign(t, long, short.Certificate, certs.CrossOptions{Lifetime: 48 * time.Hour}),
		"in the second before last": crossSign(t, long, short.Certificate, certs.CrossOptions{Now: short.Certificate.NotAfter.Add(-time.Second)}),
	} {
		if !cross.NotAfter.Equal(short.Certificate.NotAfter) || !cross.IsCA || !cross.MaxPathLenZero || cross.KeyUsage != x509.KeyUsageCertSign {
			t.Errorf("%s: ends %s, CA %t, path length zero %t", what, cross.NotAfter, cross.IsCA, cross.MaxPathLenZero)
		}
	}
	if cross := crossSign(t, long, short.Certificate, certs.CrossOptions{Lifetime: time.Hour}); !cross.NotAfter.Equal(now.Truncate(time.Second).Add(time.Hour)) {
		t.Errorf("with a lifetime of an hour it ends on %s", cross.NotAfter)
	}
}

func TestWhatIsNoCANeitherSignsNorIsSigned(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	leaf := newLeaf(t, ca, certs.LeafOptions{})
	for what, err := range map[string]error{
		"signed by a leaf": second(certs.CrossSign(leaf, ca.Certificate, certs.CrossOptions{Now: now})),
		"a leaf":           second(certs.CrossSign(ca, leaf.Certificate, certs.CrossOptions{Now: now})),
		"nothing":          second(certs.CrossSign(ca, nil, certs.CrossOptions{Now: now})),
		"no time":          second(certs.CrossSign(ca, ca.Certificate, certs.CrossOptions{})),
		"after its end":    second(certs.CrossSign(ca, ca.Certificate, certs.CrossOptions{Now: ca.Certificate.NotAfter.Add(time.Hour)})),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "cross-sign CA: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second(_ *x509.Certificate, err error) error { return err }
