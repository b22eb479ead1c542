package main

// `certs migrate`. In: a target, where it shall go, a cluster. Out: what was seen and the plan; with --apply each step as
// it is taken, with its proof. Errors: exit 1 when findings remain or a step failed, exit 2 when it could not begin.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/tracehook/tracehook/certs"
)

// certsMigrateOptions are the flags of `certs migrate`.
type certsMigrateOptions struct {
	clusterFlags
	to            string
	secret        string
	newSecret     string
	stateSecret   string
	apply, dryRun bool
	abort         bool
	soak          time.Duration
	wait          time.Duration
	lifetime      time.Duration
	clusterDomain string
	apiServers    []string
	onAPIServer   bool
	output        string
}

func newCertsMigrateCommand() *cobra.Command {
	var o certsMigrateOptions
	cmd := &cobra.Command{
		Use:   "migrate KIND/NAME[/WEBHOOK]",
		Short: "Replace the certificate of a webhook or APIService without a failed request, or repair it",
		Long: `Replace the certificate of any webhook, conversion webhook or APIService, whoever serves it, in
the one order that loses no request: trust both, prove it on every API server, switch,
shake hands with every endpoint, wait, trust the new one alone, prove it again.

Without --apply nothing is written: the command shows what it sees, where the target
starts from, and each step with its reason, its proof and its way back. Ctrl-C and SIGTERM
end a run after it has removed what it made for a proof; the same command goes on.
--abort takes it back. What a killed run has left, the next one removes.

  --to issued        a new CA and certificate, made here (default)
  --to cert-manager  what cert-manager writes to --new-secret
  --to managed       tracehook's authority, which then renews it

With --secret the new pair is written to the Secret that the server reads. Without it the
pair is in --state-secret, the command says what you have to do, and waits until every
endpoint serves it. Objects that lead to the same server are migrated along.

Exit codes: 0 healthy, or done; 1 findings remain, or a step failed; 2 it could not begin;
130 or 143 ended by a signal.`,
		Example: `  tracehook certs migrate validatingwebhookconfiguration/policy
  tracehook certs migrate validatingwebhookconfiguration/policy --secret policy/serving-cert --apply
  tracehook certs migrate apiservice/v1beta1.metrics.k8s.io --secret kube-system/metrics-server --apply
  tracehook certs migrate validatingwebhookconfiguration/policy --to cert-manager --new-secret policy/by-cert-manager --apply`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(fmt.Errorf("whose certificate? KIND/NAME is missing (see `%s --help`)", cmd.CommandPath()))
			}
			return noArguments(cmd, args[1:])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return migrateCerts(cmd, o, args[0])
		},
	}
	f := cmd.Flags()
	o.bind(cmd, namespaceUsage{usage: "`NAMESPACE` of the Secrets whose flags give a NAME alone"})
	f.StringVar(&o.to, "to", "", "`DESTINATION`: issued, cert-manager or managed (default issued if anything is wrong, else nothing to do)")
	f.StringVar(&o.secret, "secret", "", "`NAMESPACE/NAME` of the Secret that the server reads; tls.crt, tls.key and ca.crt are written there")
	f.StringVar(&o.newSecret, "new-secret", "", "`NAMESPACE/NAME` of the Secret that cert-manager writes, which no server reads yet")
	f.StringVar(&o.stateSecret, "state-secret", "", "`NAMESPACE/NAME` of the Secret that keeps the new pair and how far it has come (default tracehook-migrate-KIND-NAME beside the Service)")
	f.BoolVar(&o.apply, "apply", false, "do it")
	f.BoolVar(&o.dryRun, "dry-run", false, "show the plan only, which is the default")
	f.BoolVar(&o.abort, "abort", false, "take an interrupted migration back (with --apply)")
	f.DurationVar(&o.soak, "soak", 100*time.Second, "how long both are trusted after all endpoints serve the new one; API servers keep idle connections for 90 s. And, but for no longer than a minute, how long requests that began before the proof are given")
	f.DurationVar(&o.wait, "step-timeout", 10*time.Minute, "time for one step, such as until every endpoint serves the new certificate")
	f.DurationVar(&o.lifetime, "lifetime", certs.DefaultMigrateLifetime, "how long the new CA and certificate are valid; nobody renews them but another migration")
	f.StringVar(&o.clusterDomain, "cluster-domain", certs.DefaultClusterDomain, "DNS `DOMAIN` of the cluster")
	f.BoolVar(&o.onAPIServer, "on-api-server", false, "this runs in the network of the API server, so that a loopback address in a URL means the same here")
	f.StringArrayVar(&o.apiServers, "api-server", nil, "`URL` of an API server, once for each of them (default the endpoints of Service default/kubernetes)")
	f.StringVarP(&o.output, "output", "o", "table", "`FORMAT`: table, json or yaml")
	cmd.ValidArgsFunction = o.completeTarget
	return cmd
}

// migrateDocument is what machines read.
type migrateDocument struct {
	metav1.TypeMeta `json:",inline"`
	Plan            certs.MigratePlan     `json:"plan"`
	Targets         []certs.MigrateTarget `json:"targets,omitempty"` // before
	Applied         bool                  `json:"applied"`
	Error           string                `json:"error,omitempty"`
}

// write gives a list that is empty, not null, where nothing is to be done.
func (d migrateDocument) write(w io.Writer, format string) error {
	if d.Plan.Steps == nil {
		d.Plan.Steps = []certs.PlannedStep{}
	}
	return writeMachine(w, format, d)
}

func (o *certsMigrateOptions) validate() error {
	errs := []error{checkChoice("output", o.output, "table", "json", "yaml"), o.clusterFlags.validate()}
	o.secret, o.newSecret, o.stateSecret = o.in(o.secret), o.in(o.newSecret), o.in(o.stateSecret)
	if o.to != "" {
		errs = append(errs, checkChoice("to", o.to, string(certs.ToIssued), string(certs.ToCertManager), string(certs.ToManaged)))
	}
	for _, f := range []struct{ flag, value string }{{"secret", o.secret}, {"new-secret", o.newSecret}, {"state-secret", o.stateSecret}} {
		if namespace, name, _ := strings.Cut(f.value, "/"); f.value != "" && (namespace == "" || name == "" || strings.Contains(name, "/")) {
			errs = append(errs, fmt.Errorf("--%s %q: want NAMESPACE/NAME, or NAME with --namespace", f.flag, f.value))
		}
	}
	switch to := certs.MigrateTo(o.to); {
	case to == certs.ToCertManager && o.newSecret == "":
		errs = append(errs, errors.New("--to cert-manager needs --new-secret NAMESPACE/NAME, the Secret that cert-manager writes and no server reads yet"))
	case to != certs.ToCertManager && o.newSecret != "":
		errs = append(errs, errors.New("--new-secret is for --to cert-manager"))
	case to == certs.ToManaged && o.secret == "":
		errs = append(errs, errors.New("--to managed needs --secret NAMESPACE/NAME, the Secret that the server reads"))
	}
	if o.apply && o.dryRun {
		errs = append(errs, errors.New("--apply and --dry-run contradict each other"))
	}
	if o.soak < 0 || o.wait <= 0 || o.lifetime <= 0 {
		errs = append(errs, errors.New("--step-timeout and --lifetime must be above zero, --soak not below"))
	}
	return errors.Join(errs...)
}

// migrateCerts checks the flags and runs until it is done or a signal comes.
func migrateCerts(cmd *cobra.Command, o certsMigrateOptions, target string) error {
	out, errOut := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if err := o.validate(); err != nil {
		return usageError(err)
	}
	ref, err := certs.ParseRef(target)
	if err != nil {
		return usageError(err)
	}
	progress := &migrateProgress{w: out, colour: colours(out)}
	if o.output != "table" {
		progress = &migrateProgress{w: errOut, colour: colours(errOut)}
	}
	migration, err := newMigration(o, ref, progress)
	if err != nil {
		return usageError(err)
	}
	ctx, stop := interruptible(cmd, func(text string) { fmt.Fprintln(errOut, "tracehook:", text) }, migration.Left)
	defer stop()
	return signalled(ctx, runMigration(ctx, o, migration, progress, out))
}

// runMigration shows the plan and, with --apply, carries it out.
func runMigration(ctx context.Context, o certsMigrateOptions, migration *certs.Migration, progress *migrateProgress, out io.Writer) error {
	plan, targets, err := migration.Plan(ctx)
	if o.abort {
		plan, targets, err = migration.WayBack(ctx)
	}
	if err != nil {
		return usageError(err)
	}
	if !o.apply {
		left, _ := migration.LeftProofs(ctx) // what cannot be listed is not ours to name
		for _, l := range left {
			plan.Notes = append(plan.Notes, fmt.Sprintf("%s was left behind by a run that was killed; --apply removes it, and so does: %s", l.Ref, deleteCommand(l.Ref)))
		}
	}
	progress.steps = plan.Steps
	document := migrateDocument{TypeMeta: typeMeta(kindMigration), Plan: plan, Targets: targets, Applied: o.apply}
	if o.output == "table" {
		if err := writeMigratePlan(out, plan, targets, !o.apply, colours(out)); err != nil {
			return usageError(fmt.Errorf("write plan: %w", err))
		}
	}
	code := exitOK
	switch {
	case !o.apply:
		if len(certs.MigrateFindings(targets)) > 0 {
			code = exitFailed
		}
	case len(plan.Blockers) > 0:
		code, err = exitUsage, errors.New("something is in the way: see the plan")
	case o.abort:
		document.Plan, err = migration.Abort(ctx)
	default:
		document.Plan, err = migration.Run(ctx)
	}
	if err != nil {
		code = max(code, exitFailed)
		document.Error = err.Error()
	} else if o.apply && o.output == "table" && len(plan.Steps) > 0 {
		fmt.Fprintln(out, "done")
	}
	if o.output != "table" {
		if err := document.write(out, o.output); err != nil {
			return usageError(fmt.Errorf("write report: %w", err))
		}
	}
	if code != exitOK {
		return &exitError{code: code, err: err}
	}
	return nil
}

func newMigration(o certsMigrateOptions, target certs.Ref, progress *migrateProgress) (*certs.Migration, error) {
	config, err := o.config()
	if err != nil {
		return nil, err
	}
	config.UserAgent = "tracehook-certs-migrate"
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // what client-go says of Leases is said as steps
	roots, _ := x509.SystemCertPool()                 // without them an empty caBundle trusts nobody, and the audit says so
	host, _ := os.Hostname()                          // for people who read the Lease
	return certs.NewMigration(certs.MigrateOptions{
		Target: target,
		Wish: certs.MigrateWish{
			To: certs.MigrateTo(o.to), Secret: o.secret, NewSecret: o.newSecret, StateSecret: o.stateSecret, Soak: o.soak,
		},
		Config: config, Clients: clients, Dynamic: objects, APIServers: o.apiServers, ClusterDomain: o.clusterDomain,
		Lifetime: o.lifetime, Wait: o.wait, SystemRoots: roots, OnStep: progress.step, OnAPIServer: o.onAPIServer,
		Identity: host, Now: time.Now,
	})
}

// writeMigratePlan is for people: where it starts from, what was seen, and in full what is to be done.
func writeMigratePlan(w io.Writer, plan certs.MigratePlan, targets []certs.MigrateTarget, full, colour bool) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "target:   %s\nstarts:   %s: %s\n", plan.Target, plan.From, printable(plan.Because))
	if plan.To != "" {
		fmt.Fprintf(&b, "to:       %s\n", plan.To)
	}
	fmt.Fprintf(&b, "promise:  %s\n", plan.Promise)
	for _, other := range plan.Together {
		fmt.Fprintf(&b, "together: %s, which leads to the same server\n", other)
	}
	for _, note := range plan.Notes {
		fmt.Fprintf(&b, "note:     %s\n", printable(note))
	}
	for _, blocker := range plan.Blockers {
		fmt.Fprintf(&b, "first:    %s\n", blocker)
	}
	if full {
		report := certs.AuditReport{}
		for _, t := range targets {
			report.Targets = append(report.Targets, t.TargetReport)
		}
		b.WriteString("\n")
		if err := writeAuditTable(&b, report, colour); err != nil {
			return err
		}
		for i, step := range plan.Steps {
			fmt.Fprintf(&b, "\n%d. %s: %s\n", i+1, step.Step, step.Does)
			fmt.Fprintf(&b, "    why:   %s\n    proof: %s\n    back:  %s\n", step.Why, step.Proof, step.Back)
			if step.Done != nil {
				fmt.Fprintf(&b, "    done:  %s: %s\n", step.Done.At.UTC().Format("2006-01-02 15:04:05 MST"), printable(step.Done.Result))
			}
		}
		if len(plan.Steps) > 0 {
			b.WriteString("\nNothing was written. --apply does it.\n")
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// migrateProgress shows steps as they are taken.
type migrateProgress struct {
	w      io.Writer
	colour bool
	steps  []certs.PlannedStep
}

func (p *migrateProgress) step(step certs.PlannedStep, meanwhile string) {
	number := 1 + slices.IndexFunc(p.steps, func(s certs.PlannedStep) bool { return s.Step == step.Step })
	switch {
	case meanwhile != "":
		fmt.Fprintf(p.w, "    %s\n", printable(meanwhile))
	case step.Done == nil:
		fmt.Fprintf(p.w, "\n%d/%d %s: %s\n", number, len(p.steps), step.Step, step.Does)
	default:
		word := cmp.Or(string(step.Done.Certainty), "done")
		painted := word
		if p.colour {
			painted = "\x1b[32m" + word + "\x1b[0m"
		}
		fmt.Fprintf(p.w, "    %s: %s\n", painted, strings.ReplaceAll(printable(step.Done.Result), "; ", "\n    "+strings.Repeat(" ", len(word)+2)))
	}
}
