package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the scripts run this very program as the command `tracehook`, and under the names of a kubectl plugin and of its completion.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tracehook": main, "kubectl-tracehook": main, "kubectl_complete-tracehook": main})
}

// Each file of testdata/script is a terminal session that a reader can follow.
func TestCommandLineSessions(t *testing.T) {
	bin, err := filepath.Abs("../../bin") // for kubectl, if it has been built
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+bin)
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}
