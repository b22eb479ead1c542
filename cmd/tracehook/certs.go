package main

// `tracehook certs` and what its commands share. In: signals, documents. Out: contexts that end, machine-readable output.
// Errors: what a signal has ended.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/tracehook/tracehook/certs"
)

func newCertsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Make, keep, rotate, migrate and audit the certificates that API servers verify",
		Args:  noArguments,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCertsIssueCommand(), newCertsAuditCommand(), newCertsAuthorityCommand(), newCertsRotateCommand(), newCertsMigrateCommand())
	return cmd
}

// interrupted is why a command's context has ended: somebody asked it to.
type interrupted struct{ signal os.Signal }

func (i interrupted) Error() string { return "ended by the signal " + i.signal.String() }

// exitCode is what a shell gives to a command that a signal has ended.
func (i interrupted) exitCode() int {
	if number, ok := i.signal.(syscall.Signal); ok {
		return 128 + int(number)
	}
	return exitFailed
}

// interruptible returns a context that ends with the first SIGINT or SIGTERM, so that the command cleans up behind itself. The
// second ends the process at once, after what is left has been said. A nil left means that there is nothing to clean up or to say.
func interruptible(cmd *cobra.Command, say func(string), left func() []certs.Ref) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(cmd.Context())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			if left != nil {
				say("cleaning up; a second signal ends it at once")
			}
			cancel(interrupted{s})
		case <-done:
			return
		}
		select {
		case s := <-signals:
			if left != nil {
				for _, ref := range left() {
					say(fmt.Sprintf("left behind: %s (%s), which the next `certs migrate --apply` removes, too", ref, deleteCommand(ref)))
				}
			}
			os.Exit(interrupted{s}.exitCode())
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}

// signalled gives an error the exit code of the signal that is its cause. Call it before stop.
func signalled(ctx context.Context, err error) error {
	var why interrupted
	if err == nil || !errors.As(context.Cause(ctx), &why) {
		return err
	}
	var exit *exitError
	if errors.As(err, &exit) {
		err = exit.err // nil: everything has been said
	}
	if err == nil {
		err = why
	} else if !errors.As(err, new(interrupted)) {
		err = fmt.Errorf("%w: %w", why, err)
	}
	return &exitError{code: why.exitCode(), err: err}
}

// writeMachine writes a document as json or yaml.
func writeMachine(w io.Writer, format string, document any) error {
	if format == "yaml" {
		text, err := yaml.Marshal(document)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(document)
}
