package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tracehook/tracehook/webhook"
	"github.com/tracehook/tracehook/webhook/limit"
)

// Where `serve` gets its certificate from.
const (
	certsFiles   = "files"   // somebody else keeps the files up to date
	certsManaged = "managed" // this process keeps the Secret up to date if it leads
	certsSecret  = "secret"  // `tracehook certs authority` keeps the Secret up to date
)

// serveConfig is what `serve` can be told. Flags carry the names that kubebuilder
// projects use; where telemetry goes is said by the OTEL_* variables.
type serveConfig struct {
	processConfig
	WebhookAddress string // host:port

	Certs    string // files, managed, secret
	CertPath string // directory
	CertName string // file in it
	CertKey  string // file in it
	Cluster  certsConfig

	ClientCAFile string
	ClientNames  []string
	ClientAuth   string // observe, enforce

	HTTP2         bool
	MaxBodyBytes  int64
	AnnotationKey string

	MaxConnections   int
	MaxBytesInFlight int64
	ShutdownDelay    time.Duration
	ShutdownTimeout  time.Duration

	Stamp   string // sampled, always
	Lineage string // off, link, parent
	Trust   string // parent, link, none
	// MaxSampledRate is in requests a second; 0 means that there is no cap.
	MaxSampledRate float64
}

func (c *serveConfig) bind(f *pflag.FlagSet) {
	c.processConfig.bind(f)
	f.StringVar(&c.WebhookAddress, "webhook-bind-address", ":9443", "address on which admission calls are served, over TLS")
	f.StringVar(&c.Certs, "certs", certsFiles, "where the serving certificate comes from: files (--webhook-cert-path), managed (this server makes and renews it, and tells the API servers) or secret (\"tracehook certs authority\" does that elsewhere). With files and without --webhook-configuration no caBundle is looked at")
	f.StringVar(&c.CertPath, "webhook-cert-path", "/etc/tracehook/certs", "with --certs files: directory of the serving certificate; watched, and read again when it changes")
	f.StringVar(&c.CertName, "webhook-cert-name", "tls.crt", "file name of the serving certificate")
	f.StringVar(&c.CertKey, "webhook-cert-key", "tls.key", "file name of its key")
	c.Cluster.bindServing(f)
	c.Cluster.bindAuthority(f)
	f.StringVar(&c.ClientCAFile, "client-ca-file", "", "`FILE` of the CAs, PEM, that sign the API servers' client certificates; read again when it changes (default: nobody is asked for one)")
	f.StringArrayVar(&c.ClientNames, "client-name", nil, "`NAME` (common name, DNS name or URI) in the client certificates that are accepted; may be repeated (default: every name)")
	f.StringVar(&c.ClientAuth, "client-auth", "observe", "admission calls without an accepted client certificate: observe (count and serve them) or enforce (answer 403)")
	f.BoolVar(&c.HTTP2, "enable-http2", false, "serve HTTP/2 too; the API server does not use it for webhooks behind a Service")
	f.Int64Var(&c.MaxBodyBytes, "max-body-bytes", webhook.DefaultMaxBodyBytes, "largest AdmissionReview that is read, in bytes")
	f.IntVar(&c.MaxConnections, "max-connections", limit.DefaultConnections, "most open connections for admission calls; for one more, the one of least use is closed")
	f.Int64Var(&c.MaxBytesInFlight, "max-bytes-in-flight", limit.DefaultBytes, "most bytes that are held of requests under way; beyond, calls are answered 503 and the API server goes on without")
	f.DurationVar(&c.ShutdownDelay, "shutdown-delay", 5*time.Second, "how long to go on serving, not ready, after SIGTERM")
	f.DurationVar(&c.ShutdownTimeout, "shutdown-timeout", webhook.DefaultShutdownTimeout, "how long calls may take after that before their connections are cut")
	f.StringVar(&c.AnnotationKey, "annotation-key", webhook.DefaultAnnotationKey, "annotation that stores the trace context")
	f.StringVar(&c.Stamp, "stamp", "sampled", "which requests' contexts are stored: sampled, or always")
	f.StringVar(&c.Lineage, "lineage", "link", "what an object that a controller creates has to do with the cause of its owner: link (it stores that cause), parent (it stores a span of its own in the cause's trace) or off")
	f.StringVar(&c.Trust, "trust", string(webhook.TrustParent), "what the trace context in a request is to our span: its parent, a link, or none")
	f.Float64Var(&c.MaxSampledRate, "max-sampled-rate", 0, "most requests a second that are traced because their context says so; 0 for no limit")
}

// validate names every value that cannot be used. It does not look at files.
func (c *serveConfig) validate() error {
	errs := []error{checkAddress("webhook-bind-address", c.WebhookAddress)}
	if problems := validation.IsQualifiedName(c.AnnotationKey); len(problems) > 0 {
		errs = append(errs, fmt.Errorf("--annotation-key %q: want PREFIX/NAME such as %s", c.AnnotationKey, webhook.DefaultAnnotationKey))
	}
	if c.MaxBodyBytes <= 0 {
		errs = append(errs, fmt.Errorf("--max-body-bytes %d: want more than 0", c.MaxBodyBytes))
	}
	if c.MaxConnections <= 0 {
		errs = append(errs, fmt.Errorf("--max-connections %d: want more than 0", c.MaxConnections))
	}
	if c.MaxBytesInFlight < c.MaxBodyBytes/3*4 {
		errs = append(errs, fmt.Errorf("--max-bytes-in-flight %d: want %d or more, so that one body of --max-body-bytes fits into three quarters of it", c.MaxBytesInFlight, c.MaxBodyBytes/3*4))
	}
	if c.ShutdownDelay < 0 {
		errs = append(errs, fmt.Errorf("--shutdown-delay %s: want 0 or more", c.ShutdownDelay))
	}
	if c.ShutdownTimeout <= 0 {
		errs = append(errs, fmt.Errorf("--shutdown-timeout %s: want more than 0", c.ShutdownTimeout))
	}
	errs = append(errs,
		checkChoice("certs", c.Certs, certsFiles, certsManaged, certsSecret),
		checkChoice("client-auth", c.ClientAuth, "observe", "enforce"),
		checkChoice("stamp", c.Stamp, "sampled", "always"),
		checkChoice("lineage", c.Lineage, "link", "parent", "off"),
		checkChoice("trust", c.Trust, "parent", "link", "none"))
	if c.MaxSampledRate < 0 {
		errs = append(errs, fmt.Errorf("--max-sampled-rate %g: want 0 or more", c.MaxSampledRate))
	}
	if c.ClientCAFile == "" && (len(c.ClientNames) > 0 || c.ClientAuth == "enforce") {
		errs = append(errs, errors.New("--client-name and --client-auth enforce need --client-ca-file, which says whose certificates are accepted"))
	}
	if slices.Contains(c.ClientNames, "") {
		errs = append(errs, errors.New(`--client-name "": want a name; without the flag every name is accepted`))
	}
	errs = append(errs, c.Cluster.validate(), c.processConfig.validate())
	return errors.Join(errs...)
}

func (c *serveConfig) certFile() string { return filepath.Join(c.CertPath, c.CertName) }
func (c *serveConfig) keyFile() string  { return filepath.Join(c.CertPath, c.CertKey) }

// mostClusterName is in bytes: the name is in every batch of spans.
const mostClusterName = 253

// processConfig is what every command that goes on running can be told.
type processConfig struct {
	API            clusterFlags
	ClusterName    string // "": as OTEL_RESOURCE_ATTRIBUTES say
	HealthAddress  string // host:port, or "0" for none
	MetricsAddress string // host:port, or "0" for none
	MetricsSecure  bool
	MetricsAuth    bool
	FlushTimeout   time.Duration
	LogLevel       string // debug, info, warn, error
	LogFormat      string // json, text
}

func (c *processConfig) bind(f *pflag.FlagSet) {
	f.StringVar(&c.HealthAddress, "health-probe-bind-address", ":8081", `address of /healthz and /readyz; "0" for none`)
	f.StringVar(&c.MetricsAddress, "metrics-bind-address", ":8080", `address of /metrics; "0" for none`)
	f.BoolVar(&c.MetricsSecure, "metrics-secure", false, "serve /metrics over TLS; the shipped manifests do")
	f.BoolVar(&c.MetricsAuth, "metrics-auth", false, "answer /metrics only to those who may get it, as the API server knows them by their bearer token; needs --metrics-secure, and the shipped manifests have it")
	f.DurationVar(&c.FlushTimeout, "flush-timeout", 5*time.Second, "how long the last spans may take to be exported at the end")
	f.StringVar(&c.ClusterName, "cluster-name", "", "`NAME` of this cluster among others: k8s.cluster.name of spans and metrics, unless OTEL_RESOURCE_ATTRIBUTES has it")
	f.StringVar(&c.LogFormat, "log-format", "json", "json or text")
	f.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
	c.API.bindProcess(f)
}

func (c *processConfig) validate() error {
	errs := []error{c.API.validate()}
	for _, a := range []struct{ flag, address string }{
		{"health-probe-bind-address", c.HealthAddress},
		{"metrics-bind-address", c.MetricsAddress},
	} {
		if a.address != "0" {
			errs = append(errs, checkAddress(a.flag, a.address))
		}
	}
	if c.MetricsAuth && !c.MetricsSecure {
		errs = append(errs, errors.New("--metrics-auth needs --metrics-secure: bearer tokens must not travel in the clear"))
	}
	if len(c.ClusterName) > mostClusterName || strings.ContainsFunc(c.ClusterName, func(r rune) bool { return !unicode.IsPrint(r) }) {
		errs = append(errs, fmt.Errorf("--cluster-name %q: want at most %d printable characters", c.ClusterName, mostClusterName))
	}
	if c.FlushTimeout <= 0 {
		errs = append(errs, fmt.Errorf("--flush-timeout %s: want more than 0", c.FlushTimeout))
	}
	errs = append(errs,
		checkChoice("log-format", c.LogFormat, "json", "text"),
		checkChoice("log-level", c.LogLevel, "debug", "info", "warn", "error"))
	return errors.Join(errs...)
}

func checkAddress(flag, address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("--%s %q: want HOST:PORT or :PORT", flag, address)
	}
	return nil
}

func checkChoice(flag, value string, of ...string) error {
	if !slices.Contains(of, value) {
		return fmt.Errorf("--%s %q: want %s", flag, value, strings.Join(of, ", "))
	}
	return nil
}
