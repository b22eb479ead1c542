// Package story is what tests that share one cluster have in common: its start and its end, time limits,
// kubectl. In: what is special about them. Out: an exit code for TestMain. Errors: on stderr, or the test's failure.
package story

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

// Run starts a cluster, prepares it, runs the tests and stops it. The error of whatever fails is on stderr, and the exit
// code is not zero then.
func Run(m *testing.M, o cluster.Options, prepare func(context.Context, *cluster.Cluster) error) (code int) {
	Unexport()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	o.Progress = os.Stderr
	c, err := cluster.Start(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := c.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	if err := prepare(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Unexport removes what the developer's shell exports and must not reach the processes under test.
func Unexport() {
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		switch {
		case strings.HasPrefix(name, "OTEL_"), name == "TRACEPARENT", name == "TRACESTATE", name == "KUBECONFIG", name == "POD_NAME", name == "POD_NAMESPACE":
			os.Unsetenv(name)
		}
	}
}

// Within is the test's context with a limit.
func Within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// Eventually asks every so often until there is no complaint, and fails with the last one when the limit is over.
func Eventually(t *testing.T, limit, every time.Duration, ask func(context.Context) error) {
	t.Helper()
	ctx := Within(t, limit)
	for {
		err := ask(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after %s: %v", limit, err)
		case <-time.After(every):
		}
	}
}

// Kubectl runs kubectl as a member of system:masters and returns what it wrote to stdout. It works in a cleanup, too: that comes
// after the end of the test's context.
func Kubectl(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := c.Kubectl(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
