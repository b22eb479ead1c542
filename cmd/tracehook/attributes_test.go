package main

import (
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func TestNoAttributeIsLongerThanASpanMayBe(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	telemetry, err := startTelemetry(t.Context(), telemetryOptions{ServiceName: "test", OnError: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	_, span := telemetry.tracerProvider.Tracer("").Start(t.Context(), "POST /mutate")
	span.SetAttributes(attribute.String("long", strings.Repeat("x", 3<<20)))
	for _, a := range span.(sdktrace.ReadOnlySpan).Attributes() {
		if n := len(a.Value.AsString()); n > mostAttributeBytes {
			t.Errorf("%s has %d bytes", a.Key, n)
		}
	}
}
