package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the scripts run this very program as the command `tracehook`.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tracehook": main})
}

// Each file of testdata/script is a terminal session that a reader can follow.
func TestCommandLineSessions(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}
