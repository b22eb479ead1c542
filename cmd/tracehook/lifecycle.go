package main

// `lifecycle`: what becomes of stamped objects. In: flags, a cluster. Out: spans, by package webhook/cause/lifecycle. Errors: usage
// (exit 2), or what ended it.

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/webhook"
	"github.com/tracehook/tracehook/webhook/cause/lifecycle"
)

// lifecycleConfig are the flags of `lifecycle`.
type lifecycleConfig struct {
	processConfig
	AnnotationKey string
	Trust         string // parent, link, none
	MaxAge        time.Duration

	Namespace, Lease, MetricsCertPath         string
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration
}

func newLifecycleCommand() *cobra.Command {
	var config lifecycleConfig
	cmd := &cobra.Command{
		Use:   "lifecycle",
		Short: "Tell what became of traced objects: Pods, roll-outs, Jobs",
		Long: `Watch the Pods, Deployments, StatefulSets, DaemonSets and Jobs of a cluster that
carry their cause, and tell what becomes of them as spans below it: scheduled,
sandbox ready, images pulled, containers started, ready; rolled out; or which of
it failed and why. It needs no access to nodes and no tracing of the API server.

Only causes that are sampled get spans. Times are those that the cluster stores,
most of them in whole seconds; the attribute tracehook.time.resolution says so.

Of several that run, the one that holds the Lease tells. The Lease carries how far
has been told. After a restart only what has changed since is told again, and a
span that is told again has the same id. What was deleted meanwhile is not told.

Spans go where the OTEL_* environment variables say; by default to an
OpenTelemetry Collector at http://localhost:4318. While nobody takes them, they
wait.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.validate(); err != nil {
				return usageError(err)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return runLifecycle(ctx, config, cmd.ErrOrStderr())
		},
	}
	config.bind(cmd.Flags())
	return cmd
}

func (c *lifecycleConfig) bind(f *pflag.FlagSet) {
	c.processConfig.bind(f)
	namespace := os.Getenv("POD_NAMESPACE")
	if namespace == "" {
		namespace = defaultNamespace
	}
	f.StringVar(&c.AnnotationKey, "annotation-key", webhook.DefaultAnnotationKey, "annotation that holds the trace context")
	f.StringVar(&c.Trust, "trust", string(lifecycle.TrustParent), "what the trace context on an object is to our spans: their parent, a link, or none")
	f.DurationVar(&c.MaxAge, "max-age", lifecycle.DefaultMaxAge, "nothing that ended longer ago is told; what ends longer after its cause gets a trace of its own, linked")
	f.StringVarP(&c.Namespace, "namespace", "n", namespace, "`NAMESPACE` of the Lease; $POD_NAMESPACE if that is set")
	f.StringVar(&c.Lease, "leader-elect-resource-name", "tracehook-lifecycle", "`NAME` of the Lease of the one that tells")
	f.StringVar(&c.MetricsCertPath, "metrics-cert-path", "/etc/tracehook/certs", "with --metrics-secure: directory of tls.crt and tls.key for /metrics; they may come later, and are read again when they change")
	f.DurationVar(&c.LeaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long the others wait for a leader that is silent")
	f.DurationVar(&c.RenewDeadline, "leader-elect-renew-deadline", 10*time.Second, "how long a leader tries to renew its Lease before it gives up")
	f.DurationVar(&c.RetryPeriod, "leader-elect-retry-period", 2*time.Second, "time between two tries to get or renew the Lease")
}

func (c *lifecycleConfig) validate() error {
	var errs []error
	if problems := validation.IsQualifiedName(c.AnnotationKey); len(problems) > 0 {
		errs = append(errs, fmt.Errorf("--annotation-key %q: want PREFIX/NAME such as %s", c.AnnotationKey, webhook.DefaultAnnotationKey))
	}
	if c.MaxAge <= 0 {
		errs = append(errs, fmt.Errorf("--max-age %s: want more than 0", c.MaxAge))
	}
	if len(validation.IsDNS1123Label(c.Namespace)) > 0 {
		errs = append(errs, fmt.Errorf("--namespace %q: want a DNS label", c.Namespace))
	}
	if len(validation.IsDNS1123Subdomain(c.Lease)) > 0 {
		errs = append(errs, fmt.Errorf("--leader-elect-resource-name %q: want a DNS name: lower-case letters, digits, '-' and '.'", c.Lease))
	}
	if c.RetryPeriod <= 0 || float64(c.RenewDeadline) <= leaderelection.JitterFactor*float64(c.RetryPeriod) || c.LeaseDuration <= c.RenewDeadline {
		errs = append(errs, fmt.Errorf("--leader-elect-lease-duration %s, --leader-elect-renew-deadline %s, --leader-elect-retry-period %s: want each longer than the next, the deadline by more than a fifth", c.LeaseDuration, c.RenewDeadline, c.RetryPeriod))
	}
	errs = append(errs, checkChoice("trust", c.Trust, string(lifecycle.TrustParent), string(lifecycle.TrustLink), string(lifecycle.TrustNone)), c.processConfig.validate())
	return errors.Join(errs...)
}

// runLifecycle runs until ctx ends, what has been seen is told and the Lease is given back.
func runLifecycle(ctx context.Context, config lifecycleConfig, stderr io.Writer) error {
	log := newLogger(stderr, config.LogLevel, config.LogFormat)
	api, err := config.API.process()
	if err != nil {
		return usageError(fmt.Errorf("find the API server for lifecycle: %w", err))
	}
	end := make(chan struct{})
	telemetry, flush, err := startProcessTelemetry(ctx, "tracehook-lifecycle", config.processConfig, telemetryOptions{IDs: wantedIDs{}, Patient: end}, log)
	if err != nil {
		return usageError(err)
	}
	defer flush()
	defer close(end)
	teller, err := newTeller(config, api, telemetry, log)
	if err != nil {
		return usageError(err)
	}
	probes, err := newProbes(config.HealthAddress, readiness{checks: []check{{"objects", teller.ready}}}, telemetry.meterProvider)
	if err != nil {
		return err
	}
	certificate := &lateFiles{dir: config.MetricsCertPath, log: log}
	metrics, err := newMetricsServer(config.processConfig, certificate.get, telemetry.meterProvider, log)
	if err != nil {
		return usageError(err)
	}

	// Probes and metrics outlive the work, as in serve.
	beside, stopBeside := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBeside()
	group, working := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer stopBeside()
		return wrap("tell what becomes of objects", teller.run(working))
	})
	if probes != nil {
		group.Go(func() error { return wrap("serve probes", probes.Start(beside)) })
	}
	if metrics != nil {
		group.Go(func() error { return wrap("serve metrics", metrics.Start(beside)) })
	}
	if metrics != nil && config.MetricsSecure {
		group.Go(func() error { return wrap("watch the certificate's files", certificate.run(beside)) })
	}
	log.Info("waiting to lead", "version", version(), "namespace", config.Namespace, "lease", config.Lease,
		"health", config.HealthAddress, "metrics", config.MetricsAddress)
	err = group.Wait()
	log.Info("stopped")
	return err
}

// lateFiles is the certificate of /metrics, which the shipped manifests mount from the webhook's Secret. That comes later than
// the Pod where the webhook makes it.
type lateFiles struct {
	dir    string
	log    *slog.Logger
	source atomic.Pointer[certs.FileSource]
}

func (f *lateFiles) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if source := f.source.Load(); source != nil {
		return source.GetCertificate(hello)
	}
	return nil, fmt.Errorf("there is no certificate in %s yet", f.dir)
}

func (f *lateFiles) run(ctx context.Context) error {
	for ctx.Err() == nil {
		source, err := certs.NewFileSource(certs.FileSourceOptions{
			Certificate: filepath.Join(f.dir, "tls.crt"), Key: filepath.Join(f.dir, "tls.key"), Logger: f.log,
		})
		if err == nil {
			f.source.Store(source)
			return source.Start(ctx)
		}
		f.log.Debug("waiting for the certificate of /metrics", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// teller runs one Controller after the other, while it holds the Lease.
type teller struct {
	config    lifecycleConfig
	client    kubernetes.Interface
	lease     *markedLease
	telemetry *telemetry
	log       *slog.Logger

	leading    atomic.Bool
	controller atomic.Pointer[lifecycle.Controller]
}

func newTeller(config lifecycleConfig, api *rest.Config, telemetry *telemetry, log *slog.Logger) (*teller, error) {
	api = rest.CopyConfig(api)
	api.ContentType = "application/vnd.kubernetes.protobuf" // a third of JSON's memory and time
	api.AcceptContentTypes = api.ContentType + ",application/json"
	client, err := kubernetes.NewForConfig(api)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	// A container that starts again in its Pod goes on with its Lease at once.
	identity := os.Getenv("POD_NAME")
	if identity == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("find the name of this host: %w", err)
		}
		identity = host + "_" + rand.Text()
	}
	return &teller{
		config: config, client: client, telemetry: telemetry, log: log,
		lease: &markedLease{client: client.CoordinationV1().Leases(config.Namespace), name: config.Lease, identity: identity, log: log},
	}, nil
}

// ready is for the probe: who does not lead has nothing to read.
func (t *teller) ready(*http.Request) error {
	if c := t.controller.Load(); t.leading.Load() && (c == nil || !c.Synced()) {
		return errors.New("the objects of the cluster have not all been read")
	}
	return nil
}

// run tells whenever it leads. The Lease is given back when the last Controller has ended, with its last mark.
func (t *teller) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := t.term(ctx); err != nil {
			return err
		}
	}
	return nil
}

// term waits for the Lease and tells until it is lost, or ctx ends.
func (t *teller) term(ctx context.Context) error {
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	over := make(chan error, 1)
	var began atomic.Bool
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: t.lease, ReleaseOnCancel: true, Name: t.config.Lease,
		LeaseDuration: t.config.LeaseDuration, RenewDeadline: t.config.RenewDeadline, RetryPeriod: t.config.RetryPeriod,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				began.Store(true)
				defer release()
				working, stop := context.WithCancel(leading)
				defer stop()
				defer context.AfterFunc(ctx, stop)()
				over <- t.tell(working)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("set the leader election up: %w", err)
	}
	// Before it leads nothing has to be finished.
	defer context.AfterFunc(ctx, func() {
		if !began.Load() {
			release()
		}
	})()
	elector.Run(holding)
	if !began.Load() {
		return nil
	}
	return <-over
}

// tell runs Controllers until ctx ends.
func (t *teller) tell(ctx context.Context) error {
	t.leading.Store(true)
	defer t.leading.Store(false)
	t.log.Info("leading", "identity", t.lease.identity)
	for ctx.Err() == nil {
		controller, err := lifecycle.New(lifecycle.Options{
			Client: t.client, Keys: []string{t.config.AnnotationKey}, Trust: lifecycle.Trust(t.config.Trust), MaxAge: t.config.MaxAge,
			Mark: t.lease.last(), Told: t.lease.told, Flush: t.telemetry.flush,
			TracerProvider: t.telemetry.tracerProvider, MeterProvider: t.telemetry.meterProvider, Logger: t.log,
		})
		if err != nil {
			return err
		}
		t.controller.Store(controller)
		err = controller.Run(ctx)
		t.controller.Store(nil)
		switch {
		case errors.Is(err, lifecycle.ErrMark):
			t.log.Warn("all that is young is told again", "reason", err)
			t.lease.begin()
		case errors.Is(err, lifecycle.ErrBehind):
			t.log.Warn("waiting for the Collector, then going on where it stopped taking spans", "reason", err)
			_ = t.telemetry.flush(ctx) // its errors have been logged
		case err != nil && ctx.Err() == nil:
			return err
		}
	}
	return nil
}
