// Package recorded holds traces of a real control plane, as a store answers, for tests.
package recorded

import (
	"bytes"
	"embed"
	"testing"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

//go:embed *.json
var files embed.FS

// Trace is one of them: "configmap", a create that worked, or "refused", one whose webhook could not
// be called.
func Trace(t testing.TB, name string) tracestore.Trace {
	t.Helper()
	answer, err := files.ReadFile(name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	trace, err := tracestore.Decode(bytes.NewReader(answer))
	if err != nil {
		t.Fatal(err)
	}
	return trace
}
