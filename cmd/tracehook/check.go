package main

// `tracehook check`. In: flags as kubectl has them. Out: one line a check, or one document. Errors: exit 1 where a check failed,
// exit 2 for wrong flags and a cluster that does not answer.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	checks "github.com/tracehook/tracehook/cmd/tracehook/check" // check is another thing here
)

const (
	// checkEvery is how long --wait waits between two rounds.
	checkEvery = 2 * time.Second
	// checkRound is the longest that a round may take.
	checkRound = 90 * time.Second
)

// checkOptions are the flags of `check`.
type checkOptions struct {
	clusterFlags
	wait       time.Duration
	output     string
	installed  bool
	tryIn      string
	apiServers []string
	inCluster  bool
	store      storeFlags
}

func newCheckCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say whether tracehook can be installed here, or whether what is installed works",
		Long: `Before the install: is the cluster new enough, may you install, does the API server
trace, and is something known to stand in the way at this provider? Afterwards: does a
create reach each webhook and come back stamped, is every replica Ready and trusted, do
spans arrive, and whose traces go on?

It prints one line a check (ok, warn, fail, skip), and below a red one what to do. What
you may not read is skipped, with the right that is missing. Creates are dry runs: they
leave nothing behind. From outside the cluster Pods are often out of reach;
deploy/components/check runs the same inside.

Exit codes: 0 no check failed, 1 one did, 2 it could not run.`,
		Example: `  tracehook check
  tracehook check --installed --wait 2m
  tracehook check --as system:serviceaccount:argocd:argocd-application-controller
  tracehook check -o json --store jaeger=http://localhost:16686`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd, nil, nil)
			defer stop()
			return signalled(ctx, o.run(ctx, time.Now, cmd.OutOrStdout()))
		},
	}
	namespace := os.Getenv("POD_NAMESPACE")
	if namespace == "" {
		namespace = defaultNamespace
	}
	f := cmd.Flags()
	o.bind(cmd, namespaceUsage{value: namespace, usage: "`NAMESPACE` of tracehook, where no webhook configuration names it; $POD_NAMESPACE if that is set"})
	f.DurationVar(&o.wait, "wait", 0, "repeat until no check fails, for this long at most; after the first round only changes are printed")
	f.StringVarP(&o.output, "output", "o", "text", "`FORMAT`: text, json or yaml; with --wait the last two are written once, at the end")
	f.BoolVar(&o.installed, "installed", false, "tracehook must be there: without it the check fails")
	f.StringVar(&o.tryIn, "try-in", "", "`NAMESPACE` for dry runs (default: one that the webhook's namespaceSelector takes)")
	f.StringArrayVar(&o.apiServers, "api-server", nil, "`URL` of an API server to make dry runs at, beside the kubeconfig's; may be repeated (default in a Pod: each of Service default/kubernetes)")
	f.BoolVar(&o.inCluster, "in-cluster", false, "Pods are within reach from here: one that does not answer is a failure (default in a Pod: true)")
	o.store.bind(f)
	return cmd
}

func (o *checkOptions) validate() error {
	errs := []error{checkChoice("output", o.output, "text", "json", "yaml"), o.clusterFlags.validate()}
	if o.wait < 0 {
		errs = append(errs, fmt.Errorf("--wait %s: want 0 or more", o.wait))
	}
	if o.tryIn != "" && len(validation.IsDNS1123Label(o.tryIn)) > 0 {
		errs = append(errs, fmt.Errorf("--try-in %q: want the name of a namespace", o.tryIn))
	}
	for _, raw := range o.apiServers {
		if u, err := url.Parse(raw); err != nil || u.Scheme != "https" || u.Host == "" {
			errs = append(errs, fmt.Errorf("--api-server %q: want https://HOST[:PORT]", raw))
		}
	}
	return errors.Join(errs...)
}

// run makes rounds until no check fails or the time is over.
func (o *checkOptions) run(ctx context.Context, now func() time.Time, out io.Writer) error {
	if err := o.validate(); err != nil {
		return usageError(err)
	}
	store, err := o.store.open(os.Getenv)
	if err != nil {
		return usageError(err)
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // client-go logs what it returns as an error
	config, err := o.config()
	if err != nil {
		return usageError(err)
	}
	config.UserAgent = "tracehook-check"
	if config.Timeout == 0 {
		config.Timeout = 15 * time.Second
	}
	options := checks.Options{
		Config: config, Namespace: *o.Namespace, MustBeInstalled: o.installed, TryIn: o.tryIn, APIServers: o.apiServers,
		InCluster: o.inCluster || inPod(config), Store: store, Now: now,
	}
	deadline := now().Add(o.wait)
	text := checks.Printer{Out: out, Colour: colours(out)}
	for {
		report, err := checkOnce(ctx, options)
		if cause := context.Cause(ctx); cause != nil {
			return cause // what is there is not whole
		}
		over := now().Add(checkEvery).After(deadline)
		done := err == nil && !report.Failed() || over
		switch {
		case err != nil && done:
			return usageError(clusterHint(err))
		case err != nil: // the API server may come
		case o.output == "text":
			err = text.Print(report)
		case done:
			err = writeMachine(out, o.output, report)
		}
		switch {
		case err != nil && done:
			return usageError(fmt.Errorf("write the report: %w", err))
		case done && report.Failed():
			return &exitError{code: exitFailed}
		case done:
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(checkEvery):
		}
	}
}

// checkOnce is one round. An error means that the API server does not answer.
func checkOnce(ctx context.Context, o checks.Options) (checks.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, checkRound)
	defer cancel()
	cluster, err := checks.New(o)
	if err != nil {
		return checks.Report{}, err
	}
	if _, err := cluster.Version(ctx); err != nil {
		return checks.Report{}, err
	}
	return checks.Run(ctx, cluster, o.Now()), nil
}

// inPod says whether the cluster was found by the Pod's ServiceAccount.
func inPod(config *rest.Config) bool {
	own, err := rest.InClusterConfig()
	return err == nil && own.Host == config.Host
}
