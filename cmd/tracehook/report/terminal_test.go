package report

import (
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore/recorded"
)

func TestTheTreeShowsServiceSpanAndDurationInOrder(t *testing.T) {
	golden(t, "configmap.txt", tree(t, recorded.Trace(t, "configmap"), TreeOptions{}))
	golden(t, "refused.txt", tree(t, recorded.Trace(t, "refused"), TreeOptions{}))
	golden(t, "folded.txt", tree(t, recorded.Trace(t, "configmap"), TreeOptions{FoldFilters: true}))
	golden(t, "narrow.txt", tree(t, recorded.Trace(t, "refused"), TreeOptions{Width: 60}))
}

// Only what is certainly one of the API server's filters, has no error to tell and stands in a row is folded.
func TestAFilterThatTellsSomethingIsNotFolded(t *testing.T) {
	chain := func(change func(*tracestore.Span)) string {
		trace := made("server f1<server f2<f1 f3<f2 create<f3 other<f2")
		for i := range trace.Spans {
			if strings.HasPrefix(trace.Spans[i].Name, "f") {
				trace.Spans[i].Scope = "k8s.op/apiserver/pkg/endpoints/filterlatency"
			}
		}
		change(&trace.Spans[2])
		text := tree(t, trace, TreeOptions{FoldFilters: true})
		var names []string
		for _, line := range strings.Split(text, "\n")[3:] {
			if fields := strings.Fields(strings.Trim(line, "s")); len(fields) > 2 {
				names = append(names, strings.Trim(strings.Join(fields[:len(fields)-3], " "), "│├└ "))
			}
		}
		return strings.Join(names, ", ")
	}
	for name, c := range map[string]struct {
		change func(*tracestore.Span)
		want   string
	}{
		"all three":      {func(*tracestore.Span) {}, "server, +3 filters, create, other"},
		"one with error": {func(s *tracestore.Span) { s.Status = tracestore.StatusError }, "server, f1, ✗ f2, f3, create, other"},
		"a server":       {func(s *tracestore.Span) { s.Kind = tracestore.KindServer }, "server, f1, f2, f3, create, other"},
		"another's":      {func(s *tracestore.Span) { s.Scope = "mine" }, "server, f1, f2, f3, create, other"},
	} {
		if got := chain(c.change); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestTheTreeFitsItsWidth(t *testing.T) {
	deep := "a"
	for i := range 80 {
		deep += " " + strings.Repeat("b", i+2) + "<" + strings.Repeat("b", i+1)
	}
	deep = strings.Replace(deep, "<b ", "<a ", 1)
	wide := made("root 要求を処理する要求を処理する要求を処理する<root e\u0301te\u0301<root")
	wide.Spans[1].Service = strings.Repeat("調", 30)
	for _, trace := range []tracestore.Trace{recorded.Trace(t, "configmap"), recorded.Trace(t, "refused"), made(deep), wide} {
		for _, columns := range []int{0, 1, 40, 41, 57, 80, 100, 200} {
			limit := max(columns, 40)
			if columns == 0 {
				limit = 100
			}
			text := tree(t, trace, TreeOptions{Width: columns})
			_, text, _ = strings.Cut(text, "\n") // the summary holds the trace id, which is never cut
			for _, line := range strings.Split(text, "\n") {
				if n := cells(line); n > limit {
					t.Errorf("width %d: a line has %d columns: %q", columns, n, line)
				}
			}
			if rows := strings.Count(text, "\n") - 2; rows < len(trace.Spans) {
				t.Errorf("width %d: %d rows for %d spans", columns, rows, len(trace.Spans))
			}
		}
	}
}

func TestTheTreeShowsWhatIsLost(t *testing.T) {
	text := tree(t, made("a b<a c<x d<e e<d"), TreeOptions{})
	for _, want := range []string{
		"5 spans of 1 service · 7 ms · 2 spans without its parent",
		"? c ", "its parent span x did not arrive",
		"? d ", "its parent span e is also below it", "└ e",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if text := tree(t, tracestore.Trace{ID: "f00d"}, TreeOptions{}); text != "(no span has arrived)\n" {
		t.Errorf("an empty trace is drawn as %q", text)
	}
}

func TestTheTreePassesNoControlCharactersOn(t *testing.T) {
	trace := made("a")
	trace.Spans[0].Name = "\x1b[31mred\nline\u202e"
	trace.Spans[0].Service = "\x1b]0;title\a"
	trace.Spans[0].Status, trace.Spans[0].StatusMessage = tracestore.StatusError, "\x1b[2J\x9b"
	text := tree(t, trace, TreeOptions{})
	if strings.ContainsAny(text, "\x1b\a\u202e\u009b") {
		t.Errorf("control characters came through: %q", text)
	}
	if !strings.Contains(text, "�[31mred line�") {
		t.Errorf("the name is not readable any more: %q", text)
	}
}

func TestColoursAddNothingButColours(t *testing.T) {
	trace := recorded.Trace(t, "refused")
	plain := tree(t, trace, TreeOptions{})
	if strings.Contains(plain, "\x1b") {
		t.Error("the plain tree has escape sequences")
	}
	coloured := tree(t, trace, TreeOptions{Colour: true})
	if !strings.Contains(coloured, "\x1b[1;31m✗ HTTP POST") {
		t.Errorf("the error is not red: %q", coloured)
	}
	if got := withoutColours(coloured); got != plain {
		t.Errorf("without its colours the tree is\n%s\nwant\n%s", got, plain)
	}
	// etcd is the third service of this trace, but the fourth of the other one.
	first := tree(t, recorded.Trace(t, "configmap"), TreeOptions{Colour: true})
	second := tree(t, trace, TreeOptions{Colour: true, Services: []string{"kubectl", "apiserver", "tracehook", "etcd"}})
	const etcd = "\x1b[36metcd"
	if !strings.Contains(first, etcd) || !strings.Contains(second, etcd) {
		t.Error("etcd has not the same colour in both trees")
	}
}

func TestDurationsHaveThreeDigits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                         "0 µs",
		250:                       "250 ns",
		time.Microsecond:          "1 µs",
		1500:                      "1.50 µs",
		21 * time.Microsecond:     "21 µs",
		999 * time.Microsecond:    "999 µs",
		999400:                    "999 µs",
		999600:                    "1.00 ms",
		time.Millisecond:          "1 ms",
		1234 * time.Microsecond:   "1.23 ms",
		9996 * time.Microsecond:   "10.0 ms",
		45678 * time.Microsecond:  "45.7 ms",
		999600 * time.Microsecond: "1.00 s",
		90 * time.Second:          "90 s",
		-2 * time.Millisecond:     "-2 ms",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("%d ns is %q, want %q", d, got, want)
		}
	}
}

func tree(t *testing.T, trace tracestore.Trace, o TreeOptions) string {
	t.Helper()
	var b strings.Builder
	if err := Tree(&b, trace, o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func withoutColours(text string) string {
	for {
		before, after, found := strings.Cut(text, "\x1b[")
		if !found {
			// Colour ends after the blanks that end a plain line.
			lines := strings.Split(text, "\n")
			for i := range lines {
				lines[i] = strings.TrimRight(lines[i], " ")
			}
			return strings.Join(lines, "\n")
		}
		_, after, _ = strings.Cut(after, "m")
		text = before + after
	}
}
