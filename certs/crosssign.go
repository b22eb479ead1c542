package certs

// Cross-signing. In: a CA with its key, another CA's certificate, the time. Out: a certificate by which those who
// trust the first trust what the other signs. Errors: a CA that cannot sign now.
//
// While the keys of the old and the next CA are both held, each signs the other's key. The leaf of one CA goes along
// with the certificate by which the other vouches for it, and whoever trusts either of them accepts either leaf, in
// whatever order bundles and leaves arrive:
//
//	next leaf ← next CA's key, signed by the old CA   ← trusts the old CA alone
//	old leaf  ← old CA's key, signed by the next CA   ← trusts the next CA alone
//
// The second of these keeps the old CA trusted by those who have dropped it, for as long as it is valid: anybody who
// has the old key could use it. So it lives for a day, and is not made at all for a CA that somebody asked to drop.

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"
)

// crossLifetime is how long the next CA vouches for the old one: longer than a replacement takes when nothing
// holds it up, and the two bundles do when something does.
const crossLifetime = 24 * time.Hour

// CrossOptions say what CrossSign makes.
type CrossOptions struct {
	// Now is the time of issue; the certificate is valid from an hour before. Required.
	Now time.Time
	// Lifetime is counted from Now. Zero: until the first of both CAs ends, and no longer than that in any case.
	Lifetime time.Duration
	// Rand: see CAOptions.
	Rand io.Reader
}

// CrossSign makes a certificate for other's key and name, signed by ca. It may stand above leaves only.
func CrossSign(ca KeyPair, other *x509.Certificate, o CrossOptions) (*x509.Certificate, error) {
	cross, err := crossSign(ca, other, o)
	if err != nil {
		return nil, fmt.Errorf("cross-sign CA: %w", err)
	}
	return cross, nil
}

func crossSign(ca KeyPair, other *x509.Certificate, o CrossOptions) (*x509.Certificate, error) {
	if err := checkCA(ca, o.Now); err != nil {
		return nil, err
	}
	if other == nil || !other.IsCA {
		return nil, errors.New("the other certificate is no CA's")
	}
	ends := ca.Certificate.NotAfter
	if other.NotAfter.Before(ends) {
		ends = other.NotAfter
	}
	notBefore, notAfter, err := validity(o.Now, o.Lifetime, ends.Sub(o.Now.Truncate(time.Second)))
	if err != nil {
		return nil, err
	}
	if notAfter.After(ends) {
		notAfter = ends
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	serial, err := serialNumber(o.Rand)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(o.Rand, &x509.Certificate{
		SerialNumber:          serial,
		RawSubject:            other.RawSubject,
		SubjectKeyId:          other.SubjectKeyId,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, ca.Certificate, other.PublicKey, ca.Key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	cross, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back what was signed: %w", err)
	}
	return cross, nil
}
