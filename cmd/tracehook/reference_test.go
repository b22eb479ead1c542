package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// docs/reference is made from the commands: a page for each as Markdown, and as a manual page. `make reference` writes it, `make verify`
// compares. It is not among the unit tests, so that a flag can be added and tried before its page is.
func TestTheReferenceIsWhatTheCommandsSay(t *testing.T) {
	what := os.Getenv("TRACEHOOK_REFERENCE")
	if what == "" {
		t.Skip("TRACEHOOK_REFERENCE is neither check nor write")
	}
	t.Setenv("POD_NAMESPACE", "")
	made := t.TempDir()
	if err := writeReference(made); err != nil {
		t.Fatal(err)
	}
	const reference = "../../docs/reference"
	if what == "write" {
		if err := os.RemoveAll(reference); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(reference, os.DirFS(made)); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, got := files(t, made), files(t, reference)
	for name, text := range want {
		if !bytes.Equal(got[name], text) {
			t.Errorf("docs/reference/%s is not what the commands say: run `make reference`", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("docs/reference/%s is of no command: run `make reference`", name)
		}
	}
}

// writeReference writes what does not depend on the day, the version and the machine.
func writeReference(dir string) error {
	root := newRootCommand()
	root.DisableAutoGenTag = true
	man := filepath.Join(dir, "man")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	// .ci/dist puts the commit's date and the version there.
	header := doc.GenManHeader{Section: "1", Date: &time.Time{}, Source: "tracehook VERSION", Manual: "tracehook"}
	if err := errors.Join(doc.GenMarkdownTree(root, dir), doc.GenManTree(root, &header, man)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "README.md"), contents(root), 0o644)
}

// contents lists the pages.
func contents(root *cobra.Command) []byte {
	var b bytes.Buffer
	b.WriteString("# The commands\n\nMade from the commands by `make reference`. The same pages for `man` are in [man](man), and in the archives of a release.\n\n| command | what it does |\n|---|---|\n")
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		page := strings.ReplaceAll(cmd.CommandPath(), " ", "_") + ".md"
		b.WriteString("| [`" + cmd.CommandPath() + "`](" + page + ") | " + cmd.Short + " |\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() { // "help" has no page
				visit(sub)
			}
		}
	}
	visit(root)
	return b.Bytes()
}

func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		all[path], err = os.ReadFile(filepath.Join(dir, path))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestEveryFlagThatOffersValuesIsThere(t *testing.T) {
	names, outputs := map[string]bool{}, []string{}
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		for name := range flagChoices {
			names[name] = names[name] || cmd.Flags().Lookup(name) != nil
		}
		if cmd.Flags().Lookup("output") != nil {
			outputs = append(outputs, cmd.Name())
			if _, ok := cmd.GetFlagCompletionFunc("output"); !ok {
				t.Errorf("%s --output offers nothing", cmd.CommandPath())
			}
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(newRootCommand())
	for name, there := range names {
		if !there {
			t.Errorf("no command has --%s", name)
		}
	}
	for name := range outputChoices {
		if !slices.Contains(outputs, name) {
			t.Errorf("no command %s has --output", name)
		}
	}
}
