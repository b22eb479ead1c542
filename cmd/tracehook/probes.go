package main

// Probes. In: checks. Out: /healthz (the process is alive) and /readyz (calls are welcome), with the reason if
// not, and with what is wrong although they are. Errors: of making the metrics.
//
// /readyz?exclude=draining is for kubelets. A Pod that ends is out of its Service without our word, and "not ready" would
// leave a Warning event of every rollout. While a last replica drains, kube-proxy goes on using it if it is ready
// (https://kubernetes.io/docs/concepts/services-networking/service/, terminating endpoints).

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/metric"

	"github.com/tracehook/tracehook/certs"
)

// check is one condition of being ready; nil means that it is met.
type check struct {
	name  string
	ready func(*http.Request) error
}

// readiness is what /readyz looks at.
type readiness struct {
	// checks are made in this order, up to the first that fails: what comes later would fail for the same reason.
	checks []check
	// warnings are what deserves a look though calls work.
	warnings []func() []certs.Finding
	// draining says that the server is about to stop, and still answers. Nil: it never is.
	draining func() bool
}

func (p readiness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	status, lines := http.StatusOK, []string{"ok"}
	excluded := p.draining != nil && p.draining() && r.URL.Query().Get("exclude") == "draining"
	for _, c := range p.checks {
		if c.ready == nil || excluded {
			continue
		}
		if err := c.ready(r); err != nil {
			status, lines = http.StatusServiceUnavailable, []string{fmt.Sprintf("not ready: %s: %s", c.name, printable(oneLine(err.Error())))}
			break
		}
	}
	for _, findings := range p.warnings {
		for _, f := range findings() {
			line := fmt.Sprintf("%s: %s: %s", f.Severity, f.Code, printable(oneLine(f.Message)))
			if f.Severity >= certs.Warning && !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	w.WriteHeader(status)
	fmt.Fprint(w, strings.Join(lines, "\n"))
}

// newProbes returns nil where there are to be no probes.
func newProbes(address string, ready http.Handler, provider metric.MeterProvider) (*sideServer, error) {
	mux := http.NewServeMux()
	mux.Handle("/healthz", readiness{})
	mux.Handle("/readyz", ready)
	return newSideServer("health", address, mux, provider)
}
