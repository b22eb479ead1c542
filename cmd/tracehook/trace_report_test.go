package main

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

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
		{name: "past the proxy", change: func(o *traceOutcome) { o.Calls = 0; o.Past = "with --server, kubectl chooses a cluster past the proxy" },
			want: []string{"tracehook: nothing was traced: with --server, kubectl chooses a cluster past the proxy", "trace id: "}},
		{name: "credentials of its own", change: func(o *traceOutcome) { o.Calls = 0; o.Refused = 2; o.Command = append(o.Command, "--token", "hunter2") },
			want: []string{"tracehook: nothing was traced: kubectl sent credentials of its own", "trace id: "}},
		{name: "some credentials of its own", change: func(o *traceOutcome) { o.Refused = 2 },
			want: []string{"tracehook: 2 requests were refused: kubectl sent credentials of its own", "trace id: "}},
		{name: "a flag that changes nothing", change: func(o *traceOutcome) { o.Command = append(o.Command, "--context", "hunter2") },
			want: []string{"trace id: "}},
		{name: "not sampled", change: func(o *traceOutcome) { o.Sampled = false },
			want: []string{"tracehook: this trace is not recorded: OTEL_TRACES_SAMPLER or the flags in TRACEPARENT", "trace id: "}},
		{name: "the SDK disabled", change: func(o *traceOutcome) {
			o.Sampled, o.Environment.Disabled, o.TraceID = false, true, trace.TraceID{}
		}, url: "http://localhost:16686/trace/{traceID}",
			want: []string{"tracehook: this trace is not recorded: OTEL_SDK_DISABLED is true"}},
		{name: "a variable that cannot be used", change: func(o *traceOutcome) {
			o.Environment.Complaints = []telemetryComplaint{{"OTEL_TRACES_SAMPLER", `"x" is not one of always_on`, "the default is used"}}
		}, want: []string{`tracehook: OTEL_TRACES_SAMPLER: "x" is not one of always_on; the default is used`, "trace id: "}},
		{name: "a user whose trace is not continued", change: func(o *traceOutcome) { o.Parentage = parentageUserOnly },
			want: []string{"tracehook: if the API server traces requests, it makes a trace of its own that links to this one: it continues those of system:masters and system:monitoring only", "trace id: "}},
		{name: "a cluster that continues nobody's", change: func(o *traceOutcome) { o.Parentage = parentageNobody },
			want: []string{"tracehook: if the API server traces requests, it makes a trace of its own that links to this one: it continues nobody's before Kubernetes 1.33", "trace id: "}},
		{name: "a trace that was seen to go on", change: func(o *traceOutcome) { o.Parentage, o.Passed = parentageUserOnly, true },
			want: []string{"trace id: "}},
		{name: "an API server out of reach", change: func(o *traceOutcome) { o.ExitCode, o.Unreachable = 1, errors.New("dial tcp: refused") },
			want: []string{"tracehook: the API server did not answer, or not to the end: dial tcp: refused", "trace id: "}},
		{name: "an error that the command came over", change: func(o *traceOutcome) { o.Unreachable = errors.New("EOF") },
			want: []string{"trace id: "}},
		{name: "a kubeconfig that is gone", change: func(o *traceOutcome) { o.KubeconfigChanged = true },
			want: []string{"tracehook: kubectl changed the temporary kubeconfig, and the change is gone with it", "trace id: "}},
		{name: "not exported", change: func(o *traceOutcome) { o.ExportError = errors.New("first\nsecond") },
			want: []string{"tracehook: spans could not be exported: first second; set OTEL_EXPORTER_OTLP_ENDPOINT", "trace id: "}},
		{name: "what a server writes", url: "http://x/\x1b[2J{traceID}", change: func(o *traceOutcome) {
			o.ExportError = errors.New("\x1b]0;title\a\x1b[31mred\r\u009b2J\u202egnp.exe\x7f\xff")
			o.ExitCode, o.Unreachable = 1, errors.New("x509: valid for \x1b[2J")
		}, want: []string{
			"tracehook: the API server did not answer, or not to the end: x509: valid for �[2J",
			"tracehook: spans could not be exported: �]0;title��[31mred �2J�gnp.exe��; set", "trace id: ", "trace link: http://x/�[2J" + id}},
		{name: "what a server writes without end", change: func(o *traceOutcome) { o.ExportError = errors.New(strings.Repeat("x", 1<<20)) },
			want: []string{"tracehook: spans could not be exported: xxx", "trace id: "}},
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
				if !strings.HasPrefix(got[i], c.want[i]) || strings.Contains(got[i], "hunter2") || printable(got[i]) != got[i] || len(got[i]) > 4000 {
					t.Errorf("line %d\n got %q\nwant a line that begins with %q", i, got[i], c.want[i])
				}
			}
		})
	}
}

func TestTheHintFitsTheError(t *testing.T) {
	for message, want := range map[string]string{
		`Post "http://localhost:4317/v1/traces": net/http: HTTP/1.x transport connection broken: malformed HTTP response "\x00\x00\x06"`:                                                                "OTEL_EXPORTER_OTLP_PROTOCOL to grpc",
		`rpc error: code = Unavailable desc = error reading server preface: http2: failed reading the frame payload: http2: frame too large, note that the frame header looked like an HTTP/1.1 header`: "OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf",
		"connection refused": "OTEL_EXPORTER_OTLP_ENDPOINT",
	} {
		if got := exportHint(message); !strings.Contains(got, want) {
			t.Errorf("%s\n got the hint %q, want %q", message, got, want)
		}
	}
}

func FuzzALineForTheTerminal(f *testing.F) {
	f.Add("\x1b[2J\r\n\u202e\xff")
	f.Add(strings.Repeat("é", 3000))
	f.Fuzz(func(t *testing.T, s string) {
		got := oneLine(s)
		if !utf8.ValidString(got) || len(got) > 10_000 || strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
			t.Errorf("%q becomes %q", s, got)
		}
	})
}
