package main

// Whether the certificate in the files is valid now. In: the pair that is served, the clock. Out: a condition of being
// ready, a metric, a log record when it changes. Errors: why it is not.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/metric"
)

// validityEvery is how often the log is told of a change: nothing happens when a certificate expires.
const validityEvery = 10 * time.Second

// validity is of the chain that get returns.
type validity struct {
	get   getCertificate
	clock *apiClock
	log   *slog.Logger
}

// checkValidity says why a chain is not valid now, as an API server sees it whose clock may be ahead by skew.
func checkValidity(chain []*x509.Certificate, now time.Time, skew time.Duration) error {
	for i, c := range chain {
		what := "the serving certificate"
		if i > 0 {
			what = fmt.Sprintf("certificate %d of its chain", i+1)
		}
		if now.After(c.NotAfter) {
			return fmt.Errorf("%s expired on %s: renew it", what, c.NotAfter.UTC().Format(time.RFC3339))
		}
		if now.Add(skew).Before(c.NotBefore) {
			return fmt.Errorf("%s is not valid before %s: look at the clocks, or issue one that is valid now", what, c.NotBefore.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// ready is a check in controller-runtime's form.
func (v *validity) ready(*http.Request) error {
	served, err := v.get(&tls.ClientHelloInfo{})
	if err != nil {
		return err
	}
	if served == nil {
		return errors.New("there is no serving certificate")
	}
	var chain []*x509.Certificate
	for _, der := range served.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("parse the serving certificate: %w", err)
		}
		chain = append(chain, c)
	}
	return checkValidity(chain, v.clock.now(), v.clock.skew())
}

// measure makes the gauge.
func (v *validity) measure(provider metric.MeterProvider) error {
	_, err := provider.Meter(meterName).Int64ObservableGauge("tracehook.certificate.valid",
		metric.WithDescription("1 if the serving certificate is valid now, by the API server's clock where it is known; else 0."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			valid := int64(1)
			if v.ready(nil) != nil {
				valid = 0
			}
			o.Observe(valid)
			return nil
		}))
	if err != nil {
		return fmt.Errorf("create the gauge of validity: %w", err)
	}
	return nil
}

// run tells the log of changes until ctx ends.
func (v *validity) run(ctx context.Context) error {
	said := ""
	for {
		text := ""
		if err := v.ready(nil); err != nil {
			text = err.Error()
		}
		switch {
		case text == said:
		case text != "":
			v.log.Error("the serving certificate cannot be used; not ready", "reason", text)
		default:
			v.log.Info("the serving certificate can be used again")
		}
		said = text
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(validityEvery):
		}
	}
}
