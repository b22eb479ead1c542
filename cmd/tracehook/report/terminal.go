// This file draws a trace as text: a Trace comes in, lines go out that fit the
// given width. The only errors are the writer's.

package report

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/width"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// TreeOptions say how Tree draws.
type TreeOptions struct {
	Width  int  // columns that no line exceeds; 0: 100; less than 40 counts as 40
	Colour bool // ANSI colours
	// Services get their colours in this order, so that a service has one colour
	// in several trees. Nil: in the order in which they appear.
	Services []string
	// FoldFilters draws the API server's chain of filters as one line, "+4 filters".
	FoldFilters bool
}

// Narrower than these a column says nothing any more.
const (
	minTerminal = 40
	minBar      = 12
	maxBar      = 36
	minName     = 16
	maxService  = 16
)

// Tree draws one line per span: its service, its name at a depth that is its
// place in the tree, how long it took, and when. Below it, in words, what went
// wrong: the message of an error, a parent that did not arrive.
func Tree(w io.Writer, t tracestore.Trace, o TreeOptions) error {
	columns := o.Width
	if columns == 0 {
		columns = 100
	}
	columns = max(columns, minTerminal)

	how := filtersAsTheyAre
	if o.FoldFilters {
		how = filtersOneLine
	}
	l := newLayout(t, how)
	if len(l.Rows) == 0 {
		_, err := fmt.Fprintf(w, "(no span has arrived)\n")
		return err
	}

	// The duration is never cut. What is left goes to the names first, then to the bars.
	services, names, durations, depth := len("SERVICE"), len("SPAN"), len("DURATION"), 0
	for _, r := range l.Rows {
		services = max(services, cells(Printable(r.Service)))
		names = max(names, 2*r.Depth+cells(nameAndMark(r)))
		durations = max(durations, cells(spanDuration(r.Span)))
		depth = max(depth, r.Depth)
	}
	services = min(services, maxService)
	natural := names
	const gap = 2
	left := columns - services - gap - durations - gap
	bars := 0
	if left-gap-minBar >= minName {
		names = min(names, left-gap-minBar)
		bars = min(left-gap-names, maxBar)
	} else {
		names = min(names, left)
	}
	step, deepest := 2, names
	if natural > names {
		deepest = names / 2
		if 2*depth+minName > names {
			step = 1
		}
	}

	p := painter{on: o.Colour}
	var b strings.Builder
	line := func(parts ...string) {
		b.WriteString(strings.TrimRight(strings.Join(parts, ""), " "))
		b.WriteByte('\n')
	}
	header := pad("SERVICE", services+gap) + pad("SPAN", names+gap) + padLeft("DURATION", durations)
	if bars > 0 {
		header += strings.Repeat(" ", gap) + "0" + padLeft(formatDuration(l.Total), bars-1)
	}
	line(summary(l))
	line()
	line(p.dim(header))

	colours := colourOrder(o.Services, l)
	for _, r := range l.Rows {
		lines := branches(r, step, deepest)
		room := names - cells(lines)
		colour := colours[r.Service]
		name := pad(shorten(nameAndMark(r), room), room)
		if r.Status == tracestore.StatusError {
			name = p.fault(name)
		}
		bar := ""
		if bars > 0 {
			bar = strings.Repeat(" ", gap) + p.service(strings.TrimRight(drawBar(r.From, r.To, bars), " "), colour)
		}
		line(
			p.service(pad(shorten(Printable(r.Service), services), services), colour), strings.Repeat(" ", gap),
			p.dim(lines), name, strings.Repeat(" ", gap),
			padLeft(spanDuration(r.Span), durations), bar,
		)
		// A note goes under the name and may use the rest of the line.
		lead := services + gap + cells(lines) + 2
		for _, note := range notes(r) {
			for _, text := range wrap(note, columns-lead) {
				line(strings.Repeat(" ", lead), p.fault(text))
			}
		}
		for _, text := range wrap(beside(r), columns-lead) {
			line(strings.Repeat(" ", lead), p.dim(text))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// summary says in one line what a trace is.
func summary(l layout) string {
	parts := []string{"trace " + l.Trace.ID, count(len(l.Trace.Spans), "span") + " of " + count(len(l.Services), "service"), formatDuration(l.Total)}
	if l.Errors > 0 {
		parts = append(parts, count(l.Errors, "error"))
	}
	if l.Lost > 0 {
		parts = append(parts, count(l.Lost, "span")+" without its parent")
	}
	return strings.Join(parts, " · ")
}

// count writes "1 span" and "2 spans".
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// colourOrder numbers the services: the given ones first, then the others of
// the trace as they appear.
func colourOrder(first []string, l layout) map[string]int {
	order := make(map[string]int)
	for _, name := range first {
		if _, known := order[name]; !known {
			order[name] = len(order)
		}
	}
	for _, s := range l.Services {
		if _, known := order[s.Name]; !known {
			order[s.Name] = len(order)
		}
	}
	return order
}

// nameAndMark is the span's name, after a mark that needs no colour if
// something is wrong with the span.
func nameAndMark(r row) string {
	name := Printable(r.Name)
	if name == "" {
		name = "(no name)"
	}
	switch {
	case r.Status == tracestore.StatusError:
		return "✗ " + name
	case r.Lost != tracestore.NotLost:
		return "? " + name
	default:
		return name
	}
}

// notes are what a line of its own says about a span.
func notes(r row) []string {
	var notes []string
	if r.Status == tracestore.StatusError && r.StatusMessage != "" {
		notes = append(notes, Printable(r.StatusMessage))
	}
	if text := lostText(r.Lost, r.ParentID); text != "" {
		notes = append(notes, text)
	}
	return notes
}

// beside says where a span of another trace is from, and whose it is.
func beside(r row) string {
	if !r.Beside {
		return ""
	}
	text := "trace " + Printable(r.TraceID)
	if r.Object != "" {
		text = Printable(r.Object) + ", " + text
	}
	return text
}

func lostText(lost tracestore.Lost, parent string) string {
	switch lost {
	case tracestore.ParentMissing:
		return "its parent span " + Printable(parent) + " did not arrive"
	case tracestore.ParentCycle:
		return "its parent span " + Printable(parent) + " is also below it"
	default:
		return ""
	}
}

// branches draws the guides of a row, each as wide as step (1 or 2 columns). A
// row so deep that nothing would be left for its name is drawn at the deepest
// place within the limit, after "⋯".
func branches(r row, step, limit int) string {
	draw := [...]string{guideBlank: " ", guideDown: "│", guideFork: "├", guideLast: "└"}
	guides, cut := r.Guides, ""
	if most := max(0, limit/step-1); len(guides) > most+1 {
		guides, cut = guides[:most], "⋯"+strings.Repeat(" ", step-1)
	}
	var b strings.Builder
	for _, g := range guides {
		b.WriteString(pad(draw[g], step))
	}
	return b.String() + cut
}

// drawBar draws from and to, fractions of the width, to half a column. Also the
// shortest span leaves a mark.
func drawBar(from, to float64, columns int) string {
	halves := 2 * columns
	first := min(int(from*float64(halves)), halves-1)
	last := max(first+1, min(int(to*float64(halves)+0.5), halves)) // exclusive
	var b strings.Builder
	for c := range columns {
		left := first <= 2*c && 2*c < last
		right := first <= 2*c+1 && 2*c+1 < last
		switch {
		case left && right:
			b.WriteRune('━')
		case left:
			b.WriteRune('╸')
		case right:
			b.WriteRune('╺')
		default:
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// painter adds ANSI colours, or nothing.
type painter struct{ on bool }

func (p painter) paint(code, text string) string {
	if !p.on || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p painter) dim(text string) string   { return p.paint("2", text) }
func (p painter) fault(text string) string { return p.paint("1;31", text) }

// service paints in the colour of the n-th service. Red is for errors.
func (p painter) service(text string, n int) string {
	codes := [...]string{"35", "34", "33", "36", "32", "95", "94", "96"}
	return p.paint(codes[n%len(codes)], text)
}

// cells is how many columns of a terminal a text takes.
func cells(text string) int {
	n := 0
	for _, r := range text {
		n += runeCells(r)
	}
	return n
}

func runeCells(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	default:
		return 1
	}
}

// shorten takes the middle out of a text that is too long: names begin with
// what they do and end with what they do it to.
func shorten(text string, columns int) string {
	if cells(text) <= columns {
		return text
	}
	if columns < 1 {
		return ""
	}
	runes := []rune(text)
	tailRoom := (columns - 1) / 3
	tail := len(runes)
	for n := 0; tail > 0 && n+runeCells(runes[tail-1]) <= tailRoom; tail-- {
		n += runeCells(runes[tail-1])
	}
	headRoom := columns - 1 - cells(string(runes[tail:]))
	head := 0
	for n := 0; n+runeCells(runes[head]) <= headRoom; head++ {
		n += runeCells(runes[head])
	}
	return string(runes[:head]) + "…" + string(runes[tail:])
}

func pad(text string, columns int) string {
	return text + strings.Repeat(" ", max(0, columns-cells(text)))
}

func padLeft(text string, columns int) string {
	return strings.Repeat(" ", max(0, columns-cells(text))) + text
}

// wrap breaks a text between words, and a word that is too long within it.
func wrap(text string, columns int) []string {
	columns = max(columns, 10)
	var lines []string
	at := ""
	for _, word := range strings.Fields(text) {
		if at != "" && cells(at)+1+cells(word) > columns {
			lines = append(lines, at)
			at = ""
		}
		if at != "" {
			at += " "
		}
		for _, r := range word {
			if cells(at)+runeCells(r) > columns {
				lines = append(lines, at)
				at = ""
			}
			at += string(r)
		}
	}
	if at != "" {
		lines = append(lines, at)
	}
	return lines
}

// stamp writes a time the way the report does.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
