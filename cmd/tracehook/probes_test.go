package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/tracehook/tracehook/certs"
)

func TestReadyzSaysWhyNotAndWhatIsWrongAllTheSame(t *testing.T) {
	yes := check{"first", func(*http.Request) error { return nil }}
	no := func(name string) check {
		return check{name, func(*http.Request) error { return errors.New(name + " is\nmissing") }}
	}
	findings := func() []certs.Finding {
		return []certs.Finding{
			{Code: certs.BundleEmpty, Severity: certs.Info, Message: "not worth it"},
			{Code: certs.ExpiresSoon, Severity: certs.Warning, Message: "in 2 days\x1b"},
		}
	}
	for _, test := range []struct {
		name string
		r    readiness
		code int
		body string
	}{
		{"nothing to check", readiness{}, 200, "ok"},
		{"draining", readiness{checks: []check{no("all")}, draining: func() bool { return true }}, 503, "not ready: all: all is missing"},
		{"all is well", readiness{checks: []check{yes, {"nothing there to be checked", nil}}}, 200, "ok"},
		{"one is missing", readiness{checks: []check{yes, no("second"), no("third")}}, 503, "not ready: second: second is missing"},
		{"a warning", readiness{checks: []check{yes}, warnings: []func() []certs.Finding{findings}}, 200, "ok\nwarning: expires-soon: in 2 days�"},
		{"both", readiness{checks: []check{no("second")}, warnings: []func() []certs.Finding{findings}}, 503, "not ready: second: second is missing\nwarning: expires-soon: in 2 days�"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			test.r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
			if w.Code != test.code || w.Body.String() != test.body {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Body, test.code, test.body)
			}
		})
	}
}

func TestAKubeletIsNotToldThatAReplicaDrains(t *testing.T) {
	draining := false
	r := readiness{draining: func() bool { return draining }, checks: []check{{"admission", func(*http.Request) error { return errors.New("it does not answer") }}}}
	ask := func() int {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz?exclude=draining", nil))
		return w.Code
	}
	if got := ask(); got != http.StatusServiceUnavailable {
		t.Errorf("a replica that does not answer: %d", got)
	}
	draining = true
	if got := ask(); got != http.StatusOK {
		t.Errorf("a replica that drains: %d", got)
	}
}
