package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

func TestTheMarkdownReport(t *testing.T) {
	var b strings.Builder
	if err := Markdown(&b, demo(t)); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.md", b.String())
}

func TestMarkdownDoesNotLetTextOutOfItsPlace(t *testing.T) {
	trace := made("a")
	trace.Spans[0].Name = "```"
	var b strings.Builder
	err := Markdown(&b, Report{
		Title: "# <b>*x*</b>\n## y", Facts: []Fact{{"a|b", "`tick` | bar"}, {"empty", ""}},
		Sections: []Section{{
			Text: "[link](x) _under_", Output: "```\nfence", Trace: &trace,
			Counters: []Counter{{Name: "a|b", Before: 1, After: 1.5, Meaning: "c|d"}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# \\# &lt;b&gt;\\*x\\*&lt;/b&gt; \\#\\# y\n",
		"- a|b: `` `tick` | bar ``\n",
		"- empty: (empty)\n",
		"\\[link\\](x) \\_under\\_\n",
		"````text\n```\nfence\n````\n",
		"| `a\\|b`<br>c\\|d | 1 | 1.5 | **+0.5** |\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if n := strings.Count(b.String(), "````"); n != 4 {
		t.Errorf("%d fences of four, want 4: around the output and around the tree", n)
	}
}

func TestTheJSONReport(t *testing.T) {
	var b strings.Builder
	r := demo(t)
	r.Sections[1].Trace, r.Sections[0].Trace = nil, small()
	if err := JSON(&b, r); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", b.String())
}

// small is a trace that has a bit of everything.
func small() *tracestore.Trace {
	start := time.UnixMicro(1795000000123456).UTC()
	return &tracestore.Trace{ID: "0123456789abcdef0123456789abcdef", Spans: []tracestore.Span{
		{
			ID: "000000000000000a", Service: "front", Name: "order", Kind: tracestore.KindServer, Scope: "lib", ScopeVersion: "1.2",
			Start: start, Duration: 1500 * time.Microsecond, Status: tracestore.StatusOK,
			Attributes: map[string]any{"text": "<&>", "yes": true, "int": int64(-7), "large": int64(math.MaxInt64), "float": 0.5, "nan": math.NaN(), "bytes": []byte{1, 2}},
			Resource:   map[string]any{"host.name": "a"},
		},
		{
			ID: "000000000000000b", ParentID: "000000000000000a", Service: "back", Name: "pay", Kind: tracestore.KindClient,
			Start: start.Add(100 * time.Microsecond), Duration: 200 * time.Microsecond,
			Status: tracestore.StatusError, StatusMessage: "no money",
			Events: []tracestore.Event{{Time: start.Add(150 * time.Microsecond), Name: "asked", Attributes: map[string]any{"times": int64(3)}}},
			Links:  []tracestore.Link{{TraceID: "0000000000000000000000000000000c", SpanID: "000000000000000d"}},
		},
		{
			ID: "000000000000000e", ParentID: "00000000000000ff", Service: "back", Name: "ship",
			Start: start.Add(2 * time.Millisecond), Duration: time.Microsecond,
		},
	}}
}

func TestThePageNeedsNothingButItself(t *testing.T) {
	var b strings.Builder
	if err := HTML(&b, demo(t)); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	if outside := regexp.MustCompile(`(?i)(src|href|action|url\()\s*=?\s*["']?\s*(https?:|//|[a-z0-9_-]+\.[a-z])`).FindAllString(page, -1); len(outside) > 0 {
		t.Errorf("the page refers to %q", outside)
	}
	if inline := regexp.MustCompile(`(?i)\s(style|on[a-z]+)=`).FindAllString(page, -1); len(inline) > 0 {
		t.Errorf("the page has attributes that its policy forbids: %q", inline)
	}
	for _, want := range []string{"default-src 'none'", "base-uri 'none'", "form-action 'none'"} {
		if !strings.Contains(strings.ReplaceAll(page, "&#39;", "'"), want) {
			t.Errorf("the policy does not say %s", want)
		}
	}
	if strings.Contains(page, "unsafe-") {
		t.Error("the policy allows something unsafe")
	}
	if !strings.Contains(page, "<style>"+pageStyle+"</style>") || !strings.Contains(page, "<script>"+pageScript+"</script>") {
		t.Error("style or script are not in the page as they were hashed")
	}
}

func TestThePageHoldsTheSameDataAsTheJSON(t *testing.T) {
	var page, file bytes.Buffer
	r := demo(t)
	if err := HTML(&page, r); err != nil {
		t.Fatal(err)
	}
	if err := JSON(&file, r); err != nil {
		t.Fatal(err)
	}
	_, data, _ := strings.Cut(page.String(), `<script type="application/json" id="data">`)
	data, _, _ = strings.Cut(data, "</script>")
	var embedded, written bytes.Buffer
	if err := json.Compact(&embedded, []byte(data)); err != nil {
		t.Fatal(err)
	}
	if err := json.Compact(&written, file.Bytes()); err != nil {
		t.Fatal(err)
	}
	if embedded.String() != written.String() {
		t.Error("the data in the page is not what trace.json holds")
	}
}

func TestAReportWithNothingInItCanBeWritten(t *testing.T) {
	for name, write := range map[string]func(*strings.Builder) error{
		"HTML": func(b *strings.Builder) error {
			return HTML(b, Report{Sections: []Section{{Trace: &tracestore.Trace{}}}})
		},
		"JSON": func(b *strings.Builder) error { return JSON(b, Report{}) },
		"Markdown": func(b *strings.Builder) error {
			return Markdown(b, Report{Sections: []Section{{Trace: &tracestore.Trace{}}}})
		},
	} {
		var b strings.Builder
		if err := write(&b); err != nil || b.Len() == 0 {
			t.Errorf("%s: %d bytes, error %v", name, b.Len(), err)
		}
	}
}

var errFull = errors.New("no space left")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestAFullDiskIsReported(t *testing.T) {
	r := demo(t)
	for name, err := range map[string]error{
		"Tree": Tree(fullDisk{}, *r.Sections[0].Trace, TreeOptions{}), "HTML": HTML(fullDisk{}, r),
		"JSON": JSON(fullDisk{}, r), "Markdown": Markdown(fullDisk{}, r),
	} {
		if !errors.Is(err, errFull) {
			t.Errorf("%s returns %v, want %v", name, err, errFull)
		}
	}
}
