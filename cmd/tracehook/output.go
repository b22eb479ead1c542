package main

// How a trace is shown. In: what -o says, a trace. Out: a tree, JSON or a page. Errors:
// usage errors of the flag, and those of writing.

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/tracehook/tracehook/cmd/tracehook/follow"
	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// outputFormat is a parsed -o.
type outputFormat struct {
	Form string // tree, json, none, html
	File string // of html
}

func parseOutput(text string) (outputFormat, error) {
	form, file, found := strings.Cut(text, "=")
	switch {
	case form == "html" && found && file != "":
		return outputFormat{Form: form, File: file}, nil
	case (form == "tree" || form == "json" || form == "none") && !found:
		return outputFormat{Form: form}, nil
	}
	return outputFormat{}, fmt.Errorf("--output %q: want tree, json, none or html=FILE", text)
}

// shownTrace is a trace and what is said of it.
type shownTrace struct {
	Title string // such as "kubectl create"
	Trace tracestore.Trace
	Links []linkedTrace // what its spans link to
	Page  string        // the store's own page; "" for none
	// TraceURL leads to any trace, with {traceID} for its id; "" for nowhere.
	TraceURL string
	Followed []follow.Line // what became of what the command wrote
	Now      time.Time
}

func (s shownTrace) report() report.Report {
	r := report.Report{Title: s.Title, Generated: s.Now, Sections: []report.Section{{Trace: &s.Trace}}}
	r.Sections[0].StoreURL, r.Sections[0].Facts = s.Page, followed(s.Followed)
	r.TraceURL = s.TraceURL
	for _, l := range s.Links {
		r.Sections = append(r.Sections, report.Section{Heading: "Linked: trace " + l.Trace.ID, Text: l.why(), Trace: &l.Trace})
	}
	return r
}

// write shows a trace on w, or in a file and says so on w. Filters: each of the API server's
// filters has its line.
func (o outputFormat) write(w io.Writer, s shownTrace, filters bool) error {
	switch o.Form {
	case "tree":
		return writeTree(w, s, filters)
	case "json":
		return report.JSON(w, s.report())
	case "html":
		var page bytes.Buffer
		if err := report.HTML(&page, s.report()); err != nil {
			return err
		}
		if err := os.WriteFile(o.File, page.Bytes(), 0o600); err != nil { // whoever may read it the user decides
			return fmt.Errorf("write the page: %w", err)
		}
		at, err := filepath.Abs(o.File)
		if err != nil {
			at = o.File
		}
		_, err = fmt.Fprintln(w, "page:", printable(at))
		return err
	}
	return nil
}

func writeTree(w io.Writer, s shownTrace, filters bool) error {
	options := report.TreeOptions{Width: columnsOf(w), Colour: colours(w), FoldFilters: !filters}
	if err := report.Tree(w, s.Trace, options); err != nil {
		return err
	}
	for _, l := range s.Links {
		if _, err := fmt.Fprintf(w, "\n%s\n", printable(l.why())); err != nil {
			return err
		}
		if err := report.Tree(w, l.Trace, options); err != nil {
			return err
		}
	}
	return nil
}

// columnsOf is a terminal's width, 100 for everything else.
func columnsOf(w io.Writer) int {
	if file, ok := w.(*os.File); ok {
		if columns, _, err := term.GetSize(int(file.Fd())); err == nil && columns > 0 {
			return columns
		}
	}
	return 100
}

// isTerminal says whether a person reads along.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// colours also respects https://no-color.org and terminals that know none.
func colours(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
