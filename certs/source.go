package certs

// What the TLS server asks. In: the serving Secret, watched through the API. Out: the certificate for a handshake. Errors:
// none at a handshake once there was a pair; what is wrong with the Secret is a finding.

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
)

// SecretUnknown is found by a SecretSource that could not read the Secret yet.
const SecretUnknown Code = "secret-unknown"

// SourceOptions of a SecretSource.
type SourceOptions struct {
	Clients   kubernetes.Interface
	Namespace string
	Secret    string // Empty: DefaultServingSecret
	// ProofName is the server name under which the next leaf is served, if there is one. Empty: none.
	ProofName     string
	Logger        *slog.Logger         // Nil: silence
	MeterProvider metric.MeterProvider // Nil: none
	Now           func() time.Time     // Nil: time.Now
}

// SecretSource keeps the last good pair of a Secret. A manager to which it is added starts it before its caches, on every replica.
type SecretSource struct {
	early
	o       SourceOptions
	served  atomic.Pointer[pairs]
	changes metric.Int64Counter

	mu       sync.Mutex
	problems []Finding // of the Secret as it is stored
	said     report
}

// pairs are what a handshake gets.
type pairs struct {
	pair  *tls.Certificate
	proof *tls.Certificate // under ProofName; nil: pair
}

// NewSecretSource checks the options.
func NewSecretSource(o SourceOptions) (*SecretSource, error) {
	if o.Clients == nil || o.Namespace == "" {
		return nil, errors.New("make a source of certificates: a client or the namespace is missing")
	}
	o.Secret = cmp.Or(o.Secret, DefaultServingSecret)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &SecretSource{o: o}
	s.problems = []Finding{s.missing(SecretUnknown, "has not been read yet", "see that the API server can be reached")}
	meter := meterOf(o.MeterProvider)
	var err error
	s.changes, err = meter.Int64Counter("tracehook.certs.secret.changes",
		metric.WithUnit("{change}"), metric.WithDescription("Forms of the serving Secret that were seen, by what became of them."))
	if err != nil {
		return nil, fmt.Errorf("create the counter of changes: %w", err)
	}
	if err := observeFindings(meter, "tracehook.certs.secret.findings", s.Findings); err != nil {
		return nil, err
	}
	return s, nil
}

// Start watches until ctx ends.
func (s *SecretSource) Start(ctx context.Context) error {
	go everyMinute(ctx, s.tell)
	watchNamed(ctx, s.o.Clients, s.o.Secret, &corev1.Secret{}, s.o.Clients.CoreV1().Secrets(s.o.Namespace), func(secret watched[*corev1.Secret]) {
		outcome := s.take(secret)
		s.changes.Add(ctx, 1, metric.WithAttributes(attribute.String("tracehook.certs.outcome", outcome)))
		s.tell(ctx)
	})
	return nil
}

// GetCertificate is for tls.Config.
func (s *SecretSource) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := s.served.Load()
	switch {
	case now == nil:
		return nil, fmt.Errorf("there is no certificate yet: Secret %s/%s has held none that can be used", s.o.Namespace, s.o.Secret)
	case now.proof != nil && hello.ServerName == s.o.ProofName:
		return now.proof, nil
	}
	return now.pair, nil
}

// Findings are what is wrong with the Secret as it is now, and with the age of what is served; the last good pair is
// served all the same.
func (s *SecretSource) Findings() []Finding {
	s.mu.Lock()
	findings := append([]Finding(nil), s.problems...)
	s.mu.Unlock()
	if now := s.served.Load(); now != nil {
		v := verification{chain: []*x509.Certificate{now.pair.Leaf}, now: s.o.Now()}
		v.validity()
		findings = append(findings, v.findings...)
	}
	return findings
}

// take makes of the Secret what it can, and returns the outcome: "served", "kept" (an earlier pair, as this is none) or "none".
func (s *SecretSource) take(secret watched[*corev1.Secret]) (outcome string) {
	var problems []Finding
	next := pairs{}
	if before := s.served.Load(); before != nil {
		next.pair = before.pair
	}
	outcome = "kept"
	switch {
	case secret.err != nil:
		problems = append(problems, s.missing(SecretUnknown, "cannot be read: "+secret.err.Error(), "see that the API server can be reached, and that the ServiceAccount may list and watch this Secret by name"))
	case !secret.there:
		problems = append(problems, s.missing(SecretMissing, "is not there", "wait for the Authority to make it; if nobody does, see that one runs"))
	default:
		data := secret.object.Data
		if next.pair == nil && len(data[ServingCertificate])+len(data[ServingKey]) == 0 { // as the Authority makes it, for a moment
			problems = append(problems, s.missing(SecretMissing, "holds no certificate yet", "wait for the Authority to fill it; if nobody does, see that one runs"))
			break
		}
		pair, err := servable(data[ServingCertificate], data[ServingKey])
		if err == nil && next.pair != nil && s.stale(next.pair.Leaf, 0) == nil {
			err = s.stale(pair.Leaf, newPairSkew)
		}
		if err == nil {
			next.pair, outcome = pair, "served"
		} else {
			problems = append(problems, s.unusable(ServingCertificate, ServingKey, err))
		}
		if s.o.ProofName != "" && len(data[ServingNextCertificate])+len(data[ServingNextKey]) > 0 {
			if next.proof, err = servable(data[ServingNextCertificate], data[ServingNextKey]); err != nil {
				problems = append(problems, s.unusable(ServingNextCertificate, ServingNextKey, err))
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = problems
	if next.pair == nil {
		return "none"
	}
	s.served.Store(&next)
	return outcome
}

// servable reads a pair in the form of crypto/tls; nil if there is an error.
func servable(certificate, key []byte) (*tls.Certificate, error) {
	pair, err := ParsePair(certificate, key)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{PrivateKey: pair.Key, Leaf: pair.Certificate}
	for _, sent := range pair.Chain() {
		c.Certificate = append(c.Certificate, sent.Raw)
	}
	return c, nil
}

// newPairSkew is how far a clock may be behind before a new pair is refused as not valid yet. Whoever wrote it
// could tell the time, and by the right clock the pair before may be near its end.
const newPairSkew = time.Hour + time.Minute

// stale says why a certificate is not valid, now or at any time up to skew later.
func (s *SecretSource) stale(c *x509.Certificate, skew time.Duration) error {
	now := s.o.Now()
	if early := c.NotBefore.Sub(now); early > 0 && early <= skew {
		now = c.NotBefore
	}
	v := verification{chain: []*x509.Certificate{c}, now: now}
	v.validity()
	if len(v.findings) == 0 {
		return nil
	}
	return errors.New(v.findings[0].Message)
}

func (s *SecretSource) missing(code Code, what, remedy string) Finding {
	f := Finding{Code: code, Message: fmt.Sprintf("Secret %s/%s %s", s.o.Namespace, s.o.Secret, what), Remedy: remedy}
	return s.weigh(f)
}

func (s *SecretSource) unusable(certificate, key string, err error) Finding {
	f := Finding{Code: SecretUnusable, Remedy: "write a certificate and its key to both, or remove the Secret and have the Authority make it anew",
		Message: fmt.Sprintf("%s and %s of Secret %s/%s are no pair that can be served: %v", certificate, key, s.o.Namespace, s.o.Secret, err)}
	if certificate == ServingNextCertificate {
		f.Severity, f.Means = Warning, "the next certificate cannot be proven, and a rotation does not go on"
		return f
	}
	return s.weigh(f)
}

// weigh: without a pair there is no handshake; with one it is a matter of time.
func (s *SecretSource) weigh(f Finding) Finding {
	if s.served.Load() == nil {
		f.Severity, f.Breaks, f.Means = Error, true, "no handshake succeeds, as there was no pair before"
	} else {
		f.Severity, f.Means = Warning, "the pair that was there before is served until it expires"
	}
	return f
}

// tell logs findings once per change.
func (s *SecretSource) tell(ctx context.Context) {
	s.said.tell(ctx, s.o.Logger, "serving certificate", s.Findings(), s.o.Now())
}
