package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// clientPKI is a directory with client certificates of two CAs, and the CAs that are trusted now.
type clientPKI struct {
	dir          string
	trusted      string // the file for --client-ca-file
	ours, theirs *x509.Certificate
}

func newClientPKI(t *testing.T) *clientPKI {
	t.Helper()
	p := &clientPKI{dir: t.TempDir()}
	p.trusted = filepath.Join(p.dir, "trusted.crt")
	var ourKey, theirKey crypto.Signer
	p.ours, ourKey = newCA(t, "ours")
	p.theirs, theirKey = newCA(t, "theirs")
	p.trust(t, p.ours)
	p.client(t, "client", clientName, p.ours, ourKey)
	p.client(t, "wrong-name", "kubelet", p.ours, ourKey)
	p.client(t, "wrong-ca", clientName, p.theirs, theirKey)
	return p
}

func newCA(t *testing.T, name string) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := cert.NewSelfSignedCACert(cert.Config{CommonName: name}, key)
	if err != nil {
		t.Fatal(err)
	}
	return ca, key
}

// trust writes the file as a person would who edits it.
func (p *clientPKI) trust(t *testing.T, cas ...*x509.Certificate) {
	t.Helper()
	bundle, err := cert.EncodeCertificates(cas...)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.trusted, bundle, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p *clientPKI) client(t *testing.T, file, name string, ca *x509.Certificate, caKey crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := cert.EncodeCertificates(leaf)
	if err != nil {
		t.Fatal(err)
	}
	private, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, data := range map[string][]byte{".crt": certificate, ".key": private} {
		if err := os.WriteFile(filepath.Join(p.dir, file+suffix), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// configuration writes the two files of deploy/components/mtls/apiserver with their directory changed, and two
// users for two hosts only, which go before the suffix that the shipped file has.
func (p *clientPKI) configuration(t *testing.T, port int) (file string) {
	t.Helper()
	for _, name := range []string{"admission-configuration.yaml", "kubeconfig.yaml"} {
		shipped, err := os.ReadFile(filepath.Join("..", "..", "deploy", "components", "mtls", "apiserver", name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(shipped), "/etc/kubernetes/webhook", p.dir)
		if text == string(shipped) {
			t.Fatalf("%s does not name /etc/kubernetes/webhook", name)
		}
		if name == "kubeconfig.yaml" {
			// Only 443 may be left out.
			text = strings.ReplaceAll(text, `.svc"`, fmt.Sprintf(`.svc:%d"`, port))
			for _, wrong := range []string{"wrong-name", "wrong-ca"} {
				text += fmt.Sprintf("  - name: %[1]s.tracehook-system.svc:%[2]d\n    user: {client-certificate: %[3]s/%[1]s.crt, client-key: %[3]s/%[1]s.key}\n", wrong, port, p.dir)
			}
		}
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(p.dir, "admission-configuration.yaml")
}
