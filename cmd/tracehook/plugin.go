package main

// tracehook as a plugin of kubectl. In: the name under which this program was called. Out: the same commands, whose
// help and hints say `kubectl tracehook`. Errors: none.

import (
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// isKubectlPlugin: kubectl runs a program of this name, found in PATH, for `kubectl tracehook`.
func isKubectlPlugin(called string) bool {
	return strings.TrimSuffix(filepath.Base(called), ".exe") == "kubectl-tracehook"
}

// invocation is a command line in a text: at the start of a line, or in quotes.
var invocation = regexp.MustCompile("(?m)(^ *|[`\"])tracehook ([a-z])")

func asPlugin(text string) string {
	return invocation.ReplaceAllString(text, "${1}kubectl tracehook $2")
}

// nameAsPlugin changes what a person reads.
func nameAsPlugin(root *cobra.Command) {
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl tracehook"}
	var rename func(*cobra.Command)
	rename = func(cmd *cobra.Command) {
		cmd.Short, cmd.Long, cmd.Example = asPlugin(cmd.Short), asPlugin(cmd.Long), asPlugin(cmd.Example)
		cmd.Flags().VisitAll(func(f *pflag.Flag) { f.Usage = asPlugin(f.Usage) })
		for _, sub := range cmd.Commands() {
			rename(sub)
		}
	}
	rename(root)
}
