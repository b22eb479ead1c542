package main

// Where `serve` gets its certificate from, and all that belongs to it: who watches it, who keeps it up to
// date, and when it will do. Errors: files that cannot be read, no API server configured, wrong options.

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
)

// getCertificate is the standard library's tls.Config.GetCertificate.
type getCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// task runs until its context ends.
type task struct {
	doing string // for its error: "watch the certificate"
	run   func(context.Context) error
}

// servingCertificate is a certificate with what belongs to it.
type servingCertificate struct {
	get   getCertificate
	clock *apiClock
	// present and trusted are conditions of being ready. Nil: always met.
	present, trusted func(*http.Request) error
	// warnings are what deserves a look though calls work.
	warnings []func() []certs.Finding
	// watchers live as long as connections are answered.
	watchers []task
	// keeper ends when the shutdown begins, so that another process leads at once. Nil: nobody in this process.
	keeper *task
	// prove answers those who try the next certificate. Nil: nobody does.
	prove http.Handler
}

// newServingCertificate starts nothing yet and asks no API server.
func newServingCertificate(config serveConfig, telemetry *telemetry, log *slog.Logger) (*servingCertificate, error) {
	c := &servingCertificate{}
	if err := c.tellTime(config, log); err != nil {
		return c, err
	}
	if config.Certs == certsManaged || config.Certs == certsSecret {
		return c, c.fromSecret(config, telemetry, log)
	}
	return c, c.fromFiles(config, telemetry, log)
}

// tellTime takes the clock of the API server, where serve calls one at all.
func (c *servingCertificate) tellTime(config serveConfig, log *slog.Logger) (err error) {
	var api *rest.Config
	configurations, _ := config.Cluster.configurations() // an error is told by who needs them
	if config.Certs == certsManaged || config.Certs == certsSecret || config.Lineage != "off" || len(configurations) > 0 {
		api, _ = config.API.process()
	}
	if c.clock, err = newAPIClock(api, log); err != nil {
		return err
	}
	c.watchers = append(c.watchers, task{"ask the API server what time it is", c.clock.run})
	return nil
}

// arrives returns when there is a certificate, or false when ctx ends before. A server that listens without one answers
// every caller with a TLS error.
func (c *servingCertificate) arrives(ctx context.Context) bool {
	for c.present != nil && c.present(nil) != nil {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
	return true
}

func (c *servingCertificate) fromFiles(config serveConfig, telemetry *telemetry, log *slog.Logger) error {
	files, err := certs.NewFileSource(certs.FileSourceOptions{Certificate: config.certFile(), Key: config.keyFile(), Logger: log})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (`tracehook certs issue` makes one)", err)
	case err != nil:
		return err
	}
	c.get = files.GetCertificate
	valid := &validity{get: c.get, clock: c.clock, log: log}
	if err := valid.measure(telemetry.meterProvider); err != nil {
		return err
	}
	c.present = valid.ready
	c.watchers = append(c.watchers, task{"watch the certificate", files.Start}, task{"watch the certificate's validity", valid.run})
	configurations, err := config.Cluster.configurations()
	if err != nil || len(configurations) == 0 {
		return err
	}
	cluster, err := connect(config.API, "--webhook-configuration")
	if err != nil {
		return err
	}
	return c.compare(config, cluster, configurations, telemetry, log)
}

func (c *servingCertificate) fromSecret(config serveConfig, telemetry *telemetry, log *slog.Logger) error {
	cluster, err := connect(config.API, "--certs "+config.Certs)
	if err != nil {
		return err
	}
	targets, err := config.Cluster.targets()
	if err != nil {
		return err
	}
	source, err := certs.NewSecretSource(certs.SourceOptions{
		Clients: cluster.clients, Namespace: config.Cluster.Namespace, Secret: config.Cluster.ServingSecret,
		ProofName: config.Cluster.proofName(),
		Logger:    log, MeterProvider: telemetry.meterProvider, Now: c.clock.now,
	})
	if err != nil {
		return err
	}
	c.get = source.GetCertificate
	if err := (&validity{get: c.get, clock: c.clock, log: log}).measure(telemetry.meterProvider); err != nil {
		return err
	}
	c.watchers = append(c.watchers, task{"watch the certificate's Secret", source.Start})
	c.present = func(*http.Request) error {
		_, err := source.GetCertificate(&tls.ClientHelloInfo{ServerName: config.Cluster.serverName()})
		return err
	}
	c.warnings = append(c.warnings, source.Findings)
	if config.Cluster.ProofService != "" {
		c.prove = certs.ProofHandler(source.GetCertificate)
	}
	if config.Certs == certsManaged {
		authority, err := newAuthority(config.Cluster, cluster, telemetry, log)
		if err != nil {
			return err
		}
		c.keeper = &task{"keep the certificates", authority.Start}
	}
	return c.compare(config, cluster, targets, telemetry, log)
}

// compare makes it a condition of being ready that the live bundles trust the certificate.
func (c *servingCertificate) compare(config serveConfig, cluster *cluster, configurations []certs.Ref, telemetry *telemetry, log *slog.Logger) error {
	live, err := certs.NewReadiness(certs.ReadinessOptions{
		Clients: cluster.clients, Configurations: configurations, GetCertificate: c.get,
		Logger: log, MeterProvider: telemetry.meterProvider, Now: c.clock.now,
	})
	if err != nil {
		return err
	}
	c.watchers = append(c.watchers, task{"watch the webhook configurations", live.Start})
	c.trusted = live.Ready
	c.warnings = append(c.warnings, live.Findings)
	return nil
}

// cluster is a way to an API server.
type cluster struct {
	rest    *rest.Config
	clients kubernetes.Interface
	dynamic dynamic.Interface
}

// connect finds the cluster for a command that goes on running; nobody is called yet.
func connect(flags clusterFlags, reason string) (*cluster, error) {
	config, err := flags.process()
	if err != nil {
		return nil, fmt.Errorf("find the API server for %s: %w", reason, err)
	}
	return newCluster(config)
}

func newCluster(config *rest.Config) (*cluster, error) {
	c := &cluster{rest: config}
	var err error
	if c.clients, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return c, nil
}

// newAuthority wires who keeps CA and certificate up to date.
func newAuthority(config certsConfig, cluster *cluster, telemetry *telemetry, log *slog.Logger) (*certs.Authority, error) {
	targets, err := config.targets()
	if err != nil {
		return nil, err
	}
	names, err := config.names()
	if err != nil {
		return nil, err
	}
	service, port, err := config.service()
	if err != nil {
		return nil, err
	}
	publisher, err := certs.NewPublisher(certs.PublisherOptions{Dynamic: cluster.dynamic})
	if err != nil {
		return nil, err
	}
	identity := os.Getenv("POD_NAME")
	if identity == "" {
		if identity, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("find the name of this host: %w", err)
		}
	}
	identity += "_" + rand.Text() // a restarted container is another candidate
	config.holder = certs.Holder{Namespace: config.Namespace, Lease: certs.DefaultLeaseName, Identity: identity}
	prover, err := newProver(config, cluster, targets, telemetry, log)
	if err != nil {
		return nil, err
	}
	return certs.NewAuthority(certs.AuthorityOptions{
		Clients: cluster.clients, Namespace: config.Namespace,
		CASecret: config.CASecret, ServingSecret: config.ServingSecret,
		Names: names, Targets: targets, Publisher: publisher, Prover: prover,
		Endpoints:  certs.ServiceEndpoints{Clients: cluster.clients, Namespace: config.Namespace, Service: service, Port: port},
		CALifetime: config.CALifetime, LeafLifetime: config.LeafLifetime, Soak: config.Soak,
		Identity:      identity,
		LeaseDuration: config.LeaseDuration, RenewDeadline: config.RenewDeadline, RetryPeriod: config.RetryPeriod,
		Dynamic: cluster.dynamic,
		Logger:  log, TracerProvider: telemetry.tracerProvider, MeterProvider: telemetry.meterProvider,
	})
}

// newProver returns nil where nothing is to be proven. The canary's own configuration is a MutatingWebhookConfiguration, which tells
// nothing about when one of another kind arrives.
func newProver(config certsConfig, cluster *cluster, targets []certs.Ref, telemetry *telemetry, log *slog.Logger) (certs.Prover, error) {
	if config.ProofService == "" || config.ProofConfiguration == "" {
		return nil, nil
	}
	canary, err := certs.NewCanary(certs.CanaryOptions{
		Config: cluster.rest, APIServers: config.APIServers,
		Namespace: config.Namespace, Configuration: config.ProofConfiguration,
		Logger: log, MeterProvider: telemetry.meterProvider,
	})
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(targets, func(ref certs.Ref) bool { return ref.Kind == certs.KindValidating }) {
		return canary, nil
	}
	barrier, err := certs.NewBarrier(certs.BarrierOptions{
		Config: cluster.rest, APIServers: config.APIServers, Kind: certs.KindValidating, Namespace: config.Namespace, Holder: config.holder,
		Logger: log, MeterProvider: telemetry.meterProvider,
	})
	if err != nil {
		return nil, err
	}
	return certs.Provers{canary, barrier}, nil
}
