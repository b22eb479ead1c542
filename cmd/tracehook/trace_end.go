package main

// What `trace` tells once the command has ended: what became of what it wrote, the trace, what
// else there is to know. In: the outcome. Out: lines, a drawing, a page. Errors become lines.

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/explain"
	"github.com/tracehook/tracehook/cmd/tracehook/follow"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// afterCommand is what comes after the command.
type afterCommand struct {
	traceOptions
	Output  outputFormat
	Store   *tracestore.Client // nil: none
	Own     *ownSpans
	Stderr  io.Writer
	Browser string // the variable BROWSER
	Now     func() time.Time
}

// tell returns whether something that was followed is not ready.
func (a afterCommand) tell(ctx context.Context, outcome traceOutcome) (notReady bool) {
	wait := traceWait{Store: a.Store, Linked: outcome.Parentage.whyNotContinued() != "", Timeout: a.StoreTimeout, Now: a.Now}
	wait.Own, wait.Calls = a.Own.trace(outcome.TraceID)
	shown := shownTrace{Title: spanName(outcome.Command), Trace: wait.Own, Now: a.Now()}
	if a.Store != nil {
		shown.Page, shown.TraceURL = a.Store.Page(wait.Own.ID), a.Store.Page(traceIDPlaceholder)
	}
	drawn := outcome.Calls > 0 && outcome.Sampled
	var page *openedPage
	if a.Open && drawn {
		var err error
		if page, err = openPage(shown, a.Store, a.Browser, a.Stderr); err != nil {
			outcome.Shown = append(outcome.Shown, err.Error())
		}
	}
	var onNodes []explain.OnNode
	if a.Follow {
		view := a.view(a.Stderr)
		lines, err := a.follow(ctx, outcome, view, a.live(ctx, page, shown), a.Stderr)
		var said []string
		onNodes, said = waitForNodes(ctx, a.Store, lines, nodePatience)
		outcome.Shown = append(outcome.Shown, said...)
		if shown.Followed = follow.WithNodes(lines, onNodes); len(shown.Followed) > len(lines) {
			view.Show(shown.Followed)
		}
		if notReady = err != nil; notReady {
			outcome.Shown = append(outcome.Shown, err.Error())
		}
	}
	if drawn && (a.Output.Form != "none" || page != nil) {
		var lines []string
		shown.Trace, lines = wait.collect(ctx)
		outcome.Shown = append(outcome.Shown, lines...)
		shown.Trace = explain.HangOnPods(shown.Trace, onNodes)
		if err := a.Output.write(a.Stderr, shown, a.Filters); err != nil {
			outcome.Shown = append(outcome.Shown, err.Error())
		}
	}
	if a.TraceURL == "" {
		a.TraceURL = shown.TraceURL
	}
	for _, line := range outcome.report(a.TraceURL) {
		fmt.Fprintln(a.Stderr, line)
	}
	if page != nil {
		page.Set(shown.report(), "")
		page.Over(strings.Join(append(outcome.Shown, "this is all of it"), "; "))
		page.wait(ctx)
	}
	return notReady
}

// live shows on the page how far the objects are, and what has come of the trace meanwhile.
func (a afterCommand) live(ctx context.Context, page *openedPage, shown shownTrace) func([]follow.Line) {
	own := shown.Trace
	return func(lines []follow.Line) {
		if page == nil {
			return
		}
		if a.Store != nil {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if arrived, err := a.Store.Trace(ctx, own.ID); err == nil {
				shown.Trace = tracestore.Merge(arrived, own)
			}
		}
		ready, gone, roots := 0, 0, 0
		for _, l := range lines {
			if l.Depth == 0 {
				roots++
				switch l.State {
				case follow.Ready:
					ready++
				case follow.Gone:
					gone++
				}
			}
		}
		shown.Followed = lines
		said := fmt.Sprintf("%d of %d ready", ready, roots)
		if gone > 0 {
			said += fmt.Sprintf(", %d gone", gone)
		}
		page.Set(shown.report(), said)
	}
}
