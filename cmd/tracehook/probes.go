package main

// Probes. In: checks. Out: /healthz (the process is alive) and /readyz (calls are welcome), with the reason if
// not, and with what is wrong although they are. /readyz?wait=4s is for the probe of a Pod that starts: until it was
// ready once, the answer waits as long as that. So a start that goes well fails no probe, and is seen when it is done.
// Errors: of making the metrics.

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

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
	// started is set when all checks have passed once. Nil: nobody waits for that.
	started *atomic.Bool
}

// longestWait is the most that ?wait= can ask for. It is less than sideWriteTimeout, so that the answer still goes out.
const longestWait = 10 * time.Second

// failing returns the first check that fails, and why.
func (p readiness) failing(r *http.Request) (name string, err error) {
	for _, c := range p.checks {
		if c.ready == nil {
			continue
		}
		if err := c.ready(r); err != nil {
			return c.name, err
		}
	}
	if p.started != nil {
		p.started.Store(true)
	}
	return "", nil
}

// settled is failing, after the wait that the request asks for.
func (p readiness) settled(w http.ResponseWriter, r *http.Request) (name string, err error) {
	name, err = p.failing(r)
	wait, parseErr := time.ParseDuration(r.URL.Query().Get("wait"))
	if err == nil || parseErr != nil || p.started == nil {
		return name, err
	}
	deadline := time.Now().Add(min(wait, longestWait))
	// The deadline for the body that there is not, which would end the request.
	_ = http.NewResponseController(w).SetReadDeadline(deadline.Add(time.Second))
	for err != nil && !p.started.Load() && time.Now().Before(deadline) && r.Context().Err() == nil {
		time.Sleep(20 * time.Millisecond)
		name, err = p.failing(r)
	}
	return name, err
}

func (p readiness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	status, lines := http.StatusOK, []string{"ok"}
	if name, err := p.settled(w, r); err != nil {
		status, lines = http.StatusServiceUnavailable, []string{fmt.Sprintf("not ready: %s: %s", name, printable(oneLine(err.Error())))}
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
