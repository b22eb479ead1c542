package cluster

// Certificates of the control plane itself (the webhook's come from `tracehook certs`).
// In: who is to be identified. Out: PEM. Errors: of crypto/x509, in practice none.

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"time"

	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// certificateLife outlasts a demo that somebody leaves running over a holiday.
const certificateLife = 30 * 24 * time.Hour

// authority is the cluster's one CA: for what the API server shows and for who may talk
// to it. Its key stays in memory.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte // cert
}

// pair is a certificate and its key, both PEM.
type pair struct{ cert, key []byte }

func newAuthority(now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate CA key: %w", err)
	}
	cert, err := certutil.NewSelfSignedCACert(certutil.Config{CommonName: "tracehook e2e", NotBefore: now.Add(-time.Hour)}, key)
	if err != nil {
		return nil, fmt.Errorf("issue CA certificate: %w", err)
	}
	bundle, err := certutil.EncodeCertificates(cert)
	if err != nil {
		return nil, fmt.Errorf("encode CA certificate: %w", err)
	}
	return &authority{cert: cert, key: key, pem: bundle}, nil
}

// server issues what every API server of the cluster shows: all of them are on
// one host, and from inside a cluster they are called kubernetes.default.svc.
func (a *authority) server(now time.Time, host string) (pair, error) {
	template := serverTemplate("kube-apiserver", "localhost", "kubernetes.default.svc")
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(host), net.IPv4(10, 96, 0, 1)}
	return a.issue(template, now)
}

// serverTemplate is for issue: a server with these DNS names, the first of which is its
// common name too.
func serverTemplate(names ...string) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    names,
	}
}

// client issues what makes the bearer the user of that name: the API server reads the
// user from the common name and its groups from the organisations.
func (a *authority) client(user string, groups []string, now time.Time) (pair, error) {
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, now)
}

func (a *authority) issue(template *x509.Certificate, now time.Time) (pair, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return pair{}, fmt.Errorf("pick serial number: %w", err)
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(certificateLife)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	keyPEM, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return pair{}, fmt.Errorf("generate key of %s: %w", template.Subject, err)
	}
	parsed, err := keyutil.ParsePrivateKeyPEM(keyPEM)
	if err != nil {
		return pair{}, fmt.Errorf("parse key of %s: %w", template.Subject, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, parsed.(crypto.Signer).Public(), a.key)
	if err != nil {
		return pair{}, fmt.Errorf("issue certificate of %s: %w", template.Subject, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return pair{}, fmt.Errorf("parse certificate of %s: %w", template.Subject, err)
	}
	certPEM, err := certutil.EncodeCertificates(cert)
	if err != nil {
		return pair{}, fmt.Errorf("encode certificate of %s: %w", template.Subject, err)
	}
	return pair{cert: certPEM, key: keyPEM}, nil
}
