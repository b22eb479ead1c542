package main

// What `trace` says at the end. In: how a run went. Out: lines for stderr. Pure.

import (
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/trace"
)

// traceOutcome is how a traced run went.
type traceOutcome struct {
	Command  []string
	ExitCode int // as a shell gives it

	TraceID     trace.TraceID
	Sampled     bool  // false: the environment decided against this trace
	Calls       int64 // API calls that went through the proxy
	Refused     int64 // requests without the one-time token
	LinkedOnly  bool  // the API server takes no parent from this user
	ExportError error // some or all spans did not arrive
}

// report is one line for each thing that the user would otherwise wonder about, and
// the trace's id last, where it is found. A traceURL of "" means no link.
func (o traceOutcome) report(traceURL string) []string {
	var lines []string
	say := func(format string, args ...any) {
		lines = append(lines, "tracehook: "+oneLine(fmt.Sprintf(format, args...)))
	}
	name := executableName(o.Command)
	switch flag := ownClusterFlag(o.Command); {
	case o.Calls > 0:
	case o.Refused > 0:
		say("nothing was traced: %s sent credentials of its own, and the proxy accepts only those in the temporary kubeconfig; put them into a kubeconfig and give `tracehook trace` its --kubeconfig and --context", name)
	case flag != "":
		say("nothing was traced: with %s, %s chooses a cluster past the proxy; give `tracehook trace` --kubeconfig or --context before the `--` instead", flag, name)
	default:
		say("nothing was traced: %s sent no request through the proxy; either it had none to send or it does not heed KUBECONFIG", name)
	}
	if !o.Sampled {
		say("this trace is not recorded: OTEL_TRACES_SAMPLER or the flags in TRACEPARENT decide against it")
	}
	if o.LinkedOnly {
		say("the API server only links to this trace from one of its own: it continues those of system:masters and system:monitoring; use a client certificate with O=system:monitoring to have one trace")
	}
	if o.ExportError != nil {
		say("spans could not be exported: %v; set OTEL_EXPORTER_OTLP_ENDPOINT to where your OpenTelemetry Collector listens", o.ExportError)
	}

	lines = append(lines, "trace id: "+o.TraceID.String())
	if traceURL != "" {
		lines = append(lines, "trace link: "+strings.ReplaceAll(traceURL, traceIDPlaceholder, o.TraceID.String()))
	}
	return lines
}

// oneLine keeps a message that libraries broke into several lines on one.
func oneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}
