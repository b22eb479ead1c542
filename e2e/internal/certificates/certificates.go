// Package certificates fills a directory with a serving pair for tracehook: a
// right one, made by the built binary as an operator would, or a wrong one.
package certificates

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/tracehook/tracehook/certs"
)

// Service is tracehook's in the shipped manifests, as NAMESPACE/NAME.
const Service = "tracehook-system/tracehook"

// ServerName is the name that the API server verifies when it calls tracehook.
const ServerName = "tracehook.tracehook-system.svc"

// Issue runs `tracehook certs issue` for a Service, NAMESPACE/NAME, and returns the CA bundle (PEM).
func Issue(ctx context.Context, tracehook, service, dir string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, tracehook, "certs", "issue", "--force",
		"--service", service, "--output-dir", dir).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run tracehook certs issue: %w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "ca.crt"))
}

// IssueWithoutSAN makes a pair whose certificate names the server only in its
// common name, as was usual until Go 1.15, and returns the CA bundle (PEM) that
// vouches for it. Package certs refuses to make such a thing.
func IssueWithoutSAN(dir string) ([]byte, error) {
	now := time.Now()
	ca, err := certs.NewCA(certs.CAOptions{Now: now})
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: ServerName},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca.Certificate, key.Public(), ca.Key)
	if err != nil {
		return nil, fmt.Errorf("make certificate without subject alternative name: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read it back: %w", err)
	}
	certificatePEM, err := certs.KeyPair{Certificate: certificate, Key: key}.CertificatePEM()
	if err != nil {
		return nil, err
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{"tls.crt": certificatePEM, "tls.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	return ca.CertificatePEM()
}

// WaitServed returns when the process on this port of localhost serves the pair in
// dir: it takes a moment to notice that the files have changed.
func WaitServed(ctx context.Context, port int, dir string) error {
	want, err := cert.CertsFromFile(filepath.Join(dir, "tls.crt"))
	if err != nil {
		return err
	}
	// Verification is off because the pair may be one that nobody should accept.
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	for {
		c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			served := c.(*tls.Conn).ConnectionState().PeerCertificates[0]
			c.Close()
			if served.Equal(want[0]) {
				return nil
			}
			err = fmt.Errorf("it still serves the certificate with serial number %x", served.SerialNumber)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for port %d to serve %s: %w: %w", port, filepath.Join(dir, "tls.crt"), ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
