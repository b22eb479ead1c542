package certs

// What Source and Readiness have to say. In: findings. Out: log records, once per change, and a gauge. Errors: of making the gauge.

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// report remembers what was said.
type report struct {
	mu    sync.Mutex
	begun time.Time
	text  map[string]bool
}

// startPatience is how long a start may take: a certificate is made, read and published before somebody has to look.
const startPatience = 30 * time.Second

// passing says of a finding that a start which goes well passes through it.
func passing(code Code) bool {
	switch code {
	case SecretUnknown, SecretMissing, NoCertificate, ConfigurationUnknown, ConfigurationMissing, BundleEmpty, Untrusted:
		return true
	}
	return false
}

// tell logs the findings that are new, and when none is left. What a start passes through is information as long as a
// start may take, and told at its level afterwards.
func (r *report) tell(ctx context.Context, log *slog.Logger, subject string, findings []Finding, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.begun.IsZero() {
		r.begun = now
	}
	starting := now.Sub(r.begun) < startPatience
	text := map[string]bool{}
	for _, f := range findings {
		if f.Severity < Warning {
			continue
		}
		level := slog.LevelWarn
		switch {
		case starting && passing(f.Code):
			level = slog.LevelInfo
		case f.Severity >= Error:
			level = slog.LevelError
		}
		said := level.String() + " " + string(f.Code) + " " + f.Message
		if text[said] = true; r.text[said] {
			continue
		}
		attrs := []slog.Attr{slog.String("subject", subject), slog.String("code", string(f.Code)),
			slog.String("finding", f.Message), slog.String("means", f.Means), slog.String("remedy", f.Remedy)}
		if level == slog.LevelInfo {
			log.LogAttrs(ctx, level, "waiting for a certificate that works", attrs...)
		} else {
			log.LogAttrs(ctx, level, "a certificate needs attention", attrs...)
		}
	}
	if len(text) == 0 && len(r.text) > 0 {
		log.LogAttrs(ctx, slog.LevelInfo, "certificates are well again", slog.String("subject", subject))
	}
	r.text = text
}

// observeFindings is a gauge of how many findings there are now, by code.
func observeFindings(meter metric.Meter, name string, findings func() []Finding) error {
	_, err := meter.Int64ObservableGauge(name,
		metric.WithUnit("{finding}"), metric.WithDescription("What is wrong now, by code."),
		metric.WithInt64Callback(func(_ context.Context, observer metric.Int64Observer) error {
			count := map[Code]int64{}
			severity := map[Code]Severity{}
			for _, f := range findings() {
				count[f.Code]++
				severity[f.Code] = max(severity[f.Code], f.Severity)
			}
			for code, n := range count {
				observer.Observe(n, metric.WithAttributes(
					attribute.String("tracehook.certs.code", string(code)), attribute.String("tracehook.certs.severity", severity[code].String())))
			}
			return nil
		}))
	if err != nil {
		return fmt.Errorf("create the gauge of findings: %w", err)
	}
	return nil
}

// everyMinute calls what depends on the wall clock: nothing happens when a certificate expires, or a start takes too long.
func everyMinute(ctx context.Context, look func(context.Context)) {
	timer := time.NewTimer(startPatience)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			look(ctx)
			timer.Reset(time.Minute)
		}
	}
}
