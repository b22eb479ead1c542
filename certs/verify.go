package certs

// In: the certificates that a server presents, what the caller trusts, the name it
// verifies, the time. Out: everything there is to say about them. Errors: none; what is
// wrong is a finding.

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"time"
)

const (
	// soonest is how long before its end a certificate is worth a warning, however long it lives.
	soonest = 30 * 24 * time.Hour
	// Who renews at two thirds of life never gets to the last fifth.
	soonFraction = 5

	// What crypto/tls accepts of an RSA key, in bits, and what one should have.
	minRSABits, weakRSABits, maxRSABits = 1024, 2048, 8192
	weakECBits                          = 256
)

// Trust is what an API server goes by when it calls.
type Trust struct {
	// Bundle is caBundle: PEM, as the object holds it (not in base64). Empty: SystemRoots.
	Bundle []byte
	// SystemRoots are the API server's own. Nil: none.
	SystemRoots *x509.CertPool
	// APIService: the call is an aggregated API's, which has counters of its own.
	APIService bool
	// InsecureSkipVerify is an APIService's insecureSkipTLSVerify.
	InsecureSkipVerify bool
}

// ParseBundle reads a bundle as an API server does: blocks that are no certificate are
// passed over. It returns the certificates in their order and what was passed over,
// in words.
func ParseBundle(bundle []byte) (certificates []*x509.Certificate, ignored []string) {
	for number := 1; len(bytes.TrimSpace(bundle)) > 0; number++ {
		block, rest := pem.Decode(bundle)
		if block == nil {
			return certificates, append(ignored, fmt.Sprintf("%d bytes that are not PEM, from block %d on", len(bundle), number))
		}
		bundle = rest
		switch {
		case block.Type != "CERTIFICATE":
			ignored = append(ignored, fmt.Sprintf("block %d is a %q", number, block.Type))
			continue
		case len(block.Headers) > 0:
			ignored = append(ignored, fmt.Sprintf("block %d has headers", number))
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			ignored = append(ignored, fmt.Sprintf("block %d: %v", number, err))
			continue
		}
		certificates = append(certificates, certificate)
	}
	return certificates, ignored
}

// Verify says everything there is to say about a certificate chain, leaf first as it is
// presented, to a caller who verifies serverName at now. Where the API server stops at the first fault,
// Verify goes on: after the repair of that one the next would come.
//
// A finding that breaks is there exactly if Go's own verifier, or TLS before it, refuses the chain.
// An empty serverName is not compared. The findings are in the order of the checks.
func Verify(chain []*x509.Certificate, trust Trust, serverName string, now time.Time) []Finding {
	v := verification{chain: chain, trust: trust, host: serverName, now: now}
	v.bundle()
	if len(chain) == 0 {
		v.add(Finding{Code: NoCertificate, Severity: Error, Breaks: true,
			Message: "the server presents no certificate",
			Means:   "no TLS connection comes about",
			Remedy:  "give the server a certificate and its key"})
		return v.findings
	}
	v.keys()
	v.validity()
	v.hostName()
	v.trusted()
	v.usage()
	switch {
	case trust.InsecureSkipVerify:
		v.forgive()
	case trust.APIService:
		v.unavailable()
	}
	return v.findings
}

type verification struct {
	chain []*x509.Certificate
	trust Trust
	host  string
	now   time.Time

	roots    *x509.CertPool
	anchors  []*x509.Certificate // of the bundle
	findings []Finding
}

func (v *verification) add(f Finding) { v.findings = append(v.findings, f) }

func (v *verification) leaf() *x509.Certificate { return v.chain[0] }

// counter picks the one of webhooks or the one of APIServices.
func (v *verification) counter(webhook, aggregator Counter) Counter {
	if v.trust.APIService {
		return aggregator
	}
	return webhook
}

// bundle looks at what is trusted, before anything is dialled.
func (v *verification) bundle() {
	switch {
	case v.trust.InsecureSkipVerify:
		v.add(Finding{Code: VerificationOff, Severity: Warning,
			Message: "insecureSkipTLSVerify is true",
			Means:   "calls work with any certificate, and whoever can answer in the server's place is believed",
			Remedy:  "serve a certificate with the right subject alternative name, then set caBundle and insecureSkipTLSVerify: false in one update"})
		return
	case len(v.trust.Bundle) == 0:
		v.roots = v.trust.SystemRoots
		v.add(Finding{Code: BundleEmpty, Severity: Info,
			Message: "caBundle is empty",
			Means:   "the API server trusts the root certificates of the machine or image that it runs on, which need not be the ones known here",
			Remedy:  "set caBundle, unless a public CA signs the certificate"})
	default:
		anchors, ignored := ParseBundle(v.trust.Bundle)
		v.anchors = anchors
		v.roots = pool(anchors)
		if len(anchors) == 0 {
			v.add(Finding{Code: BundleNotPEM, Severity: Error, Breaks: true,
				Message: "caBundle holds no certificate: " + strings.Join(ignored, "; "),
				Means:   "the API server cannot make a client and does not even dial",
				Remedy:  "write PEM certificates to caBundle, once encoded in base64"})
		} else if len(ignored) > 0 {
			v.add(Finding{Code: BundleUnreadable, Severity: Warning,
				Message: "parts of caBundle are ignored: " + strings.Join(ignored, "; "),
				Means:   "the API server trusts the rest; a CA that was meant to be trusted may not be",
				Remedy:  "write caBundle anew, with CERTIFICATE blocks only"})
		}
		v.expiredAnchors()
	}
	if v.roots == nil {
		v.roots = x509.NewCertPool() // nil would mean those of this machine
	}
}

func (v *verification) expiredAnchors() {
	var expired []string
	for _, c := range v.anchors {
		if v.now.After(c.NotAfter) {
			expired = append(expired, describe(c))
		}
	}
	if len(expired) > 0 {
		v.add(Finding{Code: BundleExpired, Severity: Warning,
			Message: "caBundle holds what has expired: " + strings.Join(expired, "; "),
			Means:   "nothing that depends on it is trusted any more; the other entries still work",
			Remedy:  "remove it from caBundle"})
	}
}

// keys looks at the keys of the leaf and of every CA that can stand above it.
func (v *verification) keys() {
	leaf := v.leaf()
	if bad := unusable(leaf.PublicKey); bad != "" {
		v.add(Finding{Code: UnusableKey, Severity: Error, Breaks: true,
			Message: fmt.Sprintf("the key of %s is %s", describe(leaf), bad),
			Means:   "TLS refuses it whoever signed the certificate",
			Remedy:  "issue the certificate for a new key: ECDSA P-256, or RSA with 2048 bits"})
	} else if weak := weakness(leaf.PublicKey); weak != "" {
		v.weakKey(leaf, weak)
	}
	for _, c := range v.above() {
		if weak := weakness(c.PublicKey); weak != "" {
			v.weakKey(c, weak)
		}
	}
}

func (v *verification) weakKey(c *x509.Certificate, weak string) {
	v.add(Finding{Code: WeakKey, Severity: Warning,
		Message: fmt.Sprintf("the key of %s is %s", describe(c), weak),
		Means:   "Go takes it today, and stricter callers do not",
		Remedy:  "issue the certificate for a new key: ECDSA P-256, or RSA with 2048 bits"})
}

// above are the certificates, served or trusted, that the leaf's chain can go through by
// the names on them, each once.
func (v *verification) above() []*x509.Certificate {
	known := slices.Concat(v.chain[1:], v.anchors)
	var found []*x509.Certificate
	for queue := []*x509.Certificate{v.leaf()}; len(queue) > 0; queue = queue[1:] {
		for _, c := range known {
			if bytes.Equal(c.RawSubject, queue[0].RawIssuer) && !c.Equal(v.leaf()) && !slices.ContainsFunc(found, c.Equal) {
				found, queue = append(found, c), append(queue, c)
			}
		}
	}
	return found
}

// validity looks at the leaf alone.
func (v *verification) validity() {
	leaf := v.leaf()
	if len(leaf.UnhandledCriticalExtensions) > 0 {
		v.add(Finding{Code: CriticalExtension, Severity: Error, Breaks: true,
			Message: fmt.Sprintf("%s has critical extensions that Go does not know: %v", describe(leaf), leaf.UnhandledCriticalExtensions),
			Means:   "the API server refuses it",
			Remedy:  "issue the certificate without them"})
	}
	if v.now.Before(leaf.NotBefore) {
		v.add(Finding{Code: NotYetValid, Severity: Error, Breaks: true,
			Message: fmt.Sprintf("%s is not valid before %s", describe(leaf), stamp(leaf.NotBefore)),
			Means:   "calls fail until then; no counter moves, whatever else is wrong",
			Remedy:  "look at the clocks; issue certificates that became valid an hour ago"})
	}
	if v.now.After(leaf.NotAfter) {
		v.add(Finding{Code: Expired, Severity: Error, Breaks: true,
			Message: fmt.Sprintf("%s expired on %s", describe(leaf), stamp(leaf.NotAfter)),
			Means:   "every call fails; no counter moves, whatever else is wrong",
			Remedy:  "renew the certificate, and find out why nobody did"})
	}
}

// hostName compares what the certificate is for with what the caller verifies.
func (v *verification) hostName() {
	leaf := v.leaf()
	if v.host == "" {
		return
	}
	err := leaf.VerifyHostname(v.host)
	if err == nil {
		return
	}
	f := Finding{Severity: Error, Breaks: true, Means: "the API server refuses the certificate; no counter moves",
		Remedy: fmt.Sprintf("issue the certificate with %s among its subject alternative names", v.wanted())}
	switch {
	case !hasSAN(leaf):
		// Only the certificate that Go 1.14 would have taken is counted, and Go says which that is.
		if namedByCommonName(err) {
			f.Code = MissingSAN
			f.Message = fmt.Sprintf("%s has no subject alternative name, and %s only as its common name", describe(leaf), v.host)
			f.Means = "the API server refuses the certificate and counts it"
			f.Counter = v.counter(WebhookMissingSAN, AggregatorMissingSAN)
		} else {
			f.Code = MissingSANUncounted
			f.Message = fmt.Sprintf("%s has no subject alternative name, and its common name is not %s", describe(leaf), v.host)
			f.Means = "the API server refuses the certificate and does not count it: the counter stays at zero"
		}
		if v.trust.InsecureSkipVerify { // then it looks at the certificate alone
			f.Counter = v.counter(WebhookMissingSAN, AggregatorMissingSAN)
		}
	case net.ParseIP(strings.Trim(v.host, "[]")) != nil && len(leaf.IPAddresses) == 0:
		f.Code = SANKindMismatch
		f.Message = fmt.Sprintf("%s is dialled by address, and %s is for names only: %s", v.host, describe(leaf), names(leaf))
	case net.ParseIP(strings.Trim(v.host, "[]")) == nil && len(leaf.DNSNames) == 0:
		f.Code = SANKindMismatch
		f.Message = fmt.Sprintf("%s is dialled by name, and %s is for no DNS name: %s", v.host, describe(leaf), names(leaf))
	default:
		f.Code = WrongSAN
		f.Message = fmt.Sprintf("%s is for %s, not for %s", describe(leaf), names(leaf), v.host)
	}
	v.add(f)
}

func (v *verification) wanted() string {
	if net.ParseIP(strings.Trim(v.host, "[]")) != nil {
		return "the IP address " + v.host
	}
	return "the DNS name " + v.host
}

// trusted looks at the chain. The time is that of a valid leaf, so that an expired one
// does not hide the rest.
func (v *verification) trusted() {
	if v.trust.InsecureSkipVerify {
		v.sha1(nil)
		return
	}
	leaf := v.leaf()
	at, valid := v.now, true
	switch {
	case at.After(leaf.NotAfter):
		at, valid = leaf.NotAfter, false
	case at.Before(leaf.NotBefore):
		at, valid = leaf.NotBefore, false
	}
	chains, err := v.chains(at, x509.ExtKeyUsageAny)
	v.sha1(err)
	if err == nil {
		if slices.ContainsFunc(v.anchors, leaf.Equal) {
			v.add(Finding{Code: LeafPinned, Severity: Info,
				Message: fmt.Sprintf("caBundle holds the serving certificate itself, %s", describe(leaf)),
				Means:   "calls work; another certificate is trusted only when it is in caBundle too",
				Remedy:  "before the certificate is renewed, publish a bundle with the old one and the next one's CA"})
		}
		if valid {
			v.lifetime(chains)
		}
		if _, err := v.chains(at, x509.ExtKeyUsageServerAuth); err != nil {
			v.add(Finding{Code: ExtendedKeyUsage, Severity: Error, Breaks: true,
				Message: fmt.Sprintf("%s may not be used by a server: %v", describe(leaf), err),
				Means:   "the API server refuses it; no counter moves",
				Remedy:  "issue the certificate with the extended key usage serverAuth, and its CA without others"})
		}
		return
	}
	var invalid x509.CertificateInvalidError
	switch {
	case refusedForSHA1(err): // said already
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil && !invalid.Cert.Equal(leaf):
		v.add(Finding{Code: IssuerExpired, Severity: Error, Breaks: true,
			Message: fmt.Sprintf("%s depends on %s, valid from %s until %s", describe(leaf), describe(invalid.Cert), stamp(invalid.Cert.NotBefore), stamp(invalid.Cert.NotAfter)),
			Means:   "the API server refuses the chain; no counter moves",
			Remedy:  "publish a CA that is valid, then serve a certificate signed by it"})
	default:
		means := "the API server refuses the chain; no counter moves"
		if len(v.trust.Bundle) == 0 {
			means += ". Unless its machine or image has a root certificate that is not known here"
		}
		v.add(Finding{Code: Untrusted, Severity: Error, Breaks: true,
			Message: fmt.Sprintf("%s, issued by %s, is not trusted: %v", describe(leaf), quote(leaf.Issuer.String()), err),
			Means:   means,
			Remedy:  "write the CA that signs this certificate to caBundle, beside the one that is there"})
	}
}

// chains asks Go's own verifier, without a name.
func (v *verification) chains(at time.Time, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	if at.IsZero() {
		at = at.Add(time.Nanosecond) // zero would mean the clock
	}
	leaf := *v.leaf()
	leaf.UnhandledCriticalExtensions = nil // a finding of its own
	return leaf.Verify(x509.VerifyOptions{
		Roots: v.roots, Intermediates: pool(v.chain[1:]), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
	})
}

// sha1 looks at the signatures on what is served. err is what the verifier says of the chain.
func (v *verification) sha1(err error) {
	var signed, selfSigned []string
	for i, c := range v.chain {
		switch {
		case c.SignatureAlgorithm != x509.SHA1WithRSA && c.SignatureAlgorithm != x509.ECDSAWithSHA1:
		// The same comparison as the API server's.
		case !reflect.DeepEqual(c.Issuer, c.Subject):
			signed = append(signed, describe(c))
		case i == 0:
			selfSigned = append(selfSigned, describe(c))
		}
	}
	counter := v.counter(WebhookInsecureSHA1, AggregatorInsecureSHA1)
	const remedy = "have the CA sign it anew with SHA-256"
	switch {
	case refusedForSHA1(err):
		if len(signed) == 0 { // one that is in the bundle only
			signed = []string{"a certificate between it and the root"}
		}
		v.add(Finding{Code: InsecureSHA1, Severity: Error, Breaks: true, Counter: counter,
			Message: "signed with SHA-1: " + strings.Join(signed, "; "),
			Means:   "the API server refuses the chain and counts it",
			Remedy:  remedy})
	case len(signed) > 0 && err != nil:
		v.add(Finding{Code: InsecureSHA1, Severity: Error,
			Message: "signed with SHA-1: " + strings.Join(signed, "; "),
			Means:   "the chain is refused for another reason, so nothing is counted; once that is repaired, this is next",
			Remedy:  remedy})
	case len(signed) > 0:
		v.add(Finding{Code: InsecureSHA1, Severity: Warning, Counter: counter,
			Message: "signed with SHA-1: " + strings.Join(signed, "; "),
			Means:   "nobody checks that signature, so calls work, and each is counted",
			Remedy:  remedy})
	case len(selfSigned) > 0:
		v.add(Finding{Code: InsecureSHA1, Severity: Info,
			Message: "signed with SHA-1, by itself: " + strings.Join(selfSigned, "; "),
			Means:   "nobody checks a certificate's signature by itself; nothing is counted",
			Remedy:  "replace it by a CA and a certificate signed by it"})
	}
}

// lifetime looks at how long the chain holds: as long as the certificate in it that ends first, in the
// chain that holds longest.
func (v *verification) lifetime(chains [][]*x509.Certificate) {
	leaf := v.leaf()
	first := endsFirst(chains)
	if first.NotAfter.Before(leaf.NotAfter) {
		v.add(Finding{Code: IssuerOutlived, Severity: Warning,
			Message: fmt.Sprintf("%s is valid until %s, but depends on %s, which ends on %s", describe(leaf), stamp(leaf.NotAfter), describe(first), stamp(first.NotAfter)),
			Means:   "calls fail from the earlier date on, whatever the certificate says",
			Remedy:  "renew the CA first; issue certificates that end no later than their CA"})
	}
	if left := first.NotAfter.Sub(v.now); left < min(soonest, first.NotAfter.Sub(first.NotBefore)/soonFraction) {
		v.add(Finding{Code: ExpiresSoon, Severity: Warning,
			Message: fmt.Sprintf("%s ends on %s, in %s", describe(first), stamp(first.NotAfter), span(left)),
			Means:   "calls fail from then on",
			Remedy:  "renew it; if something should have done so by itself, find out why it did not"})
	}
}

// endsFirst is the certificate that ends first, in the chain that holds longest.
func endsFirst(chains [][]*x509.Certificate) (first *x509.Certificate) {
	for _, chain := range chains {
		ends := slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
		if first == nil || ends.NotAfter.After(first.NotAfter) {
			first = ends
		}
	}
	return first
}

// usage looks at what other callers than Go's would refuse.
func (v *verification) usage() {
	leaf := v.leaf()
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		v.add(Finding{Code: KeyUsage, Severity: Warning,
			Message: fmt.Sprintf("the key of %s may not sign", describe(leaf)),
			Means:   "Go does not look; other callers refuse the handshake",
			Remedy:  "issue the certificate with the key usage digitalSignature"})
	}
}

// forgive: with verification off nothing that concerns the chain breaks a call.
func (v *verification) forgive() {
	for i := range v.findings {
		f := &v.findings[i]
		if f.Breaks && f.Code != UnusableKey && f.Code != NoCertificate {
			f.Breaks, f.Severity = false, Warning
			f.Means = "nothing, as verification is off; with it on the API server would refuse the certificate"
			if f.Counter != "" || f.Code == MissingSANUncounted {
				f.Means += "; each request is counted"
			}
		}
	}
}

// unavailable: an API server asks an APIService it verifies by itself first, with a client that counts nothing. What it refuses there
// is unavailable from then on, and calls end before they are made. (kube-aggregator, 1.36: remote_available_controller.go and
// proxyHandler.ServeHTTP.) Only a certificate that takes the place of a good one is counted, until the next time it asks, at most half a minute.
func (v *verification) unavailable() {
	for i := range v.findings {
		f := &v.findings[i]
		if f.Breaks && f.Counter != "" {
			f.Counter = ""
			f.Means = "the API server refuses the certificate when it looks whether the APIService is available, and calls end with 503; it counts neither"
		}
	}
}

// ValidUntil is when calls with this chain start to fail for its age: when the leaf ends, or
// what it depends on if that is known and ends earlier. Zero without a chain.
func ValidUntil(chain []*x509.Certificate, trust Trust) time.Time {
	if len(chain) == 0 {
		return time.Time{}
	}
	leaf := chain[0]
	if trust.InsecureSkipVerify {
		return leaf.NotAfter
	}
	v := verification{chain: chain, trust: trust}
	v.bundle()
	chains, err := v.chains(leaf.NotAfter, x509.ExtKeyUsageAny)
	if err != nil { // it outlives its issuer, or nobody trusts it
		chains, _ = v.chains(leaf.NotBefore, x509.ExtKeyUsageAny)
	}
	if first := endsFirst(chains); first != nil && first.NotAfter.Before(leaf.NotAfter) {
		return first.NotAfter
	}
	return leaf.NotAfter
}
