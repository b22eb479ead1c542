package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func TestFlagsOfLifecycleThatCannotBeUsedAreNamed(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", ""},
		{"--trust=link --max-age=10m --leader-elect-resource-name=other", ""},
		{"--trust=yes", `--trust "yes": want parent, link, none`},
		{"--max-age=0s", "--max-age 0s: want more than 0"},
		{"--annotation-key=a/b/c", `--annotation-key "a/b/c": want PREFIX/NAME`},
		{"--leader-elect-resource-name=A", `--leader-elect-resource-name "A": want a DNS name`},
		{"--namespace=a.b", `--namespace "a.b": want a DNS label`},
		{"--leader-elect-lease-duration=5s", "--leader-elect-lease-duration 5s"},
		{"--leader-elect-retry-period=9s", "--leader-elect-retry-period 9s"},
		{"--metrics-auth", "--metrics-auth needs --metrics-secure"},
	} {
		var config lifecycleConfig
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		config.bind(flags)
		if err := flags.Parse(strings.Fields(test.args)); err != nil {
			t.Fatal(err)
		}
		err := config.validate()
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.args, err, test.want)
		}
	}
}

// refusing takes batches from the third try on.
type refusing struct {
	*tracetest.InMemoryExporter
	tries int
}

func (r *refusing) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if r.tries++; r.tries < 3 {
		return errors.New("nobody listens")
	}
	return r.InMemoryExporter.ExportSpans(ctx, spans)
}

func TestSpansWaitForACollector(t *testing.T) {
	to := &refusing{InMemoryExporter: tracetest.NewInMemoryExporter()}
	var complaints int
	end := make(chan struct{})
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(&patientExporter{to, func(error) { complaints++ }, end}))
	_, span := provider.Tracer("").Start(context.Background(), "a")
	span.End()
	if len(to.GetSpans()) != 1 || complaints != 2 {
		t.Errorf("%d spans arrived after %d complaints, want 1 after 2", len(to.GetSpans()), complaints)
	}

	to.tries = -1000
	close(end)
	began := time.Now()
	_, span = provider.Tracer("").Start(context.Background(), "b")
	span.End()
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("at the end of the process a span waited for %s", took)
	}
}
