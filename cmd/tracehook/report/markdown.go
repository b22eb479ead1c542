// This file writes the report as Markdown that GitHub shows as it is meant: a
// Report comes in, text goes out. The only errors are the writer's.

package report

import (
	"fmt"
	"io"
	"strings"
)

// Markdown writes the report with every trace as a tree in a code block.
func Markdown(w io.Writer, r Report) error {
	var b strings.Builder
	if r.Title != "" {
		fmt.Fprintf(&b, "# %s\n\n", inline(r.Title))
	}
	if r.Summary != "" {
		fmt.Fprintf(&b, "%s\n\n", inline(r.Summary))
	}
	fmt.Fprintf(&b, "Generated %s.\n\n", stamp(r.Generated))
	writeFacts(&b, r.Facts)
	for _, s := range r.Sections {
		if s.Heading != "" {
			fmt.Fprintf(&b, "## %s\n\n", inline(s.Heading))
		}
		for _, paragraph := range paragraphs(s.Text) {
			fmt.Fprintf(&b, "%s\n\n", inline(paragraph))
		}
		if s.Command != "" {
			writeBlock(&b, "console", "$ "+s.Command)
		}
		if s.Output != "" {
			if s.Failed {
				b.WriteString("**It failed:**\n\n")
			}
			writeBlock(&b, "text", s.Output)
		}
		writeFacts(&b, s.Facts)
		if s.Trace != nil {
			var tree strings.Builder
			_ = Tree(&tree, *s.Trace, TreeOptions{FoldFilters: true}) // a Builder takes everything
			writeBlock(&b, "text", tree.String())
		}
		writeCounters(&b, s.Counters)
	}
	_, err := io.WriteString(w, strings.TrimRight(b.String(), "\n")+"\n")
	if err != nil {
		return fmt.Errorf("write the report as Markdown: %w", err)
	}
	return nil
}

func writeFacts(b *strings.Builder, facts []Fact) {
	if len(facts) == 0 {
		return
	}
	for _, f := range facts {
		fmt.Fprintf(b, "- %s: %s\n", inline(f.Name), code(f.Value))
	}
	b.WriteString("\n")
}

func writeCounters(b *strings.Builder, counters []Counter) {
	if len(counters) == 0 {
		return
	}
	b.WriteString("| Counter | Before | After | Change |\n|---|--:|--:|--:|\n")
	for _, c := range counters {
		name := code(c.Name)
		if c.Meaning != "" {
			name += "<br>" + inline(c.Meaning)
		}
		change := formatDelta(c.Delta())
		if c.Delta() != 0 {
			change = "**" + change + "**"
		}
		// A bar ends the cell, even within code.
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", strings.ReplaceAll(name, "|", `\|`), formatNumber(c.Before), formatNumber(c.After), change)
	}
	b.WriteString("\n")
}

// writeBlock fences a text with more backticks than it holds in a row.
func writeBlock(b *strings.Builder, language, text string) {
	fence := strings.Repeat("`", max(3, backticks(text)+1))
	fmt.Fprintf(b, "%s%s\n%s\n%s\n\n", fence, language, strings.TrimRight(text, "\n"), fence)
}

// code is a text as a code span, on one line.
func code(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if text == "" {
		return "(empty)"
	}
	fence := strings.Repeat("`", backticks(text)+1)
	if strings.HasPrefix(text, "`") || strings.HasSuffix(text, "`") {
		text = " " + text + " "
	}
	return fence + text + fence
}

func backticks(text string) int {
	most, run := 0, 0
	for _, r := range text {
		if r == '`' {
			run++
		} else {
			run = 0
		}
		most = max(most, run)
	}
	return most
}

// inline is a text that means nothing to Markdown or HTML, on one line.
func inline(text string) string {
	return markdownSpecial.Replace(strings.Join(strings.Fields(text), " "))
}

// A dash, plus, dot or number begins a list only at the start of a line, and
// the texts here are sentences; they stay readable as source.
var markdownSpecial = strings.NewReplacer(
	`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "[", `\[`, "]", `\]`, "#", `\#`,
	"<", "&lt;", ">", "&gt;", "&", "&amp;",
)

// paragraphs splits a text at its empty lines.
func paragraphs(text string) []string {
	var out []string
	for _, p := range strings.Split(text, "\n\n") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}
