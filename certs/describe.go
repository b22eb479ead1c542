package certs

// Words and small questions about certificates. In: one of them. Out: what a finding says of it. Errors: none.

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

func pool(certificates []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c)
	}
	return p
}

func hasSAN(c *x509.Certificate) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal([]int{2, 5, 29, 17}) {
			return true
		}
	}
	return false
}

// namedByCommonName and refusedForSHA1 read what Go's errors say and do not offer as a value. The
// API server's counters go by the same words.
func namedByCommonName(err error) bool {
	return strings.Contains(err.Error(), "certificate relies on legacy Common Name field")
}

func refusedForSHA1(err error) bool {
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		return false
	}
	_, reason, found := strings.Cut(err.Error(), "x509: cannot verify signature: insecure algorithm")
	return found && strings.Contains(reason, "SHA1")
}

func unusable(key any) string {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := bitLen(key.N); bits < minRSABits || bits > maxRSABits {
			return fmt.Sprintf("RSA with %d bits", bits)
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return fmt.Sprintf("of a kind that TLS does not use (%T)", key)
	}
	return ""
}

func weakness(key any) string {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := bitLen(key.N); bits < weakRSABits {
			return fmt.Sprintf("RSA with %d bits", bits)
		}
	case *ecdsa.PublicKey:
		if bits := key.Curve.Params().BitSize; bits < weakECBits {
			return fmt.Sprintf("ECDSA with %d bits", bits)
		}
	}
	return ""
}

func bitLen(n *big.Int) int {
	if n == nil {
		return 0
	}
	return n.BitLen()
}

// describe names a certificate for a person. The subject comes from the server.
func describe(c *x509.Certificate) string {
	return fmt.Sprintf("certificate %s (serial %x)", quote(c.Subject.String()), c.SerialNumber)
}

// names are those that the certificate is for.
func names(c *x509.Certificate) string {
	all := make([]string, 0, len(c.DNSNames)+len(c.IPAddresses))
	for _, name := range c.DNSNames {
		all = append(all, quote(name))
	}
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "neither a name nor an address"
	}
	const most = 8
	if len(all) > most {
		all = append(all[:most], fmt.Sprintf("%d more", len(all)-most))
	}
	return strings.Join(all, ", ")
}

// quote keeps control characters of strangers away from terminals.
func quote(s string) string {
	const longest = 200
	if len(s) > longest {
		s = s[:longest] + "…"
	}
	return fmt.Sprintf("%q", s)
}

// span is in days where hours do not matter.
func span(d time.Duration) string {
	if days := int(d.Hours() / 24); days >= 2 {
		return fmt.Sprintf("%d days", days)
	}
	return d.Round(time.Minute).String()
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
