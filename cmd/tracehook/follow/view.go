package follow

// Lines on a screen. In: lines, again and again. Out: a few lines of a terminal that are
// written over, or, elsewhere, one line for each change. Errors: none; a screen that is gone is
// nobody's.

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
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
	for len(lines) > 0 {
		end := 1
		for end < len(lines) && lines[end].Depth > 0 {
			end++
		}
		root, below := lines[:1], lines[1:end]
		// A log tells in the order of time: a root is over because its Pods are.
		if _, known := v.said[key(root[0])]; known && root[0].State != Waiting {
			root, below = below, root
		}
		v.sayChanged(root)
		v.sayChanged(below)
		lines = lines[end:]
	}
}

func (v *View) sayChanged(lines []Line) {
	pod := "" // whose line is not the last that was said
	for _, l := range lines {
		text := v.text(l, false)
		switch changed := v.said[key(l)] != text; {
		case !changed && l.Pod.UID != "":
			pod = text
			continue
		case !changed:
			continue
		case l.Pod.UID == "" && pod != "":
			fmt.Fprintln(v.Out, pod)
		}
		pod = ""
		v.said[key(l)] = text
		fmt.Fprintln(v.Out, text)
	}
}

// key is what a line is about: of what a node did there may be several.
func key(l Line) string {
	about := l.Namespace + "/" + l.Object
	if l.Depth > 1 || l.Depth == 1 && l.Pod.UID == "" {
		about += "/" + l.Text
	}
	return about
}

var marks = map[State]string{Waiting: "…", Ready: "✓", Failed: "✗", Gone: "–"}

// text is one line: how it stands, what it is, what it does, for how long and why not.
func (v *View) text(l Line, clock bool) string {
	text := strings.Repeat("  ", l.Depth) + marks[l.State] + " " + l.Object + "  " + l.Text
	if clock && !l.Since.IsZero() && l.State == Waiting {
		text += " " + seconds(v.Now().Sub(l.Since))
	}
	if l.Reason != "" {
		text += "  " + l.Reason
	}
	return report.Printable(text)
}

func clipTo(text string, columns int) string {
	runes := []rune(text)
	if columns < 10 || len(runes) <= columns {
		return text
	}
	return string(runes[:columns-1]) + "…"
}
