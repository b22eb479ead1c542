package certs

// What an Authority tells about itself: a span for each action, and metrics. All label sets are closed. Only
// the leader has anything to say but that it is none.

import (
	"context"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// scopeName is the instrumentation scope of all spans and metrics of this package.
const scopeName = "github.com/tracehook/tracehook/certs"

const (
	keyStep      = attribute.Key("tracehook.certs.step")
	keyPhase     = attribute.Key("tracehook.certs.phase")
	keyReason    = attribute.Key("tracehook.certs.reason") // of spans only
	keyOutcome   = attribute.Key("tracehook.certs.outcome")
	keyCertainty = attribute.Key("tracehook.certs.certainty")
	keyCA        = attribute.Key("tracehook.certs.ca")
)

// Outcomes of a step.
const (
	outcomeDone     = "done"
	outcomeFailed   = "failed"
	outcomeConflict = "conflict" // somebody else wrote first; it is thought over
)

// stepObserve is what a failure to read is counted as.
const stepObserve Step = "observe"

type authorityTelemetry struct {
	tracer trace.Tracer
	steps  metric.Int64Counter

	mu     sync.Mutex
	leader bool
	state  State // as last seen or stored by this process
}

func newAuthorityTelemetry(tp trace.TracerProvider, mp metric.MeterProvider) (*authorityTelemetry, error) {
	if tp == nil {
		tp = tracenoop.NewTracerProvider()
	}
	if mp == nil {
		mp = metricnoop.NewMeterProvider()
	}
	t := &authorityTelemetry{tracer: tp.Tracer(scopeName, trace.WithSchemaURL(semconv.SchemaURL))}
	meter := mp.Meter(scopeName, metric.WithSchemaURL(semconv.SchemaURL))
	var err error
	if t.steps, err = meter.Int64Counter("tracehook.certs.steps", metric.WithUnit("{step}"),
		metric.WithDescription("Steps of the certificate authority, by how they ended.")); err != nil {
		return nil, fmt.Errorf("create the counter of steps: %w", err)
	}
	leader, err := meter.Int64ObservableGauge("tracehook.certs.leader",
		metric.WithDescription("1 if this process is the one that keeps the certificates."))
	if err != nil {
		return nil, fmt.Errorf("create the gauge of the leader: %w", err)
	}
	phase, err := meter.Int64ObservableGauge("tracehook.certs.phase",
		metric.WithDescription("1 for the phase that the replacement of the CA is in, 0 for the others; the leader only."))
	if err != nil {
		return nil, fmt.Errorf("create the gauge of the phase: %w", err)
	}
	expiration, err := meter.Int64ObservableGauge("tracehook.certs.ca.not_after.timestamp", metric.WithUnit("s"),
		metric.WithDescription("When a CA ends, as a Unix time; the leader only."))
	if err != nil {
		return nil, fmt.Errorf("create the gauge of the CA's end: %w", err)
	}
	proof, err := meter.Int64ObservableGauge("tracehook.certs.proof.timestamp", metric.WithUnit("s"),
		metric.WithDescription("When API servers were last known to have loaded what was published, as a Unix time; the leader only."))
	if err != nil {
		return nil, fmt.Errorf("create the gauge of the last proof: %w", err)
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.leader {
			o.ObserveInt64(leader, 0)
			return nil
		}
		o.ObserveInt64(leader, 1)
		for _, p := range Phases() {
			value := int64(0)
			if p == t.state.Phase {
				value = 1
			}
			o.ObserveInt64(phase, value, metric.WithAttributes(keyPhase.String(p.label())))
		}
		if c := t.state.CA.Certificate; c != nil {
			o.ObserveInt64(expiration, c.NotAfter.Unix(), metric.WithAttributes(keyCA.String("current")))
		}
		if c := t.state.NextCA.Certificate; c != nil {
			o.ObserveInt64(expiration, c.NotAfter.Unix(), metric.WithAttributes(keyCA.String("next")))
		}
		if p := t.state.Proof; p != nil {
			o.ObserveInt64(proof, p.Time.Unix(), metric.WithAttributes(keyCertainty.String(p.Certainty.label())))
		}
		return nil
	}, leader, phase, expiration, proof)
	if err != nil {
		return nil, fmt.Errorf("register the gauges of the authority: %w", err)
	}
	return t, nil
}

// label is never empty.
func (p Phase) label() string {
	if p == PhaseNone {
		return "none"
	}
	return string(p)
}

// label is one of a closed set, whatever is stored.
func (c Certainty) label() string {
	switch c {
	case Proven, Sampled:
		return string(c)
	}
	return string(Assumed)
}

// leads says whether this process is the leader.
func (t *authorityTelemetry) leads(leader bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leader = leader
}

// knows remembers the state.
func (t *authorityTelemetry) knows(s State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = s
}

// step begins the span of an action.
func (t *authorityTelemetry) step(ctx context.Context, a Action, from Phase, reason string) (context.Context, trace.Span) {
	return t.tracer.Start(ctx, "certs "+string(a.Step), trace.WithAttributes(
		keyStep.String(string(a.Step)), keyPhase.String(from.label()), keyReason.String(reason)))
}

// ended counts a step and ends its span.
func (t *authorityTelemetry) ended(ctx context.Context, span trace.Span, step Step, err error) {
	defer span.End()
	attributes := []attribute.KeyValue{keyStep.String(string(step)), keyOutcome.String(outcomeDone)}
	if err != nil {
		kind := errorType(err)
		attributes[1] = keyOutcome.String(outcomeFailed)
		if kind == "conflict" {
			attributes[1] = keyOutcome.String(outcomeConflict)
		}
		attributes = append(attributes, semconv.ErrorTypeKey.String(kind))
		span.SetStatus(codes.Error, err.Error())
	}
	span.SetAttributes(attributes[1:]...)
	t.steps.Add(ctx, 1, metric.WithAttributes(attributes...))
}

// errorType is one of a closed set.
func errorType(err error) string {
	switch {
	case apierrors.IsConflict(err):
		return "conflict"
	case apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err):
		return "forbidden"
	case apierrors.IsNotFound(err):
		return "not_found"
	case isTimeout(err):
		return "timeout"
	case apierrors.ReasonForError(err) != "":
		return "refused"
	}
	return "other"
}
