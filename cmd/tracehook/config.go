package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tracehook/tracehook/webhook"
)

// serveConfig is what `serve` can be told. Flags carry the names that kubebuilder
// projects use; where telemetry goes is said by the OTEL_* variables.
type serveConfig struct {
	WebhookAddress string // host:port
	HealthAddress  string // host:port
	MetricsAddress string // host:port, or "0" for none

	CertPath string // directory
	CertName string // file in it
	CertKey  string // file in it

	HTTP2         bool
	MaxBodyBytes  int64
	ShutdownDelay time.Duration
	FlushTimeout  time.Duration
	AnnotationKey string

	Stamp   string // sampled, always
	Lineage string // off, link, parent
	Trust   string // parent, link, none
	// MaxSampledRate is in requests a second; 0 means that there is no cap.
	MaxSampledRate float64

	LogLevel  string // debug, info, warn, error
	LogFormat string // json, text
}

func (c *serveConfig) bind(f *pflag.FlagSet) {
	f.StringVar(&c.WebhookAddress, "webhook-bind-address", ":9443", "address on which admission calls are served, over TLS")
	f.StringVar(&c.HealthAddress, "health-probe-bind-address", ":8081", "address of /healthz and /readyz")
	f.StringVar(&c.MetricsAddress, "metrics-bind-address", ":8080", `address of /metrics; "0" for none`)
	f.StringVar(&c.CertPath, "webhook-cert-path", "/etc/tracehook/certs", "directory of the serving certificate; watched, and read again when it changes")
	f.StringVar(&c.CertName, "webhook-cert-name", "tls.crt", "file name of the serving certificate")
	f.StringVar(&c.CertKey, "webhook-cert-key", "tls.key", "file name of its key")
	f.BoolVar(&c.HTTP2, "enable-http2", false, "serve HTTP/2 too; the API server does not use it for webhooks behind a Service")
	f.Int64Var(&c.MaxBodyBytes, "max-body-bytes", webhook.DefaultMaxBodyBytes, "largest AdmissionReview that is read, in bytes")
	f.DurationVar(&c.ShutdownDelay, "shutdown-delay", 5*time.Second, "how long to go on serving, not ready, after SIGTERM")
	f.DurationVar(&c.FlushTimeout, "flush-timeout", 5*time.Second, "how long the last spans may take to be exported at the end")
	f.StringVar(&c.AnnotationKey, "annotation-key", webhook.DefaultAnnotationKey, "annotation that stores the trace context")
	f.StringVar(&c.Stamp, "stamp", "sampled", "which requests' contexts are stored: sampled, or always")
	f.StringVar(&c.Lineage, "lineage", "link", "what an object that a controller creates has to do with the cause of its owner: link (it stores that cause), parent (it stores a span of its own in the cause's trace) or off")
	f.StringVar(&c.Trust, "trust", string(webhook.TrustParent), "what the trace context in a request is to our span: its parent, a link, or none")
	f.Float64Var(&c.MaxSampledRate, "max-sampled-rate", 0, "most requests a second that are traced because their context says so; 0 for no limit")
	f.StringVar(&c.LogFormat, "log-format", "json", "json or text")
	f.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
}

// validate names every value that cannot be used. It does not look at files.
func (c *serveConfig) validate() error {
	var errs []error
	for _, a := range []struct{ flag, address string }{
		{"webhook-bind-address", c.WebhookAddress},
		{"health-probe-bind-address", c.HealthAddress},
		{"metrics-bind-address", c.MetricsAddress},
	} {
		if a.flag == "metrics-bind-address" && a.address == "0" {
			continue
		}
		if _, _, err := net.SplitHostPort(a.address); err != nil {
			errs = append(errs, fmt.Errorf("--%s %q: want HOST:PORT or :PORT", a.flag, a.address))
		}
	}
	if problems := validation.IsQualifiedName(c.AnnotationKey); len(problems) > 0 {
		errs = append(errs, fmt.Errorf("--annotation-key %q: want PREFIX/NAME such as %s", c.AnnotationKey, webhook.DefaultAnnotationKey))
	}
	if c.MaxBodyBytes <= 0 {
		errs = append(errs, fmt.Errorf("--max-body-bytes %d: want more than 0", c.MaxBodyBytes))
	}
	if c.ShutdownDelay < 0 {
		errs = append(errs, fmt.Errorf("--shutdown-delay %s: want 0 or more", c.ShutdownDelay))
	}
	if c.FlushTimeout <= 0 {
		errs = append(errs, fmt.Errorf("--flush-timeout %s: want more than 0", c.FlushTimeout))
	}
	for _, choice := range []struct {
		flag, value string
		of          []string
	}{
		{"stamp", c.Stamp, []string{"sampled", "always"}},
		{"lineage", c.Lineage, []string{"link", "parent", "off"}},
		{"trust", c.Trust, []string{"parent", "link", "none"}},
		{"log-format", c.LogFormat, []string{"json", "text"}},
		{"log-level", c.LogLevel, []string{"debug", "info", "warn", "error"}},
	} {
		if !slices.Contains(choice.of, choice.value) {
			errs = append(errs, fmt.Errorf("--%s %q: want %s", choice.flag, choice.value, strings.Join(choice.of, ", ")))
		}
	}
	if c.MaxSampledRate < 0 {
		errs = append(errs, fmt.Errorf("--max-sampled-rate %g: want 0 or more", c.MaxSampledRate))
	}
	return errors.Join(errs...)
}

func (c *serveConfig) certFile() string { return filepath.Join(c.CertPath, c.CertName) }
func (c *serveConfig) keyFile() string  { return filepath.Join(c.CertPath, c.CertKey) }
