package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// A shell reads what was inserted as it reads what was typed.
func TestCompletionOffersOnlyWhatAShellTakesAsOneWord(t *testing.T) {
	names := []string{"system:node", "`id${IFS}x`a", "$(id)", "a;id", "a b", "a'b", "~root", "--server", "", "a\nb", "eks/a.b_c@d"}
	want := []string{"eks/a.b_c@d", "system:node"}
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	if got, _ := asking(cmd, func(context.Context) ([]string, error) { return slices.Clone(names), nil }); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}

	file := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\ncontexts: [{name: $(id), context: {}}, {name: good, context: {}}]\n" +
		"clusters: [{name: $(id), cluster: {}}, {name: good, cluster: {}}]\nusers: [{name: $(id), user: {}}, {name: good, user: {}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd.Flags().String("kubeconfig", file, "")
	for _, name := range []string{"context", "cluster", "user"} {
		cmd.Flags().String(name, "", "")
	}
	completeFlags(cmd)
	for _, name := range []string{"context", "cluster", "user"} {
		complete, _ := cmd.GetFlagCompletionFunc(name)
		if got, _ := complete(cmd, nil, ""); strings.Join(got, " ") != "good" {
			t.Errorf("--%s: %q", name, got)
		}
	}
}
