package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes. A command that tracehook runs for the user (`trace`) passes its own code through.
const (
	exitOK     = 0
	exitFailed = 1 // it ran and did not succeed
	exitUsage  = 2 // wrong flags, unreadable files: it could not start
)

// exitError carries an exit code to main. A nil err means that everything
// there is to say has been said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError marks an error as one that the user mends by changing flags or files.
func usageError(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: exitUsage, err: err}
}

// run is the whole program: parse args (the first is what it was called as), run the command they name, return
// its error.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := newRootCommand()
	switch {
	case isKubectlPlugin(args[0]):
		nameAsPlugin(root)
	case isKubectlCompletion(args[0]):
		args = slices.Insert(slices.Clone(args), 1, cobra.ShellCompRequestCmd)
	}
	root.SetArgs(args[1:])
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "tracehook",
		Short:         "Admission webhook server that makes one kubectl create one trace",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArguments,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetUsageTemplate(usageTemplate(root.UsageTemplate()))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(fmt.Errorf("%w (see `%s --help`)", err, cmd.CommandPath()))
	})
	root.AddCommand(newServeCommand(), newProbeCommand(), newTraceCommand(), newShowCommand(), newExplainCommand(), newCheckCommand(), newLifecycleCommand(), newCertsCommand(), newVersionCommand())
	completeFlags(root)
	return root
}

// usageTemplate gives the flags that say how to reach a cluster a list of their own: they are the same on every command.
func usageTemplate(cobras string) string {
	only := func(ofCluster bool) func(*pflag.FlagSet) string {
		return func(all *pflag.FlagSet) string {
			some := pflag.NewFlagSet("", pflag.ContinueOnError)
			all.VisitAll(func(f *pflag.Flag) {
				if (f.Annotations[clusterAnnotation] != nil) == ofCluster {
					some.AddFlag(f)
				}
			})
			return some.FlagUsages()
		}
	}
	cobra.AddTemplateFuncs(template.FuncMap{"ownFlags": only(false), "clusterFlags": only(true)})
	return strings.Replace(cobras, "{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}",
		"{{ownFlags .LocalFlags | trimTrailingWhitespaces}}{{with clusterFlags .LocalFlags}}\n\nCluster flags, as kubectl has them:\n{{. | trimTrailingWhitespaces}}{{end}}", 1)
}

// exitCode says on stderr, in one line, what went wrong and returns the code to exit with.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{code: exitFailed, err: err}
	}
	if exit.err != nil {
		fmt.Fprintln(stderr, "tracehook:", printable(strings.ReplaceAll(err.Error(), "\n", "; ")))
	}
	return exit.code
}

// noArguments is for commands that take flags or subcommands only.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError(fmt.Errorf("unknown argument %q (see `%s --help`)", args[0], cmd.CommandPath()))
}
