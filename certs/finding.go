package certs

// What is said about a certificate. In: findings. Out: whether the call works and which
// counters move. Errors: none; a severity that nobody knows, when one is parsed.

import (
	"fmt"
	"slices"
	"strings"
)

// Code names a kind of finding. Codes are stable: scripts and alerts may rely on them.
type Code string

// What [Verify] finds.
const (
	NoCertificate       Code = "no-certificate"
	CriticalExtension   Code = "critical-extension"    // one that Go does not know
	Expired             Code = "expired"               // the leaf
	NotYetValid         Code = "not-yet-valid"         // the leaf
	ExpiresSoon         Code = "expires-soon"          // the leaf or what it depends on
	MissingSAN          Code = "missing-san"           // none, and the common name is the host: what the counters mean
	MissingSANUncounted Code = "missing-san-uncounted" // none, and the common name is something else
	WrongSAN            Code = "wrong-san"
	SANKindMismatch     Code = "san-kind-mismatch" // an address dialled and names only, or the reverse
	InsecureSHA1        Code = "insecure-sha1"
	Untrusted           Code = "untrusted"
	IssuerExpired       Code = "issuer-expired"
	IssuerOutlived      Code = "issuer-outlived" // the leaf says that it is valid longer than its CA
	ExtendedKeyUsage    Code = "extended-key-usage"
	KeyUsage            Code = "key-usage"
	WeakKey             Code = "weak-key"
	UnusableKey         Code = "unusable-key" // refused by TLS whoever signed it
	LeafPinned          Code = "leaf-pinned"
	BundleEmpty         Code = "bundle-empty"
	BundleNotPEM        Code = "bundle-not-pem"
	BundleUnreadable    Code = "bundle-partly-unreadable"
	BundleExpired       Code = "bundle-expired-entry"
	VerificationOff     Code = "verification-off"
)

// Severity orders findings.
type Severity int

const (
	// Healthy is the severity of no finding at all.
	Healthy Severity = iota
	// Info is worth knowing; nothing needs to be done.
	Info
	// Warning works today and will not for ever.
	Warning
	// Error fails calls.
	Error
)

var severities = []string{"healthy", "info", "warning", "error"}

// String is the word that MarshalText writes and ParseSeverity reads.
func (s Severity) String() string {
	if s < 0 || int(s) >= len(severities) {
		return fmt.Sprintf("severity %d", int(s))
	}
	return severities[s]
}

// MarshalText makes it a word in JSON and YAML.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (s *Severity) UnmarshalText(text []byte) error {
	i := slices.Index(severities, string(text))
	if i < 0 {
		return fmt.Errorf("%q is no severity: %s", text, strings.Join(severities, ", "))
	}
	*s = Severity(i)
	return nil
}

// ParseSeverity reads "info", "warning" or "error": what a finding can have.
func ParseSeverity(text string) (Severity, error) {
	var s Severity
	if err := s.UnmarshalText([]byte(text)); err != nil || s == Healthy {
		return Healthy, fmt.Errorf("%q is no severity of a finding: %s", text, strings.Join(severities[1:], ", "))
	}
	return s, nil
}

// Counter is one of the four metrics in which an API server counts certificates of the
// past. They have no labels. "" is none of them.
type Counter string

// The four: two for webhooks (conversion webhooks too), two for APIServices.
const (
	WebhookMissingSAN      Counter = "apiserver_webhooks_x509_missing_san_total"
	WebhookInsecureSHA1    Counter = "apiserver_webhooks_x509_insecure_sha1_total"
	AggregatorMissingSAN   Counter = "apiserver_kube_aggregator_x509_missing_san_total"
	AggregatorInsecureSHA1 Counter = "apiserver_kube_aggregator_x509_insecure_sha1_total"
)

// Counters are the four in the order in which reports list them.
func Counters() []Counter {
	return []Counter{WebhookMissingSAN, WebhookInsecureSHA1, AggregatorMissingSAN, AggregatorInsecureSHA1}
}

// Finding is one thing to say about a certificate, its bundle, or the way to it.
type Finding struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	// Message says what was seen, with the values. Parts of it come from whoever
	// serves the certificate.
	Message string `json:"message"`
	// Means is what it does to the call.
	Means string `json:"means"`
	// Breaks: this alone makes the call fail.
	Breaks bool `json:"breaks"`
	// Counter is what a call would move if no earlier check failed ([Predict] looks at
	// all findings together). "" if none.
	Counter Counter `json:"counter,omitempty"`
	Remedy  string  `json:"remedy"`
	// Change is the field or the certificate that the remedy is about. Audit knows it, and Verify does not.
	Change string `json:"change,omitempty"`
}

// Prediction is what a call would do.
type Prediction struct {
	Works bool `json:"works"`
	// Cause is the finding that the API server's error is about; "" if the call works.
	Cause Code `json:"cause,omitempty"`
	// Counters move by one each.
	Counters []Counter `json:"counters,omitempty"`
}

// Predict says what one call does, given all findings about what it meets. The caller stops at
// the first fault, in this order, and what comes later is masked:
//
//	the way there    no Service, no endpoint, nobody listens
//	the bundle       before anything is dialled
//	the key          before the certificate is verified
//	the leaf         extensions, then validity
//	the host name    here missing_san moves
//	the chain        here insecure_sha1 moves
//
// A call without a fault moves the counters of all findings: the API server then looks
// at the certificates that it accepted.
func Predict(findings []Finding) Prediction {
	first := Prediction{Works: true}
	var counter Counter
	rank := 0
	for _, f := range findings {
		if !f.Breaks {
			continue
		}
		if r := checkedAt(f.Code); first.Works || r < rank {
			first, counter, rank = Prediction{Cause: f.Code}, f.Counter, r
		}
	}
	if !first.Works {
		if counter != "" {
			first.Counters = []Counter{counter}
		}
		return first
	}
	for _, f := range findings {
		if f.Counter != "" && !slices.Contains(first.Counters, f.Counter) {
			first.Counters = append(first.Counters, f.Counter)
		}
	}
	return first
}

// checkedAt is the place of a check in the order above. What is not named is the way there.
func checkedAt(code Code) int {
	switch code {
	case BundleNotPEM:
		return 1
	case NoCertificate, UnusableKey:
		return 2
	case CriticalExtension:
		return 3
	case Expired, NotYetValid:
		return 4
	case MissingSAN, MissingSANUncounted, WrongSAN, SANKindMismatch:
		return 5
	case InsecureSHA1, Untrusted, IssuerExpired:
		return 6
	case ExtendedKeyUsage:
		return 7
	case HandshakeFailed, ClientCertificate, SlowHandshake:
		return 8
	default:
		return 0
	}
}

// Worst is the highest severity of the findings.
func Worst(findings []Finding) Severity {
	worst := Healthy
	for _, f := range findings {
		worst = max(worst, f.Severity)
	}
	return worst
}
