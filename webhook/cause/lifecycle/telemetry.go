package lifecycle

// What a Controller says about itself, and about Pods and roll-outs in numbers.

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// Attribute keys of the metrics. All have few values.
const (
	keyStage   = attribute.Key("tracehook.stage")
	keyOutcome = attribute.Key("tracehook.outcome")
	keyKind    = attribute.Key("tracehook.object.kind")
)

// stageBounds are in seconds: from a Pod with its image there to a roll-out of an hour.
var stageBounds = []float64{0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600}

type telemetry struct {
	stages, rollOuts metric.Float64Histogram
	told             metric.Int64Counter
	reached          metric.Int64Gauge
}

func newTelemetry(provider metric.MeterProvider) (*telemetry, error) {
	meter := provider.Meter(scopeName)
	t := new(telemetry)
	var err error
	if t.stages, err = meter.Float64Histogram("tracehook.lifecycle.pod.stage.duration", metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(stageBounds...),
		metric.WithDescription("How long Pods with a sampled cause were in each stage of their start-up, by stage and outcome.")); err != nil {
		return nil, fmt.Errorf("create the histogram of stages: %w", err)
	}
	if t.rollOuts, err = meter.Float64Histogram("tracehook.lifecycle.rollout.duration", metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(stageBounds...),
		metric.WithDescription("How long roll-outs and Jobs with a sampled cause took, by kind and outcome.")); err != nil {
		return nil, fmt.Errorf("create the histogram of roll-outs: %w", err)
	}
	if t.told, err = meter.Int64Counter("tracehook.lifecycle.stages", metric.WithUnit("{stage}"),
		metric.WithDescription("Stages of objects with a sampled cause, by outcome: told; too_old, too_many or ahead of the clock to be told.")); err != nil {
		return nil, fmt.Errorf("create the counter of stages: %w", err)
	}
	if t.reached, err = meter.Int64Gauge("tracehook.lifecycle.told.timestamp", metric.WithUnit("s"),
		metric.WithDescription("When everything that had been seen was last told and exported, in seconds since 1970-01-01 UTC; only who leads has it.")); err != nil {
		return nil, fmt.Errorf("create the gauge of what is told: %w", err)
	}
	for _, outcome := range []string{"told", "too_old", "too_many", "ahead"} {
		t.count(outcome, 0)
	}
	return t, nil
}

func (t *telemetry) count(outcome string, n int64) {
	t.told.Add(context.Background(), n, metric.WithAttributes(keyOutcome.String(outcome)))
}

// measure takes one stage that was told in a span, which becomes its exemplar.
func (t *telemetry) measure(s *subject, stage Stage, span trace.SpanContext) {
	t.count("told", 1)
	outcome := "ok"
	if stage.Failed() {
		outcome = "failed"
	}
	ctx := trace.ContextWithSpanContext(context.Background(), span)
	seconds := stage.End.Sub(stage.Start).Seconds()
	switch stage.Name {
	case StartPod, Schedule, PrepareSandbox, PullImage, StartInitContainer, RunInitContainer, StartContainer, RestartContainer, BecomeReady:
		t.stages.Record(ctx, seconds, metric.WithAttributes(keyStage.String(string(stage.Name)), keyOutcome.String(outcome)))
	case RollOut, RunJob:
		t.rollOuts.Record(ctx, seconds, metric.WithAttributes(keyKind.String(s.kind), keyOutcome.String(outcome)))
	}
}
