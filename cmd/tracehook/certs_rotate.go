package main

// `certs rotate`. In: flags, a cluster where an authority leads. Out: its steps as they happen, one a line, or
// one document each. Errors: exit 2 for wrong flags or where nobody leads; exit 1 when it does not come to its end.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/tracehook/tracehook/certs"
)

// certsRotateOptions are the flags of `certs rotate`.
type certsRotateOptions struct {
	clusterFlags
	servingSecret string
	ca            bool
	drop          []string
	skipSoak      bool
	timeout       time.Duration
	output        string
}

func newCertsRotateCommand() *cobra.Command {
	var o certsRotateOptions
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Renew the serving certificate now, or replace the CA, and watch each step",
		Long: `Ask the authority that leads ("tracehook serve --certs managed" or "tracehook certs authority")
for a new serving certificate, with --ca for a new CA as well, and show each step, why
it is taken and when, until all is done. No request fails on the way. Ctrl-C ends the
watching, not the rotation.

Exit codes: 0 done, 1 not done within --timeout or the watch broke, 2 nobody to ask, 130 or 143
ended by a signal.`,
		Example: `  tracehook certs rotate
  tracehook certs rotate --ca
  tracehook certs rotate --ca --drop 5f0c…e2 --skip-soak   # that CA's key was stolen`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd, nil, nil)
			defer stop()
			return signalled(ctx, rotateCerts(ctx, o, time.Now, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	o.bind(cmd, namespaceUsage{value: defaultNamespace, usage: "`NAMESPACE` of the Secret and the Lease"})
	cmd.Flags().StringVar(&o.servingSecret, "serving-secret", certs.DefaultServingSecret, "`NAME` of the Secret with the certificate that is served")
	cmd.Flags().BoolVar(&o.ca, "ca", false, "replace the CA too; the old one is trusted no longer at the end")
	cmd.Flags().StringArrayVar(&o.drop, "drop", nil, "`SHA256` fingerprint of a certificate to remove from every caBundle, also if somebody else put it there; may be repeated")
	cmd.Flags().BoolVar(&o.skipSoak, "skip-soak", false, "remove the old CA as soon as every server has left it: when its key is in wrong hands. Requests on connections that API servers keep may fail")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long to watch; the rotation goes on after that")
	cmd.Flags().StringVarP(&o.output, "output", "o", "text", "`FORMAT` of the steps: text, json (one document a line) or yaml (one document each)")
	return cmd
}

// rotateCerts returns when the rotation is done, or will not be watched any longer.
func rotateCerts(ctx context.Context, o certsRotateOptions, now func() time.Time, out, errOut io.Writer) error {
	if err := o.validate(); err != nil {
		return usageError(err)
	}
	config, err := o.config()
	if err != nil {
		return usageError(err)
	}
	cluster, err := newCluster(config)
	if err != nil {
		return usageError(err)
	}
	clients := cluster.clients
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	leader, err := findLeader(ctx, clients, *o.Namespace, now())
	if err != nil {
		return usageError(err)
	}

	request := certs.RotationRequest{What: certs.RotateLeaf, Drop: o.drop, SkipSoak: o.skipSoak, Time: now(), ID: certs.NewRotationID()}
	if o.ca {
		request.What = certs.RotateCA
	}
	if err := certs.RequestRotation(ctx, clients, *o.Namespace, o.servingSecret, request); err != nil {
		return usageError(fmt.Errorf("ask %s for a rotation: %w", leader, err))
	}
	show := statusMachine(out, o.output)
	if o.output == "text" {
		show = statusText(out, request)
		fmt.Fprintf(out, "asked %s for a new %s\n", printable(leader), map[bool]string{false: "certificate", true: "CA and certificate"}[o.ca])
	}

	defer removeLeftProofs(ctx, cluster, errOut)()

	var last certs.Status
	var writing error
	err = certs.WatchStatus(ctx, clients, *o.Namespace, o.servingSecret, func(s certs.Status) bool {
		switch begun := last.Begun(request); {
		case begun && !s.Begun(request): // another request, which begins when this one is done
			last.Phase, last.Settled = certs.PhaseStable, true
			writing = show(last)
			return false
		case !s.Begun(request):
			return true // what went before
		}
		last = s
		writing = show(s)
		return writing == nil && !s.Finished(request)
	})
	switch {
	case writing != nil:
		return fmt.Errorf("write steps: %w", writing)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("not done after %s: %s; the rotation goes on, and --timeout says how long to watch", o.timeout, lastWords(last))
	case ctx.Err() != nil:
		return fmt.Errorf("stopped watching; the rotation goes on: %s", lastWords(last))
	case err != nil:
		return fmt.Errorf("watch the rotation (it goes on): %w", err)
	}
	return nil
}

func (o *certsRotateOptions) validate() error {
	errs := []error{checkChoice("output", o.output, "text", "json", "yaml"), o.clusterFlags.validate()}
	if o.timeout <= 0 {
		errs = append(errs, fmt.Errorf("--timeout %s: want more than 0", o.timeout))
	}
	for i, fingerprint := range o.drop {
		plain := strings.ToLower(strings.ReplaceAll(fingerprint, ":", "")) // as openssl writes it
		if len(plain) != 64 || strings.Trim(plain, "0123456789abcdef") != "" {
			errs = append(errs, fmt.Errorf("--drop %q: want the SHA-256 fingerprint of a certificate, 64 hexadecimal digits", fingerprint))
		}
		o.drop[i] = plain
	}
	return errors.Join(errs...)
}

// findLeader says who holds the Lease at now.
func findLeader(ctx context.Context, clients kubernetes.Interface, namespace string, now time.Time) (string, error) {
	lease, err := clients.CoordinationV1().Leases(namespace).Get(ctx, certs.DefaultLeaseName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "", fmt.Errorf("look for the leader: %w", err)
	}
	const ask = "is `tracehook serve --certs managed` or `tracehook certs authority` running?"
	switch spec := lease.Spec; {
	case err != nil:
		return "", fmt.Errorf("nobody to ask: there is no Lease %s in namespace %s; %s", certs.DefaultLeaseName, namespace, ask)
	case spec.HolderIdentity == nil || *spec.HolderIdentity == "" || spec.RenewTime == nil || spec.LeaseDurationSeconds == nil:
		return "", fmt.Errorf("nobody to ask: nobody holds Lease %s in namespace %s; %s", certs.DefaultLeaseName, namespace, ask)
	default:
		// Clocks differ: only what is long over is over.
		over := spec.RenewTime.Add(time.Duration(*spec.LeaseDurationSeconds)*time.Second + 30*time.Second)
		if now.After(over) {
			return "", fmt.Errorf("nobody to ask: %s held Lease %s in namespace %s and was last seen %s; %s",
				*spec.HolderIdentity, certs.DefaultLeaseName, namespace, spec.RenewTime.UTC().Format(time.RFC3339), ask)
		}
		return *spec.HolderIdentity, nil
	}
}

// statusMachine writes every status as a document that can be read before the next one is there.
func statusMachine(w io.Writer, format string) func(certs.Status) error {
	if format == "yaml" {
		return func(s certs.Status) error {
			text, err := yaml.Marshal(newStatusDocument(s))
			if err != nil {
				return err
			}
			_, err = w.Write(append([]byte("---\n"), text...))
			return err
		}
	}
	encoder := json.NewEncoder(w)
	return func(s certs.Status) error { return encoder.Encode(newStatusDocument(s)) }
}

// statusText writes what is new in a status, for people: a step once when it is begun, and once more if it ends a phase.
func statusText(w io.Writer, request certs.RotationRequest) func(certs.Status) error {
	var before certs.Status
	return func(s certs.Status) error {
		again := s.Step == before.Step && s.Reason == before.Reason
		moved := before.Phase != "" && s.Phase != before.Phase
		var lines []string
		if !again {
			lines = append(lines, fmt.Sprintf("%-10s  %s", s.Step, printable(oneLine(s.Reason))))
		}
		if s.Error != "" && (!again || s.Error != before.Error) {
			lines = append(lines, fmt.Sprintf("%-10s  not yet: %s", "", printable(oneLine(s.Error))))
		}
		if moved {
			lines = append(lines, fmt.Sprintf("%-10s  now %s", "", s.Phase))
		}
		if s.Finished(request) {
			lines = append(lines, doneText(s))
		}
		before = s
		for _, line := range lines {
			if _, err := fmt.Fprintf(w, "%s  %s\n", s.Time.UTC().Format("15:04:05"), line); err != nil {
				return err
			}
		}
		return nil
	}
}

func doneText(s certs.Status) string {
	text := "done"
	if s.Leaf != nil {
		text += fmt.Sprintf(": certificate %.16s is served until %s", s.Leaf.Fingerprint, s.Leaf.NotAfter.UTC().Format("2006-01-02 15:04 MST"))
	}
	if s.CA != nil {
		text += fmt.Sprintf("; its CA %.16s is %q", s.CA.Fingerprint, s.CA.Subject)
	}
	if s.Proof != nil {
		text += fmt.Sprintf("; trust %s at API servers: %d", s.Proof.Certainty, len(s.Proof.Servers))
	}
	return text
}

func lastWords(s certs.Status) string {
	switch {
	case s.Phase == "":
		return "the leader has not begun"
	case s.Error != "":
		return fmt.Sprintf("phase %s, %s", s.Phase, oneLine(s.Error))
	default:
		return fmt.Sprintf("phase %s, %s", s.Phase, oneLine(s.Reason))
	}
}
