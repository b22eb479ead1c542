package certs

// In: the time, names, a source of randomness. Out: a certificate with its key.
// Errors: options that no valid certificate can be made of, a CA that cannot sign now.

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

const (
	// DefaultCALifetime is how long a CA is valid from now on.
	DefaultCALifetime = 90 * 24 * time.Hour
	// DefaultLeafLifetime is how long a serving certificate is valid from now on.
	DefaultLeafLifetime = 7 * 24 * time.Hour

	// backdate is how long before now a certificate becomes valid: an API server whose
	// clock is behind must not refuse it.
	backdate = time.Hour

	// maxCommonName is the length that X.509 allows (RFC 5280, ub-common-name).
	maxCommonName = 64
)

// KeyPair is a certificate and the private key of it.
type KeyPair struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// CertificatePEM is the certificate as one CERTIFICATE block.
func (p KeyPair) CertificatePEM() ([]byte, error) {
	if p.Certificate == nil {
		return nil, errors.New("encode certificate: there is none")
	}
	out, err := cert.EncodeCertificates(p.Certificate)
	if err != nil {
		return nil, fmt.Errorf("encode certificate: %w", err)
	}
	return out, nil
}

// KeyPEM is the private key as one EC PRIVATE KEY block.
func (p KeyPair) KeyPEM() ([]byte, error) {
	out, err := keyutil.MarshalPrivateKeyToPEM(p.Key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return out, nil
}

// CAOptions says what [NewCA] makes.
type CAOptions struct {
	// Now is the time of issue; the certificate is valid from an hour before. Required.
	Now time.Time
	// Lifetime is counted from Now. Zero: DefaultCALifetime.
	Lifetime time.Duration
	// CommonName tells a person who reads a bundle which CA this is, at most 64 bytes.
	// Empty: "tracehook CA" and the time of issue, so that two in one bundle differ.
	CommonName string
	// Rand is where serial numbers come from, and keys and signatures where Go
	// lets the caller choose (from 1.26 on it does not). Nil: crypto/rand.
	Rand io.Reader
}

// NewCA makes a self-signed certificate authority with a new P-256 key.
func NewCA(o CAOptions) (KeyPair, error) {
	pair, err := newCA(o)
	if err != nil {
		return KeyPair{}, fmt.Errorf("issue CA: %w", err)
	}
	return pair, nil
}

func newCA(o CAOptions) (KeyPair, error) {
	notBefore, notAfter, err := validity(o.Now, o.Lifetime, DefaultCALifetime)
	if err != nil {
		return KeyPair{}, err
	}
	if o.CommonName == "" {
		o.CommonName = "tracehook CA " + o.Now.UTC().Format(time.RFC3339)
	}
	if len(o.CommonName) > maxCommonName {
		return KeyPair{}, fmt.Errorf("common name %q is longer than %d bytes", o.CommonName, maxCommonName)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: o.CommonName},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		// One CA may stand below it, and no more: at a rollover the old CA signs the new one's key.
		MaxPathLen: 1,
	}
	return sign(o.Rand, template, nil)
}

// LeafOptions says what [Issue] makes.
type LeafOptions struct {
	// Now is the time of issue; the certificate is valid from an hour before. Required.
	Now time.Time
	// Lifetime is counted from Now. Zero: DefaultLeafLifetime. The certificate ends no
	// later than the CA's in any case: a leaf that outlives its CA only looks healthy.
	Lifetime time.Duration
	// Names are the DNS names it serves, as [ServiceNames] gives them.
	Names []string
	// IPs are the addresses it serves, for webhooks configured by URL. Names or IPs
	// must hold something.
	IPs []net.IP
	// Rand: see CAOptions.
	Rand io.Reader
}

// Issue makes a serving certificate with a new P-256 key, signed by ca.
func Issue(ca KeyPair, o LeafOptions) (KeyPair, error) {
	pair, err := issue(ca, o)
	if err != nil {
		return KeyPair{}, fmt.Errorf("issue serving certificate: %w", err)
	}
	return pair, nil
}

func issue(ca KeyPair, o LeafOptions) (KeyPair, error) {
	if err := checkCA(ca, o.Now); err != nil {
		return KeyPair{}, err
	}
	notBefore, notAfter, err := validity(o.Now, o.Lifetime, DefaultLeafLifetime)
	if err != nil {
		return KeyPair{}, err
	}
	if notAfter.After(ca.Certificate.NotAfter) {
		notAfter = ca.Certificate.NotAfter
	}
	if len(o.Names) == 0 && len(o.IPs) == 0 {
		return KeyPair{}, errors.New("it would serve neither a name nor an address")
	}
	for _, ip := range o.IPs {
		if ip.To16() == nil {
			return KeyPair{}, fmt.Errorf("%v is no IP address", ip)
		}
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: commonName(o.Names)},
		NotBefore:   notBefore,
		NotAfter:    notAfter,
		DNSNames:    o.Names,
		IPAddresses: o.IPs,
		// An ECDSA key signs the handshake and encrypts nothing.
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	return sign(o.Rand, template, &ca)
}

// commonName picks what a person sees first in a certificate. No verifier has read it since
// Go 1.15, so it may be missing: it is the longest of the names that fits the limit.
func commonName(names []string) string {
	longest := ""
	for _, name := range names {
		if len(name) <= maxCommonName && len(name) > len(longest) {
			longest = name
		}
	}
	return longest
}

// checkCA finds out before signing what a verifier would find out afterwards.
func checkCA(ca KeyPair, now time.Time) error {
	if ca.Certificate == nil || ca.Key == nil {
		return errors.New("the CA lacks its certificate or its key")
	}
	if !ca.Certificate.IsCA || ca.Certificate.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("%q is no CA: it may not sign certificates", ca.Certificate.Subject)
	}
	public, ok := ca.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(ca.Certificate.PublicKey) {
		return fmt.Errorf("the key is not that of CA %q", ca.Certificate.Subject)
	}
	if now.Before(ca.Certificate.NotBefore) || !now.Before(ca.Certificate.NotAfter) {
		return fmt.Errorf("CA %q is valid from %s until %s, which %s is not within", ca.Certificate.Subject,
			ca.Certificate.NotBefore.UTC().Format(time.RFC3339), ca.Certificate.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// validity is the span from an hour before now until lifetime after it, in the
// whole seconds that a certificate can hold.
func validity(now time.Time, lifetime, fallback time.Duration) (notBefore, notAfter time.Time, err error) {
	if now.IsZero() {
		return time.Time{}, time.Time{}, errors.New("the time of issue is missing")
	}
	if lifetime == 0 {
		lifetime = fallback
	}
	if lifetime < time.Second {
		return time.Time{}, time.Time{}, fmt.Errorf("a lifetime of %s is too short", lifetime)
	}
	now = now.UTC().Truncate(time.Second)
	return now.Add(-backdate), now.Add(lifetime).Truncate(time.Second), nil
}

// sign completes template with key, serial number and key identifier and has ca sign
// it; a nil ca means that it signs itself.
func sign(random io.Reader, template *x509.Certificate, ca *KeyPair) (KeyPair, error) {
	if random == nil {
		random = rand.Reader
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return KeyPair{}, fmt.Errorf("generate key: %w", err)
	}
	if template.SerialNumber, err = serialNumber(random); err != nil {
		return KeyPair{}, err
	}
	if template.SubjectKeyId, err = keyID(key); err != nil {
		return KeyPair{}, err
	}
	issuer := KeyPair{Certificate: template, Key: key}
	if ca != nil {
		issuer = *ca
	}
	der, err := x509.CreateCertificate(random, template, issuer.Certificate, key.Public(), issuer.Key)
	if err != nil {
		return KeyPair{}, fmt.Errorf("sign: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return KeyPair{}, fmt.Errorf("read back what was signed: %w", err)
	}
	return KeyPair{Certificate: certificate, Key: key}, nil
}

// serialNumber draws 128 bits: no counter to keep, and no two alike.
func serialNumber(random io.Reader) (*big.Int, error) {
	var bits [16]byte
	if _, err := io.ReadFull(random, bits[:]); err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	serial := new(big.Int).SetBytes(bits[:])
	if serial.Sign() == 0 {
		return nil, errors.New("draw serial number: the source of randomness gives zeros only")
	}
	return serial, nil
}

// keyID is the key identifier of RFC 7093, method 1. With it a verifier that knows
// several CAs of one name goes to the right one first.
func keyID(key *ecdsa.PrivateKey) ([]byte, error) {
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(public)
	return sum[:20], nil
}
