package follow

// Lines on a screen. In: lines, again and again. Out: a few lines of a terminal that are
// written over, or, elsewhere, one line for each change. Errors: none; a screen that is gone is
// nobody's.

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

// View draws lines.
type View struct {
	Out io.Writer
	// Live: Out is a terminal, whose lines can be written over.
	Live bool
	// Size is the terminal's, where Live.
	Size func() (columns, rows int)
	Now  func() time.Time

	drawn int               // lines on the screen
	said  map[string]string // of each object, where not Live
}

// Show draws the lines.
func (v *View) Show(lines []Line) {
	if !v.Live {
		v.say(lines)
		return
	}
	columns, rows := v.Size()
	most := max(rows-2, 3)
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.drawn)
	}
	b.WriteString("\r\x1b[J") // from here to the end of the screen
	v.drawn = 0
	for i, l := range lines {
		if i == most-1 && len(lines) > most {
			fmt.Fprintf(&b, "  … and %d more\n", len(lines)-i)
			v.drawn++
			break
		}
		b.WriteString(clipTo(v.text(l, true), columns-1) + "\n")
		v.drawn++
	}
	_, _ = io.WriteString(v.Out, b.String())
}

func (v *View) say(lines []Line) {
	if v.said == nil {
		v.said = map[string]string{}
	}
	for _, l := range lines {
		text, object := v.text(l, false), l.Namespace+"/"+l.Object
		if v.said[object] != text {
			v.said[object] = text
			fmt.Fprintln(v.Out, text)
		}
	}
}

var marks = map[State]string{Waiting: "…", Ready: "✓", Failed: "✗"}

// text is one line: how it stands, what it is, what it does, for how long and why not.
func (v *View) text(l Line, clock bool) string {
	text := strings.Repeat("  ", l.Depth) + marks[l.State] + " " + l.Object + "  " + l.Text
	if clock && !l.Since.IsZero() && l.State == Waiting {
		text += " " + seconds(v.Now().Sub(l.Since))
	}
	if l.Reason != "" {
		text += "  " + l.Reason
	}
	return Printable(text)
}

// Printable makes the text of others safe for a terminal.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return '·'
		}
		return r
	}, text)
}

func clipTo(text string, columns int) string {
	runes := []rune(text)
	if columns < 10 || len(runes) <= columns {
		return text
	}
	return string(runes[:columns-1]) + "…"
}
