package explain

// A Story as text, for people. In: a Story. Out: lines. Pure. What comes from a cluster is made printable.

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
)

// Bounds of what is printed; -o json has all of it.
const (
	mostLines  = 5 // of Events, of writers, of what an object made
	mostInLine = 3 // fields
	mostRunes  = 200
)

// TextOptions say how to print.
type TextOptions struct {
	// Now is what "today" is by. Zero: every time has its date.
	Now time.Time
	// Location is where times are told of. Nil: UTC.
	Location *time.Location
}

// Text prints stories, an empty line between two.
func Text(w io.Writer, o TextOptions, stories ...Story) error {
	p := newPrinter(o)
	for i, s := range stories {
		if i > 0 {
			p.line()
		}
		p.story(s)
	}
	_, err := io.WriteString(w, p.String())
	return err
}

type printer struct {
	strings.Builder
	TextOptions
}

func newPrinter(o TextOptions) *printer {
	if o.Location == nil {
		o.Location = time.UTC
	}
	return &printer{TextOptions: o}
}

// line writes its parts, which have been made printable, without space at the end.
func (p *printer) line(parts ...string) {
	p.WriteString(strings.TrimRight(strings.Join(parts, ""), " ") + "\n")
}

func (p *printer) story(s Story) {
	title := report.Printable(s.Object.Kind) + " " + report.Printable(s.Object.Name)
	if len(s.Causes) > 0 {
		p.line(title, " exists because of")
	} else {
		p.line(title, ": its cause is not known")
	}
	p.tree(s)
	p.section("on the node", lines(s.Node, p.node))
	p.section("slowest", lines(s.Slowest, slow))
	p.made(s)
	p.section("written", lines(s.Written, p.writer))
	p.section("events", lines(s.Events, p.event))
	p.section("note", s.Notes)
	var unknown []string
	for _, u := range s.NotKnown {
		unknown = append(unknown, u.What+": "+u.Why)
	}
	p.section("not known", unknown)
}

// row is a line of the tree, in columns.
type row struct {
	depth   int
	columns []string
	cause   bool // has columns of its own
}

// tree is the causes with what they did, each below what led to it.
func (p *printer) tree(s Story) {
	var rows []row
	depth, told := 0, -1
	for i, step := range s.Chain {
		for told < step.Cause {
			told++
			rows = append(rows, row{depth, p.cause(s.Causes[told]), true})
			depth++
		}
		name := report.Printable(step.Kind)
		if i < len(s.Chain)-1 || len(s.Chain) == 1 {
			name += " " + report.Printable(step.Name)
		}
		columns := []string{name, string(step.Change), ""}
		switch {
		case step.AfterSeconds != nil:
			columns[2] = after(*step.AfterSeconds, step.Exact)
		case step.Change == ChangeChanged && step.Cause >= 0 && s.Causes[step.Cause].Request != nil:
			r := s.Causes[step.Cause].Request
			columns[2] = fieldList(r.Fields, r.FieldSum)
		case step.Since != nil:
			columns[2] = p.time(step.Since.At) + " by " + who(*step.Since) + ", trace " + short(step.Since.TraceID)
		}
		rows = append(rows, row{depth, append(columns, cut(p.became(s, step))), false})
		depth++
	}
	widths := [2]int{}
	for _, r := range rows {
		if !r.cause {
			widths[0] = max(widths[0], utf8.RuneCountInString(indent(r.depth)+r.columns[0]))
			widths[1] = max(widths[1], len(r.columns[1]))
		}
	}
	for _, r := range rows {
		if r.cause {
			p.line(indent(r.depth), strings.Join(r.columns, "   "))
			continue
		}
		p.line(pad(indent(r.depth)+r.columns[0], widths[0]), "  ", pad(r.columns[1], widths[1]), "  ", strings.TrimSpace(pad(r.columns[2], 8)+"  "+r.columns[3]))
	}
}

// became is when the stages of a step were over, counted from its cause, and its state.
func (p *printer) became(s Story, step Step) string {
	from := timeOf(step.Created)
	if step.Cause >= 0 {
		from = timeOf(s.Causes[step.Cause].At)
	}
	words := []string{}
	if text := milestones(step.Stages, from); text != "" && step.Since == nil {
		words = append(words, text)
	}
	if step.State != "" {
		words = append(words, report.Printable(step.State))
	}
	return strings.Join(words, " · ")
}

// cause is a line about a request.
func (p *printer) cause(c Cause) []string {
	columns := []string{who(c), p.time(c.At), "trace " + short(c.TraceID)}
	if c.Trace != nil && c.Trace.RequestSeconds > 0 {
		columns = append(columns, seconds(c.Trace.RequestSeconds))
	}
	if w := c.Who; w != nil {
		by := "by " + report.Printable(w.User)
		if w.Impersonated != "" {
			by += " as " + report.Printable(w.Impersonated)
		}
		if agent, _, _ := strings.Cut(w.UserAgent, " "); agent != "" {
			by += " with " + report.Printable(agent)
		}
		columns = append(columns, by)
	}
	if c.Trace != nil && c.Trace.Source != nil {
		columns = append(columns, source(*c.Trace.Source))
	}
	if c.Why != "" {
		columns = append([]string{report.Printable(c.Why)}, columns...)
	}
	return columns
}

// source is which application it was, and at which commit: "of Kustomization flux-system/shop at main 8f1b2a7c".
func source(s Source) string {
	words := []string{}
	if s.Application != "" {
		words = append(words, "of", report.Printable(s.Kind), report.Printable(s.Application))
	}
	if s.Repository != "" {
		words = append(words, "from", report.Printable(s.Repository))
	}
	if s.Ref != "" || s.Revision != "" {
		words = append(words, "at", report.Printable(s.Ref), report.Printable(short(s.Revision)))
	}
	return strings.Join(slices.DeleteFunc(words, func(word string) bool { return word == "" }), " ")
}

// who names a request by what is known of it.
func who(c Cause) string {
	if c.Trace != nil && c.Trace.Command != "" {
		return report.Printable(c.Trace.Command)
	}
	if r := c.Request; r != nil && r.Manager != "" {
		return report.Printable(r.Manager)
	}
	if c.Who != nil {
		return report.Printable(c.Who.Verb) + " request"
	}
	if c.Trace != nil && c.Trace.Request != "" {
		return report.Printable(c.Trace.Request)
	}
	return "a request"
}

// node is what a kubelet did at a time.
func (p *printer) node(w NodeWork) string {
	return fmt.Sprintf("%s  %s %s  %s", p.time(&w.Start), w.Service, w.Name, w.Sentence())
}

// slow is what took long, and of what.
func slow(s Slow) string {
	text := s.What + " " + seconds(s.Seconds)
	if s.OfSeconds > 0 {
		return text + " of the " + seconds(s.OfSeconds) + " of " + s.Of
	}
	return text + " (" + s.Of + ")"
}

// seconds is a duration to two or three digits.
func seconds(s float64) string {
	switch d := time.Duration(s * float64(time.Second)); {
	case d < time.Millisecond:
		return fmt.Sprintf("%.1f ms", 1000*s)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", 1000*s)
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", s)
	case d < 10*time.Minute:
		return fmt.Sprintf("%.0f s", s)
	default:
		return durationText(d)
	}
}

// made is what an object owns, in short: how many of a kind, and those that fail.
func (p *printer) made(s Story) {
	var list []string
	for _, m := range s.Made {
		if m.Owner != s.Object.UID {
			continue
		}
		below := 0
		var failing []string
		for _, other := range s.Made {
			if other.Owner == m.UID {
				below++
				if other.Failing {
					failing = append(failing, "  "+report.Printable(other.Kind+" "+other.Name)+"  "+report.Printable(other.State))
				}
			}
		}
		text := report.Printable(m.Kind + " " + m.Name)
		if m.Wanted != nil && *m.Wanted == 0 && below == 0 {
			continue // a ReplicaSet of before
		}
		if m.Wanted != nil {
			text += fmt.Sprintf("  %d of %d Pods", below, *m.Wanted)
		}
		if m.State != "" {
			text += "  " + report.Printable(m.State)
		}
		if m.TraceID != "" && (len(s.Causes) == 0 || m.TraceID != s.Causes[len(s.Causes)-1].TraceID) {
			text += "  trace " + short(m.TraceID)
		}
		list = append(list, text)
		if len(failing) > mostLines {
			failing = append(failing[:mostLines], fmt.Sprintf("  and %d more that fail", len(failing)-mostLines))
		}
		list = append(list, failing...)
	}
	if len(list) > 4*mostLines {
		list = append(list[:4*mostLines], fmt.Sprintf("and %d more lines; -o json has all", len(list)-4*mostLines))
	}
	p.section("made", list)
}

func (p *printer) writer(w Writer) string {
	operation := strings.ToLower(w.Operation)
	if w.Subresource != "" {
		operation += " " + w.Subresource
	}
	return fmt.Sprintf("%s  %s (%s)  %s", p.time(w.At), report.Printable(w.Manager), report.Printable(operation), fieldList(w.Fields, w.FieldSum))
}

func (p *printer) event(e Event) string {
	times := ""
	if e.Count > 1 {
		times = fmt.Sprintf(" (%d times)", e.Count)
	}
	return fmt.Sprintf("%s  %s %s: %s%s", p.time(e.At), report.Printable(e.Type), report.Printable(e.Reason), report.Printable(e.Message), times)
}

// lines tells the last few of a list.
func lines[T any](list []T, text func(T) string) []string {
	var out []string
	if more := len(list) - mostLines; more > 0 {
		out = append(out, fmt.Sprintf("%d earlier ones: -o json has them", more))
		list = list[more:]
	}
	for _, item := range list {
		out = append(out, text(item))
	}
	return out
}

// section is a heading with lines beside it.
func (p *printer) section(heading string, lines []string) {
	for i, text := range lines {
		if i > 0 {
			heading = ""
		}
		p.line(pad(heading, 11), "  ", strings.TrimRight(cut(report.Printable(text)), " "))
	}
}

// time is the time of day, with its date where that is not today.
func (p *printer) time(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "at a time that is not known"
	}
	local := t.In(p.Location)
	if y, m, d := local.Date(); !p.Now.IsZero() {
		if ny, nm, nd := p.Now.In(p.Location).Date(); y == ny && m == nm && d == nd {
			return local.Format("15:04:05")
		}
	}
	return local.Format("2006-01-02 15:04:05")
}

// Print prints what carries a trace: each object below its owner.
func (c Carriers) Text(w io.Writer, o TextOptions) error {
	p := newPrinter(o)
	where := ""
	if c.Namespace != "" {
		where = " in namespace " + report.Printable(c.Namespace)
	}
	if len(c.Objects) == 0 {
		p.line("no object", where, " carries trace ", c.TraceID)
	} else {
		p.line("trace ", c.TraceID, " is carried", where, " by")
	}
	below := map[string][]Carrier{}
	known := map[string]bool{}
	for _, object := range c.Objects {
		known[object.UID] = true
	}
	for _, object := range c.Objects {
		owner := object.Owner
		if !known[owner] || owner == object.UID {
			owner = ""
		}
		below[owner] = append(below[owner], object)
	}
	var rows []row
	seen := map[string]bool{}
	var add func(object Carrier, depth int)
	add = func(object Carrier, depth int) {
		if seen[object.UID] {
			return
		}
		seen[object.UID] = true
		name := report.Printable(object.Kind + " " + object.Name)
		if c.Namespace == "" && object.Namespace != "" {
			name = report.Printable(object.Kind + " " + object.Namespace + "/" + object.Name)
		}
		remark := ""
		if object.Earlier {
			remark = "as its cause before the present one"
		}
		rows = append(rows, row{depth, []string{name, p.time(&object.Created), remark}, false})
		for _, child := range below[object.UID] {
			add(child, depth+1)
		}
	}
	for _, object := range slices.Concat(below[""], c.Objects) { // the second time for those that own each other
		add(object, 0)
	}
	width := 0
	for _, r := range rows {
		width = max(width, utf8.RuneCountInString(indent(r.depth)+r.columns[0]))
	}
	for _, r := range rows {
		p.line(pad(indent(r.depth)+r.columns[0], width), "  created ", r.columns[1], "  ", r.columns[2])
	}
	scope := ""
	if c.Namespace != "" {
		scope = "; not at other namespaces, nor at what has none (-A)"
	}
	p.section("looked at", []string{fmt.Sprintf("%d objects of %d kinds%s", c.Looked, c.Kinds, scope)})
	var unknown []string
	for _, u := range c.NotKnown {
		unknown = append(unknown, u.What+": "+u.Why)
	}
	p.section("not known", unknown)
	_, err := io.WriteString(w, p.String())
	return err
}

func indent(depth int) string {
	if depth == 0 {
		return "  "
	}
	return strings.Repeat("  ", depth) + "└ "
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

func short(traceID string) string {
	if len(traceID) > 8 {
		return traceID[:8] + "…"
	}
	return traceID
}

func fieldList(fields []string, sum int) string {
	if sum == 0 {
		return ""
	}
	if sum <= mostInLine && len(fields) == sum {
		return report.Printable(strings.Join(fields, ", "))
	}
	var parts []string
	for _, field := range fields {
		part := field
		if end := strings.IndexAny(field, ".["); end >= 0 {
			part = field[:end]
		}
		if !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	return report.Printable(fmt.Sprintf("%d fields of %s", sum, strings.Join(parts, " and ")))
}

// after is a time after the first cause.
func after(seconds float64, exact bool) string {
	switch {
	case seconds >= 600:
		return "+" + durationText(time.Duration(seconds)*time.Second)
	case !exact:
		return fmt.Sprintf("+%.0f s", seconds)
	}
	return fmt.Sprintf("+%.2f s", seconds)
}

// durationText is a duration as people say it, in its largest unit.
func durationText(d time.Duration) string {
	for _, unit := range []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}} {
		if d >= unit.length {
			return fmt.Sprintf("%d %s", d/unit.length, unit.name)
		}
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// cut ends a text where nobody reads on.
func cut(s string) string {
	if runes := []rune(s); len(runes) > mostRunes {
		return string(runes[:mostRunes]) + " …"
	}
	return s
}
