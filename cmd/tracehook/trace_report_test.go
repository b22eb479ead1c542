package main

import (
	"errors"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"
)

func TestTheReportSaysWhatTheUserWouldOtherwiseWonderAbout(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	traceID, err := trace.TraceIDFromHex(id)
	if err != nil {
		t.Fatal(err)
	}
	fine := traceOutcome{Command: []string{"kubectl", "get", "pods"}, TraceID: traceID, Sampled: true, Calls: 3}
	for _, c := range []struct {
		name   string
		change func(*traceOutcome)
		url    string
		want   []string // each the beginning of its line
	}{
		{name: "nothing but the id when all is well", want: []string{"trace id: " + id}},
		{name: "a link", url: "http://localhost:16686/trace/{traceID}?x={traceID}",
			want: []string{"trace id: " + id, "trace link: http://localhost:16686/trace/" + id + "?x=" + id}},
		{name: "no call", change: func(o *traceOutcome) { o.Calls = 0 },
			want: []string{"tracehook: nothing was traced: kubectl sent no request through the proxy", "trace id: "}},
		{name: "no call because of a flag", change: func(o *traceOutcome) { o.Calls = 0; o.Command = append(o.Command, "--context", "hunter2") },
			want: []string{"tracehook: nothing was traced: with --context, kubectl chooses a cluster past the proxy", "trace id: "}},
		{name: "credentials of its own", change: func(o *traceOutcome) { o.Calls = 0; o.Refused = 2; o.Command = append(o.Command, "--token", "hunter2") },
			want: []string{"tracehook: nothing was traced: kubectl sent credentials of its own", "trace id: "}},
		{name: "a flag that changes nothing", change: func(o *traceOutcome) { o.Command = append(o.Command, "--context", "hunter2") },
			want: []string{"trace id: "}},
		{name: "not sampled", change: func(o *traceOutcome) { o.Sampled = false },
			want: []string{"tracehook: this trace is not recorded: OTEL_TRACES_SAMPLER or the flags in TRACEPARENT", "trace id: "}},
		{name: "linked only", change: func(o *traceOutcome) { o.LinkedOnly = true },
			want: []string{"tracehook: the API server only links to this trace", "trace id: "}},
		{name: "not exported", change: func(o *traceOutcome) { o.ExportError = errors.New("first\nsecond") },
			want: []string{"tracehook: spans could not be exported: first second; set OTEL_EXPORTER_OTLP_ENDPOINT", "trace id: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			outcome := fine
			if c.change != nil {
				c.change(&outcome)
			}
			got := outcome.report(c.url)
			if len(got) != len(c.want) {
				t.Fatalf("got\n%s\nwant %d lines that begin with\n%s", strings.Join(got, "\n"), len(c.want), strings.Join(c.want, "\n"))
			}
			for i := range got {
				if !strings.HasPrefix(got[i], c.want[i]) || strings.Contains(got[i], "hunter2") || strings.Contains(got[i], "\n") {
					t.Errorf("line %d\n got %q\nwant a line that begins with %q", i, got[i], c.want[i])
				}
			}
		})
	}
}
