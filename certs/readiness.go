package certs

// Readiness. In: the certificate that is served; the live bundles, watched. Out: whether the calls of API servers
// work, and all findings. Errors: a call that would fail; what is unknown is a finding.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/client-go/kubernetes"
)

// What Readiness finds, beside what Verify does.
const (
	ConfigurationMissing Code = "configuration-missing"
	ConfigurationUnknown Code = "configuration-unknown" // it could not be read yet
)

// ReadinessOptions of a Readiness.
type ReadinessOptions struct {
	Clients kubernetes.Interface
	// Configurations are those that send API servers here: KindMutating or KindValidating. If one has webhooks that lead
	// elsewhere, name those that lead here.
	Configurations []Ref
	// GetCertificate is what the TLS server asks.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// SystemRoots stand for those of the API servers, for an empty caBundle. Nil: those of this machine or image.
	SystemRoots   *x509.CertPool
	Logger        *slog.Logger         // Nil: silence
	MeterProvider metric.MeterProvider // Nil: none
	Now           func() time.Time     // Nil: time.Now
}

// Readiness compares the certificate that is served with the bundles that are live. A manager to which it is added starts
// it before its caches, on every replica.
type Readiness struct {
	early
	o    ReadinessOptions
	said report

	mu    sync.Mutex
	known []configuration // as o.Configurations
}

// configuration is what is known of one.
type configuration struct {
	targets []Target
	problem *Finding
}

// NewReadiness checks the options.
func NewReadiness(o ReadinessOptions) (*Readiness, error) {
	if o.Clients == nil || o.GetCertificate == nil {
		return nil, errors.New("make a readiness check: a client or GetCertificate is missing")
	}
	if o.SystemRoots == nil {
		o.SystemRoots, _ = x509.SystemCertPool() // without one nothing private becomes trusted
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Configurations = slices.Clone(o.Configurations) // the caller's
	r := &Readiness{o: o, known: make([]configuration, len(o.Configurations))}
	for i, ref := range o.Configurations {
		if !ref.hasWebhooks() {
			return nil, fmt.Errorf("make a readiness check: %s is no webhook configuration", ref)
		}
		r.known[i].problem = unknown(ref, ConfigurationUnknown, "has not been read yet")
	}
	meter := meterOf(o.MeterProvider)
	if err := observeFindings(meter, "tracehook.certs.bundle.findings", r.Findings); err != nil {
		return nil, err
	}
	_, err := meter.Int64ObservableGauge("tracehook.certs.ready",
		metric.WithDescription("1 if API servers can call this server with the certificate that it serves, or if nobody knows; else 0."),
		metric.WithInt64Callback(func(_ context.Context, observer metric.Int64Observer) error {
			ready := int64(1)
			if r.Ready(nil) != nil {
				ready = 0
			}
			observer.Observe(ready)
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("create the gauge of readiness: %w", err)
	}
	return r, nil
}

// Start watches the configurations until ctx ends.
func (r *Readiness) Start(ctx context.Context) error {
	var group sync.WaitGroup
	client := r.o.Clients.AdmissionregistrationV1()
	for i, ref := range r.o.Configurations {
		group.Go(func() {
			if ref.Kind == KindMutating {
				watchNamed(ctx, r.o.Clients, ref.Name, &admissionv1.MutatingWebhookConfiguration{}, client.MutatingWebhookConfigurations(),
					func(seen watched[*admissionv1.MutatingWebhookConfiguration]) {
						var targets []Target
						if seen.there {
							targets = mutatingTargets(*seen.object)
						}
						r.take(ctx, i, targets, seen.there, seen.err)
					})
				return
			}
			watchNamed(ctx, r.o.Clients, ref.Name, &admissionv1.ValidatingWebhookConfiguration{}, client.ValidatingWebhookConfigurations(),
				func(seen watched[*admissionv1.ValidatingWebhookConfiguration]) {
					var targets []Target
					if seen.there {
						targets = validatingTargets(*seen.object)
					}
					r.take(ctx, i, targets, seen.there, seen.err)
				})
		})
	}
	group.Go(func() { everyMinute(ctx, r.tell) })
	group.Wait()
	return nil
}

// take keeps what was seen of one configuration.
func (r *Readiness) take(ctx context.Context, i int, targets []Target, there bool, err error) {
	ref := r.o.Configurations[i]
	var now configuration
	for _, t := range targets {
		if ref.Webhook == "" || ref.Webhook == t.Webhook {
			now.targets = append(now.targets, t)
		}
	}
	switch {
	case err != nil:
		now.problem = unknown(ref, ConfigurationUnknown, "cannot be read: "+err.Error())
	case !there:
		now.problem = unknown(ref, ConfigurationMissing, "is not there")
	case len(now.targets) == 0:
		now.problem = unknown(ref, ConfigurationMissing, "has no such webhook")
	}
	r.mu.Lock()
	r.known[i] = now
	r.mu.Unlock()
	r.tell(ctx)
}

func unknown(ref Ref, code Code, what string) *Finding {
	return &Finding{Code: code, Severity: Warning, Message: ref.String() + " " + what,
		Means:  "whether calls work is unknown; this server counts as ready",
		Remedy: "apply the manifests, and let the ServiceAccount list and watch this configuration by name"}
}

// Ready is a check in controller-runtime's form: nil if calls work, or if it is unknown whether they do.
func (r *Readiness) Ready(*http.Request) error {
	for _, f := range r.Findings() {
		if f.Breaks {
			return fmt.Errorf("API servers cannot call this server: %s (%s); %s", f.Message, f.Code, f.Remedy)
		}
	}
	return nil
}

// Findings are all findings of all bundles, also those that break nothing. Their messages begin with the webhook.
func (r *Readiness) Findings() (findings []Finding) {
	r.mu.Lock()
	known := append([]configuration(nil), r.known...)
	r.mu.Unlock()
	for _, configuration := range known {
		if configuration.problem != nil {
			findings = append(findings, *configuration.problem)
		}
		for _, t := range configuration.targets {
			for _, f := range r.judge(t) {
				f.Message = Ref{t.Kind, t.Name, t.Webhook}.String() + ": " + f.Message
				findings = append(findings, f)
			}
		}
	}
	return findings
}

// judge is what an API server finds behind one webhook.
func (r *Readiness) judge(t Target) []Finding {
	var chain []*x509.Certificate
	served, err := r.o.GetCertificate(&tls.ClientHelloInfo{ServerName: t.ServerName})
	if err == nil {
		for _, der := range served.Certificate {
			c, parseErr := x509.ParseCertificate(der)
			if parseErr != nil {
				err = parseErr
				break
			}
			chain = append(chain, c)
		}
	}
	if err != nil {
		return []Finding{{Code: NoCertificate, Severity: Error, Breaks: true, Message: err.Error(),
			Means: "no TLS connection comes about", Remedy: "give the server a certificate and its key"}}
	}
	return Verify(chain, withSystemRoots(t.Trust, r.o.SystemRoots), t.ServerName, r.o.Now())
}

// tell logs findings once per change.
func (r *Readiness) tell(ctx context.Context) {
	r.said.tell(ctx, r.o.Logger, "live bundle", r.Findings(), r.o.Now())
}
