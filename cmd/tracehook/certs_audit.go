package main

// In: the flags of `tracehook certs audit`, a kubeconfig or a pod's ServiceAccount. Out: the report, as a
// table, JSON or YAML. Errors: exit 1 for findings at or above --fail-on; exit 2 for wrong flags, a
// cluster that does not answer, or an answer that is not whole and shows no such finding.

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/cmd/tracehook/report"
)

// certsAuditOptions are the flags of `certs audit`.
type certsAuditOptions struct {
	clusterFlags
	contexts    *[]string
	output      string
	failOn      string
	auditLog    string
	timeout     time.Duration
	dialTimeout time.Duration
	parallel    int
	onAPIServer bool
}

func newCertsAuditCommand() *cobra.Command {
	var o certsAuditOptions
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Dial every webhook, conversion webhook and APIService of a cluster and judge its certificate",
		Long: `Dial what the API server dials: every webhook, CRD conversion webhook and APIService of the
cluster, each endpoint of each, under the name and with the trust that the API
server uses, and say everything that is wrong with its certificate, which field
or certificate to change, and which of the API server's counters a call would move.

Nothing is written and nothing is sent but TLS handshakes. From outside the
cluster the addresses of pods are often out of reach: run it as a Job then
(deploy/components/audit). A URL with a loopback address leads to the API server's own
machine: it is not dialled from anywhere else.

With several --context each cluster has its part of the report, also if another does not answer.

Exit codes: 0 nothing at or above --fail-on, 1 something, 2 it could not run, or not
look at everything and found nothing in the rest.`,
		Example: "  tracehook certs audit\n  tracehook certs audit --fail-on error -o json\n  tracehook certs audit --audit-log /var/log/kubernetes/audit.log",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd, nil, nil)
			defer stop()
			return signalled(ctx, auditCerts(ctx, o, time.Now(), cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	o.bind(cmd, namespaceUsage{usage: "only what leads to Services of this `NAMESPACE` (default all)"})
	o.contexts = o.bindContexts()
	cmd.Flags().StringVarP(&o.output, "output", "o", "table", "`FORMAT` of the report: table, json or yaml")
	cmd.Flags().StringVar(&o.failOn, "fail-on", "warning", "`SEVERITY` from which on the exit code is 1: info, warning or error")
	cmd.Flags().StringVar(&o.auditLog, "audit-log", "", "the API server's audit log, a `FILE`: whom it blames is matched with the targets")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "time for the whole audit; what was not looked at until then is reported as such")
	cmd.Flags().DurationVar(&o.dialTimeout, "dial-timeout", 10*time.Second, "time for one endpoint; API servers give a handshake as long")
	cmd.Flags().BoolVar(&o.onAPIServer, "on-api-server", false, "the audit runs in the network of the API server: on its host, or in a pod there with hostNetwork. Then loopback addresses in URLs are dialled, and names that cannot be resolved are errors")
	cmd.Flags().IntVar(&o.parallel, "parallel", 32, "endpoints dialled at a time")
	return cmd
}

// auditCerts runs the audit at now and writes the report to out, progress to a terminal at errOut.
func auditCerts(ctx context.Context, o certsAuditOptions, now time.Time, out, errOut io.Writer) error {
	failOn, err := certs.ParseSeverity(o.failOn)
	if err != nil {
		return usageError(fmt.Errorf("--fail-on: %w", err))
	}
	write, err := auditWriter(o.output, colours(out))
	if err != nil {
		return usageError(err)
	}
	if o.timeout <= 0 || o.dialTimeout <= 0 || o.parallel < 1 {
		return usageError(errors.New("--timeout, --dial-timeout and --parallel must be above zero"))
	}
	var blamed []certs.Blame
	if o.auditLog != "" {
		if blamed, err = readBlame(o.auditLog); err != nil {
			return usageError(fmt.Errorf("--audit-log: %w", err))
		}
	}
	names := *o.contexts
	if len(names) == 0 {
		names = []string{""}
	}
	documents, errs := make([]auditDocument, len(names)), make([]error, len(names))
	for i, name := range names { // one after the other: --parallel is of this machine
		cluster := &o.clusterFlags
		if len(names) > 1 {
			cluster = o.of(name)
		}
		d := auditDocument{TypeMeta: typeMeta(kindAudit), Context: name}
		if d.AuditReport, errs[i] = auditCluster(ctx, o, cluster, now, errOut); errs[i] != nil {
			d.Error, d.Incomplete = errs[i].Error(), true
			if name != "" {
				errs[i] = fmt.Errorf("context %s: %w", name, errs[i])
			}
		}
		d.Blame(blamed)
		documents[i] = d
	}
	if len(names) == 1 && errs[0] != nil {
		return usageError(errs[0])
	}
	if err := write(out, documents); err != nil {
		return &exitError{code: exitUsage, err: fmt.Errorf("write report: %w", err)}
	}
	err = errors.Join(errs...)
	switch {
	case slices.ContainsFunc(documents, func(d auditDocument) bool { return d.Worst >= failOn }):
		return &exitError{code: exitFailed, err: err}
	case err != nil:
		return usageError(err)
	case slices.ContainsFunc(documents, func(d auditDocument) bool { return d.Incomplete }):
		return &exitError{code: exitUsage, err: errors.New("the audit is not complete: see the problems in the report")}
	}
	return nil
}

// auditCluster looks at one cluster.
func auditCluster(ctx context.Context, o certsAuditOptions, cluster *clusterFlags, now time.Time, errOut io.Writer) (certs.AuditReport, error) {
	nothing := certs.AuditReport{Time: now, Targets: []certs.TargetReport{}}
	config, err := cluster.config() // without a limit: --parallel is it
	if err != nil {
		return nothing, err
	}
	config.UserAgent = "tracehook-certs-audit"
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nothing, fmt.Errorf("make client: %w", err)
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return nothing, fmt.Errorf("make client: %w", err)
	}
	roots, rootsErr := x509.SystemCertPool()

	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	progress, wipe := auditProgress(errOut)
	report, err := certs.Audit(ctx, certs.AuditOptions{
		Clients: clients, Dynamic: objects, Now: now, SystemRoots: roots,
		Namespace: *o.Namespace, OnAPIServer: o.onAPIServer, DialTimeout: o.dialTimeout, Parallel: o.parallel, Progress: progress,
	})
	wipe()
	if err != nil {
		return report, err
	}
	if rootsErr != nil {
		report.Problems = append(report.Problems, fmt.Sprintf("read the system's root certificates: %v", rootsErr))
	}
	if report.Counters, err = auditCounters(ctx, clients); err != nil {
		report.Problems = append(report.Problems, err.Error())
	}
	return report, nil
}

func auditCounters(ctx context.Context, clients kubernetes.Interface) ([]certs.CounterValue, error) {
	metrics, err := clients.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the API server's counters: %w", err)
	}
	return certs.ReadCounters(metrics)
}

func readBlame(path string) ([]certs.Blame, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return certs.ReadBlame(file)
}

// auditProgress counts on a terminal, in one line that wipe removes. Elsewhere it is silent.
func auditProgress(w io.Writer) (progress func(done, total int), wipe func()) {
	if !isTerminal(w) {
		return nil, func() {}
	}
	return func(done, total int) { fmt.Fprintf(w, "\r\x1b[Kdialled %d of %d endpoints", done, total) },
		func() { fmt.Fprint(w, "\r\x1b[K") }
}

func auditWriter(format string, colour bool) (func(io.Writer, []auditDocument) error, error) {
	switch format {
	case "table":
		return func(w io.Writer, documents []auditDocument) error {
			for i, d := range documents {
				if len(documents) > 1 {
					fmt.Fprintf(w, "%sCONTEXT %s\n", strings.Repeat("\n", min(i, 1)), printable(d.Context))
				}
				if d.Error != "" {
					fmt.Fprintf(w, "not looked at: %s\n", printable(oneLine(d.Error)))
				} else if err := writeAuditTable(w, d.AuditReport, colour); err != nil {
					return err
				}
			}
			return nil
		}, nil
	case "json", "yaml":
		return func(w io.Writer, documents []auditDocument) error {
			if len(documents) == 1 {
				return writeMachine(w, format, documents[0])
			}
			return writeMachine(w, format, auditList{typeMeta(kindAuditList), documents})
		}, nil
	}
	return nil, checkChoice("output", format, "table", "json", "yaml")
}

// writeAuditTable is for people: one line per endpoint, then what is wrong, worst first, then what the API server says.
func writeAuditTable(w io.Writer, r certs.AuditReport, colour bool) error {
	var b bytes.Buffer
	table := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "STATUS\tTARGET\tSERVER NAME\tENDPOINT\tDAYS LEFT\tISSUER")
	for _, t := range r.Targets {
		if len(t.Endpoints) == 0 {
			fmt.Fprintf(table, "%s\t%s\t%s\t-\t-\t-\n", t.Worst, t, orDash(t.ServerName))
		}
		for _, e := range t.Endpoints {
			days, issuer := "-", "-"
			if e.DaysLeft != nil {
				days, issuer = fmt.Sprint(*e.DaysLeft), printable(e.Issuer)
			}
			status := max(certs.Worst(t.Findings), certs.Worst(e.Findings))
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", status, t, printable(t.ServerName), printable(e.Address), days, issuer)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(r.Targets) == 0 {
		fmt.Fprintln(&b, "no webhook, no conversion webhook and no APIService of another server")
	}
	for _, f := range byWorst(r) {
		fmt.Fprintf(&b, "\n%s  %s  %s\n", f.Severity, f.Code, strings.Join(f.at, "\n    and "))
		fmt.Fprintf(&b, "    %s\n    means:  %s\n    remedy: %s\n    change: %s\n", f.Message, f.Means, f.Remedy, f.change)
		switch {
		case f.maskedBy != "":
			fmt.Fprintf(&b, "    masked: by %s; this is next once that is repaired\n", f.maskedBy)
		case f.Counter != "":
			fmt.Fprintf(&b, "    counts: %s\n", f.Counter)
		}
	}
	if len(r.Counters) > 0 {
		fmt.Fprintln(&b, "\nCounted by the API server that answered, since its start:")
		for _, c := range r.Counters {
			fmt.Fprintf(&b, "    %6d  %s\n", c.Value, c.Name)
		}
	}
	if len(r.Blamed) > 0 {
		fmt.Fprintln(&b, "\nBlamed in the audit log:")
		for _, blame := range r.Blamed {
			who := "none of the targets of now"
			if len(blame.Targets) > 0 {
				who = strings.Join(blame.Targets, ", ")
			}
			fmt.Fprintf(&b, "    %6d  %s  %s, last %s: %s\n", blame.Requests, blame.Code, printable(blame.Host), blame.Last.UTC().Format("2006-01-02 15:04 MST"), who)
		}
	}
	if len(r.Problems) > 0 {
		fmt.Fprintln(&b, "\nNot looked at:")
		for _, problem := range r.Problems {
			fmt.Fprintln(&b, "    "+printable(problem))
		}
	}
	text := b.Bytes()
	if colour {
		text = paint(text)
	}
	_, err := w.Write(text)
	return err
}

// auditLine is a finding with every place where it was found.
type auditLine struct {
	certs.Finding
	change string
	// maskedBy is what the API server comes across first; "" if this is it.
	maskedBy certs.Code
	at       []string
}

// byWorst orders findings and writes what many places share only once.
func byWorst(r certs.AuditReport) []*auditLine {
	var list []*auditLine
	known := map[string]*auditLine{}
	add := func(t certs.TargetReport, findings []certs.Finding, address string, call *certs.Prediction) {
		for _, f := range findings {
			change, at, masked := t.Where(f.Code), t.String(), certs.Code("")
			if call != nil && f.Breaks && f.Code != call.Cause {
				masked = call.Cause
			}
			if address != "" {
				at += " at " + printable(address)
			}
			key := fmt.Sprint(f, change, masked)
			if known[key] == nil {
				known[key] = &auditLine{Finding: f, change: printable(change), maskedBy: masked}
				list = append(list, known[key])
			}
			if !slices.Contains(known[key].at, at) {
				known[key].at = append(known[key].at, at)
			}
		}
	}
	for _, t := range r.Targets {
		add(t, t.Findings, "", nil)
		for _, e := range t.Endpoints {
			add(t, e.Findings, e.Address, e.Call)
		}
	}
	slices.SortStableFunc(list, func(a, b *auditLine) int { return int(b.Severity - a.Severity) })
	return list
}

// paint colours the severity at the start of a line.
func paint(text []byte) []byte {
	var painted bytes.Buffer
	for line := range bytes.Lines(text) {
		for severity, colour := range map[string]string{"error": "31", "warning": "33", "info": "36", "healthy": "32"} {
			if rest, ok := bytes.CutPrefix(line, []byte(severity+" ")); ok {
				line = fmt.Appendf(nil, "\x1b[%sm%s\x1b[0m %s", colour, severity, rest)
				break
			}
		}
		painted.Write(line)
	}
	return painted.Bytes()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

// printable is for all that others say.
func printable(s string) string { return report.Printable(s) }
