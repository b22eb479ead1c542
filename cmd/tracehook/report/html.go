// This file writes the report as one HTML page that needs nothing but itself: a
// Report comes in, the page goes out. Errors: the writer's.
//
// The page is complete without its script, which only adds what can be opened
// and closed. Every position is an SVG attribute and every colour a class, so
// that the content security policy can forbid all styles and scripts but the
// two whose hashes it names.

package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

var (
	//go:embed report.html.tmpl
	pageTemplate string
	//go:embed report.css
	pageStyle string
	//go:embed report.js
	pageScript string
)

// maxGuides is how deep rows move to the right; what is deeper stays there, so
// that names keep their room.
const maxGuides = 20

// palette is how many colours report.css knows for services.
const palette = 8

// HTML writes the report as a self-contained page.
func HTML(w io.Writer, r Report) error {
	t, err := template.New("report").Parse(pageTemplate)
	if err != nil {
		return fmt.Errorf("parse the report's template: %w", err)
	}
	// Into memory first: half a page is worse than none.
	var b bytes.Buffer
	if err := t.Execute(&b, newPage(r)); err != nil {
		return fmt.Errorf("fill the report's template: %w", err)
	}
	if _, err := b.WriteTo(w); err != nil {
		return fmt.Errorf("write the report as HTML: %w", err)
	}
	return nil
}

// What the template sees.
type (
	page struct {
		Report
		Stamp    string
		Policy   string
		Style    template.CSS
		Script   template.JS
		Sections []pageSection
		Data     document
	}
	pageSection struct {
		Section
		ID         string
		Paragraphs []string
		Trace      *pageTrace
		Counters   []pageCounter
	}
	pageCounter struct {
		Name, Meaning, Before, After, Delta string
		Moved                               bool
	}
	pageTrace struct {
		ID, TraceID         string
		Section             int // its place in the data
		Duration, Start     string
		Spans, Errors, Lost string // "22 spans"; "" for none
		StoreURL            string
		Services            []pageService
		Ticks               []pageTick
		Rows                []pageRow
	}
	pageService struct {
		Name, Self, Share string
		Colour            int
		X, Width          string // of its piece in the bar of all services
	}
	pageTick struct {
		X, Label, Anchor string
		Odd              bool // left out where there is little room
	}
	pageRow struct {
		ID, Service, Name, Kind  string
		Object                   string
		Duration, Offset         string
		Label                    string // all of it, for a screen reader
		Index                    int    // in the trace's data
		Colour                   int
		Level, Position, SetSize int
		Below                    int      // spans below this one
		Folds                    bool     // it is no span: the API server's filters are below it, closed at first
		OfTrace                  string   // of a span of another trace: which, and whose it is
		Guides, Beside           []string // the lines in the first line of the row and in others
		Deeper                   bool     // than the guides show
		Bar                      pageBar
		Working, Critical        []pageBar
		Events                   []string // where on the axis
		Failed, Lost             bool
		Message                  string // the error's, or what became of the parent
	}
	pageBar struct{ X, Width string } // per cent, like every X here
)

func newPage(r Report) page {
	p := page{
		Report: r,
		Stamp:  stamp(r.Generated),
		Policy: Policy(r),
		Style:  template.CSS(pageStyle),
		Script: template.JS(pageScript),
		Data:   newDocument(r),
	}
	colours := make(map[string]int) // one service, one colour, in all traces
	for i, s := range r.Sections {
		section := pageSection{Section: s, ID: "section-" + strconv.Itoa(i+1), Paragraphs: paragraphs(s.Text)}
		if s.Trace != nil {
			l := newLayout(*s.Trace, filtersBelowLine)
			for _, service := range l.Services {
				if _, known := colours[service.Name]; !known {
					colours[service.Name] = len(colours)
				}
			}
			section.Trace = newPageTrace(i, l, colours)
			section.Trace.StoreURL = s.StoreURL
		}
		for _, c := range s.Counters {
			section.Counters = append(section.Counters, pageCounter{
				Name: c.Name, Meaning: c.Meaning, Before: formatNumber(c.Before), After: formatNumber(c.After),
				Delta: formatDelta(c.Delta()), Moved: c.Delta() != 0,
			})
		}
		p.Sections = append(p.Sections, section)
	}
	return p
}

// Policy is the page's content security policy: its own style, its own script, and of the
// network only what a live page asks its own server for.
func Policy(r Report) string {
	policy := fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; img-src data:; base-uri 'none'; form-action 'none'",
		policyHash(pageStyle), policyHash(pageScript))
	if r.Live != "" {
		policy += "; connect-src 'self'"
	}
	return policy
}

func policyHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func newPageTrace(section int, l layout, colours map[string]int) *pageTrace {
	t := &pageTrace{
		ID: "trace-" + strconv.Itoa(section+1), TraceID: l.Trace.ID, Section: section,
		Duration: formatDuration(l.Total), Spans: count(len(l.Trace.Spans), "span"), Start: stamp(l.Start),
	}
	if l.Errors > 0 {
		t.Errors = count(l.Errors, "error")
	}
	if l.Lost > 0 {
		t.Lost = count(l.Lost, "span") + " without its parent"
	}
	t.Services = shares(l.Services, colours)

	step := l.Total
	if len(l.Ticks) > 1 {
		step = l.Ticks[1]
	}
	for i, at := range l.Ticks {
		x := l.fraction(at)
		anchor := "middle"
		switch {
		case i == 0:
			anchor = "start"
		case x > 0.94:
			anchor = "end"
		}
		t.Ticks = append(t.Ticks, pageTick{X: percent(x), Label: formatTick(at, step, l.Total), Anchor: anchor, Odd: i%2 == 1})
	}
	for _, r := range l.Rows {
		t.Rows = append(t.Rows, newPageRow(t.ID, r, l, colours[r.Service]%palette))
	}
	return t
}

// shares divides the bar of all services by the time in which each worked.
func shares(services []service, colours map[string]int) []pageService {
	var sum time.Duration
	for _, s := range services {
		sum += s.Self
	}
	var out []pageService
	x := 0.0
	for _, s := range services {
		share := 0.0
		if sum > 0 {
			share = float64(s.Self) / float64(sum)
		}
		out = append(out, pageService{
			Name: s.Name, Self: formatDuration(s.Self),
			Share:  strconv.FormatFloat(100*share, 'f', 0, 64) + " %",
			Colour: colours[s.Name] % palette,
			X:      percent(x), Width: percent(share),
		})
		x += share
	}
	return out
}

func newPageRow(trace string, r row, l layout, colour int) pageRow {
	out := pageRow{
		ID: trace + "-" + strconv.Itoa(r.Place), Index: r.Place, Folds: r.Folds, OfTrace: beside(r), Service: r.Service, Name: r.Name, Object: r.Object, Colour: colour,
		Duration: spanDuration(r.Span), Offset: formatDuration(r.Offset),
		Level: r.Depth + 1, Position: r.Position, SetSize: r.SetSize, Below: r.Below,
		Bar:     bar(r.From, r.To),
		Failed:  r.Status == tracestore.StatusError,
		Message: lostText(r.Lost, r.ParentID), Lost: r.Lost != tracestore.NotLost,
	}
	if out.Name == "" {
		out.Name = "(no name)"
	}
	if out.Folds {
		out.ID += "-filters"
	}
	if r.Kind != tracestore.KindInternal {
		out.Kind = r.Kind
	}
	if out.Failed {
		out.Message = r.StatusMessage
	}
	guides := r.Guides
	if len(guides) > maxGuides {
		guides, out.Deeper = guides[:maxGuides], true
	}
	for _, g := range guides {
		out.Guides = append(out.Guides, [...]string{guideBlank: "blank", guideDown: "down", guideFork: "fork", guideLast: "last"}[g])
		out.Beside = append(out.Beside, [...]string{guideBlank: "blank", guideDown: "down", guideFork: "down", guideLast: "blank"}[g])
	}
	for _, w := range r.Working {
		out.Working = append(out.Working, bar(w.From, w.To))
	}
	for _, c := range r.Critical {
		out.Critical = append(out.Critical, bar(c.From, c.To))
	}
	for _, e := range r.Events {
		out.Events = append(out.Events, percent(l.fraction(e.Time.Sub(l.Start))))
	}

	out.Label = fmt.Sprintf("%s: %s", out.Service, out.Name)
	if out.Kind != "" {
		out.Label += ", " + out.Kind
	}
	out.Label += fmt.Sprintf(", %s, starts at %s", out.Duration, out.Offset)
	if out.Object != "" {
		out.Label += ", about " + out.Object
	}
	if r.Beside {
		out.Label += ", of trace " + r.TraceID
	}
	if r.CriticalTime > 0 {
		out.Label += ", on the critical path for " + formatDuration(r.CriticalTime)
	}
	if out.Failed {
		out.Label += ", error"
	}
	if out.Message != "" {
		out.Label += ", " + out.Message
	}
	return out
}

// bar is never so narrow that a browser leaves it out.
func bar(from, to float64) pageBar {
	const least = 0.001
	from = min(from, 1-least)
	return pageBar{X: percent(from), Width: percent(max(least, to-from))}
}

func percent(fraction float64) string {
	return strconv.FormatFloat(100*fraction, 'f', 3, 64) + "%"
}
