package migrate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

// forge makes certificates that package certs refuses to make. A nil issuer means that it signs itself.
func forge(t *testing.T, issuer *certs.KeyPair, changes ...func(*x509.Certificate)) certs.KeyPair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(400*24*time.Hour + time.Hour),
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
	must(t, err)
	made, err := x509.ParseCertificate(der)
	must(t, err)
	return certs.KeyPair{Certificate: made, Key: key}
}

func ca(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject, c.ExtKeyUsage = pkix.Name{CommonName: name}, nil
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		c.NotAfter = c.NotAfter.AddDate(1, 0, 0)
	}
}

// host is the Service of the same name in the namespace of that name.
func host(namespace string) func(*x509.Certificate) {
	name := certs.ServerName(namespace, namespace)
	return func(c *x509.Certificate) { c.Subject, c.DNSNames = pkix.Name{CommonName: name}, []string{name} }
}

func withoutSAN(c *x509.Certificate) { c.DNSNames = nil }
func withSHA1(c *x509.Certificate)   { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }

func pemOf(pairs ...certs.KeyPair) (bundle []byte) {
	for _, p := range pairs {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate.Raw})...)
	}
	return bundle
}
