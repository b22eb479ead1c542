// Package report shows what a run has found: traces as trees and waterfalls,
// and the counters and messages around them.
//
//	Tree      a trace as text for a terminal
//	HTML      the whole report as one self-contained page
//	JSON      the same as data, in the schema that document.go describes
//	Markdown  the same to read in a repository or a pull request
//
// This file is what comes in: the Report. It is not tied to one demo; whatever
// is empty is left out.
package report

import (
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// Report is everything there is to tell, in order.
type Report struct {
	Title     string
	Summary   string    // one or two sentences below the title
	Generated time.Time // shown in UTC
	Facts     []Fact    // what it was made with: versions, addresses
	Sections  []Section

	// TraceURL is where the page links for traces that it does not hold; {traceID} stands
	// for the id. "": nowhere.
	TraceURL string
	// Live is the address, on the page's own server, of server-sent events at which the page
	// reads itself anew. "": it does not change.
	Live string
}

// Section is one step of the story. Its parts appear in the order of the fields.
type Section struct {
	Heading string
	Text    string // paragraphs, separated by empty lines
	Command string // the shell command that was run
	Output  string // what it printed
	// Failed marks Output as an error's.
	Failed bool
	Facts  []Fact // what was found, such as an annotation that was stored
	Trace  *tracestore.Trace
	// StoreURL is the trace's page in the trace store's own interface; "" for none.
	StoreURL string
	// Counters were read before and after.
	Counters []Counter
}

// Fact is a name and its value.
type Fact struct {
	Name, Value string
}

// Counter is a counter's value before and after something was done.
type Counter struct {
	Name          string
	Before, After float64
	Meaning       string // one sentence, "" for none
}

// Delta is how far the counter moved.
func (c Counter) Delta() float64 { return c.After - c.Before }
