package main

// What `trace` says at the end. In: how a run went. Out: lines for stderr. Pure.

import (
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/cmd/tracehook/follow"
)

// traceOutcome is how a traced run went.
type traceOutcome struct {
	Command  []string
	ExitCode int // as a shell gives it

	TraceID     trace.TraceID
	Sampled     bool // false: the environment decided against this trace
	Environment telemetryEnvironment

	Past              string // why the command went past the proxy, or seems to have; "": it did not
	Calls             int64  // API calls that went through the proxy
	Refused           int64  // requests without a one-time token
	KubeconfigChanged bool   // the temporary one, by the command
	Unreachable       error  // why an API server did not answer, or not to the end

	Wrote     []follow.Root // what can be followed of what the command wrote
	WroteMore int           // how many more there are

	Parentage   parentage
	Passed      bool     // the trace was seen to go on below the API server
	ExportError error    // some or all spans did not arrive
	Shown       []string // what the drawing lacks
}

// report is one line for each thing that the user would otherwise wonder about, and
// the trace's id last, where it is found. A traceURL of "" means no link.
func (o traceOutcome) report(traceURL string) []string {
	var lines []string
	say := func(format string, args ...any) {
		lines = append(lines, "tracehook: "+oneLine(fmt.Sprintf(format, args...)))
	}
	name := executableName(o.Command)
	const own = "sent credentials of its own, and the proxy accepts only those in the temporary kubeconfig; put them into a kubeconfig and give `tracehook trace` its --kubeconfig and --context"
	switch {
	case o.Refused > 0 && o.Calls > 0:
		say("%d requests were refused: %s %s", o.Refused, name, own)
	case o.Calls > 0:
	case o.Refused > 0:
		say("nothing was traced: %s %s", name, own)
	case o.Past != "":
		say("nothing was traced: %s", o.Past)
	default:
		say("nothing was traced: %s sent no request through the proxy; either it had none to send or it does not heed KUBECONFIG", name)
	}
	if o.KubeconfigChanged {
		say("%s changed the temporary kubeconfig, and the change is gone with it; run it without `tracehook trace` to change yours", name)
	}
	if o.Unreachable != nil && o.ExitCode != exitOK {
		say("the API server did not answer, or not to the end: %v", o.Unreachable)
	}
	for _, c := range o.Environment.Complaints {
		say("%v", c)
	}
	switch {
	case o.Environment.Disabled:
		say("this trace is not recorded: OTEL_SDK_DISABLED is true")
	case !o.Sampled:
		say("this trace is not recorded: OTEL_TRACES_SAMPLER or the flags in TRACEPARENT decide against it")
	}
	if why := o.Parentage.whyNotContinued(); why != "" && o.Sampled && !o.Passed {
		say("if the API server traces requests, it makes a trace of its own that links to this one: %s; if it does not, this trace goes on in its webhooks and in the objects they change", why)
	}
	if o.ExportError != nil {
		say("spans could not be exported: %v; %s", o.ExportError, exportHint(o.ExportError.Error()))
	}

	for _, line := range o.Shown {
		say("%s", line)
	}

	if o.TraceID.IsValid() { // with OTEL_SDK_DISABLED there may be none
		lines = append(lines, "trace id: "+o.TraceID.String())
		if traceURL != "" {
			lines = append(lines, "trace link: "+printable(strings.ReplaceAll(traceURL, traceIDPlaceholder, o.TraceID.String())))
		}
	}
	return lines
}

// exportHint is what may help. One port of a Collector speaks gRPC, the other HTTP.
func exportHint(message string) string {
	switch {
	case strings.Contains(message, "malformed HTTP response"):
		return "set OTEL_EXPORTER_OTLP_PROTOCOL to grpc, if that is the port of gRPC"
	case strings.Contains(message, "looked like an HTTP/1.1 header"):
		return "set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf, if that is the port of HTTP"
	}
	return "set OTEL_EXPORTER_OTLP_ENDPOINT to where your OpenTelemetry Collector listens"
}

// oneLine keeps a message that libraries broke into several lines on one, without what steers a
// terminal, and ends where nobody reads on. Servers write parts of some messages.
func oneLine(s string) string {
	const most = 2000 // bytes
	if len(s) > most {
		s = s[:most] + " …"
	}
	return printable(strings.Join(strings.Fields(s), " "))
}
