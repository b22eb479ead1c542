package main

// The rows as SVG: one bar a row, for processor time and for p99. Pure. Both light and
// dark pages are served by the colours that the reader's system prefers.

import (
	"bytes"
	"fmt"
	"html"
	"strings"
	"time"
)

const (
	plotWidth  = 900
	labelWidth = 320 // of the names, left
	valueWidth = 130 // of the numbers, right of the longest bar
	barHeight  = 18
	rowHeight  = 26
	titleSpace = 44
	margin     = 24
)

const plotStyle = `
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 14px }
  .note { font-size: 11px; fill: #59636e }
  .page { fill: #ffffff; stroke: #d1d9e0 }
  .null { fill: #818b98 } .ours { fill: #0969da } .usual { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .note { fill: #9198a1 }
    .page { fill: #0d1117; stroke: #3d444d }
    .null { fill: #9198a1 } .ours { fill: #4493f8 } .usual { fill: #db6d28 }
  }
`

func plot(rows []row, c conditions) []byte {
	panelHeight := titleSpace + len(rows)*rowHeight
	height := 2*margin + 2*panelHeight + 20
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img" aria-label="What an admission call costs, by webhook">`+"\n", plotWidth, height)
	fmt.Fprintf(&out, "<style>%s</style>\n", plotStyle)
	fmt.Fprintf(&out, `<rect class="page" x="0.5" y="0.5" width="%d" height="%d" rx="6"/>`+"\n", plotWidth-1, height-1)
	panel(&out, margin, "Processor time of the server per call", rows,
		func(r row) time.Duration { return r.cpu },
		func(r row) string { return fmt.Sprintf("%.0f µs (%.1f × null)", micro(r.cpu), r.timesNull) })
	panel(&out, margin+panelHeight, "99 of 100 calls are answered within, at saturation of one processor", rows,
		func(r row) time.Duration { return r.p99 },
		func(r row) string { return milli(r.p99) })
	fmt.Fprintf(&out, `<text class="note" x="%d" y="%d">%s, %s, %s</text>`+"\n", margin, height-margin+6,
		c.when.Format("2 January 2006"), html.EscapeString(c.machine), "TLS over HTTP/1.1, a Pod of four containers")
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// panel draws one number of all rows, as bars from zero on, below y.
func panel(out *bytes.Buffer, y int, title string, rows []row, value func(row) time.Duration, label func(row) string) {
	var most time.Duration
	for _, r := range rows {
		most = max(most, value(r))
	}
	fmt.Fprintf(out, `<text class="title" x="%d" y="%d">%s</text>`+"\n", margin, y+16, html.EscapeString(title))
	for i, r := range rows {
		top := y + titleSpace - 12 + i*rowHeight
		length := 0.0
		if most > 0 {
			length = float64(plotWidth-2*margin-labelWidth-valueWidth) * float64(value(r)) / float64(most)
		}
		baseline := top + barHeight - 5
		fmt.Fprintf(out, `<text x="%d" y="%d">%s</text>`, margin, baseline, html.EscapeString(r.name))
		fmt.Fprintf(out, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>`, kindOf(r.name), margin+labelWidth, top, max(1, length), barHeight)
		fmt.Fprintf(out, `<text x="%.1f" y="%d">%s</text>`+"\n", float64(margin+labelWidth)+length+8, baseline, html.EscapeString(label(r)))
	}
}

// kindOf is the class of a variant's bar.
func kindOf(name string) string {
	switch {
	case name == nullName:
		return "null"
	case strings.HasPrefix(name, usualName):
		return "usual"
	}
	return "ours"
}
