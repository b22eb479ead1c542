package main

// --follow: what became of what the command wrote. In: roots. Out: lines on the screen and on
// the page, and whether all is ready. Errors stay here, but for --wait-ready.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/tracehook/tracehook/cmd/tracehook/follow"
	"github.com/tracehook/tracehook/cmd/tracehook/report"
)

// follow goes on until what was written is ready, has failed, or the time is over. It returns
// the last lines, and why not all is ready; nil when all is, or there was nothing to wait for.
func (o traceOptions) follow(ctx context.Context, outcome traceOutcome, view *follow.View, look func([]follow.Line), stderr io.Writer) ([]follow.Line, error) {
	if outcome.WroteMore > 0 {
		fmt.Fprintf(stderr, "tracehook: %d more objects are not followed\n", outcome.WroteMore)
	}
	if outcome.unseen() && o.WaitReady {
		fmt.Fprintln(stderr, "tracehook: not all that the command wrote was seen, so nobody knows whether it is ready")
	}
	if len(outcome.Wrote) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, o.FollowTimeout)
	defer cancel()
	lines, err := follow.Until(ctx, outcome.Wrote, follow.Options{Look: func(lines []follow.Line) {
		view.Show(lines)
		look(lines)
	}})
	for _, l := range lines {
		if l.Depth == 0 && l.State == follow.Gone {
			fmt.Fprintln(stderr, "tracehook:", oneLine(l.Object+" is gone, so nobody knows whether it became ready"))
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
		err = fmt.Errorf("%w (after %s)", err, o.FollowTimeout)
	case errors.Is(err, context.Canceled):
		err = errors.New("no longer followed: a signal came")
	}
	return lines, err
}

// view is where the lines are shown.
func (traceOptions) view(stderr io.Writer) *follow.View {
	view := &follow.View{Out: stderr, Now: time.Now}
	if file, ok := stderr.(*os.File); ok && isTerminal(stderr) {
		view.Live = true
		view.Size = func() (columns, rows int) {
			columns, rows, err := term.GetSize(int(file.Fd()))
			if err != nil {
				return 80, 24
			}
			return columns, rows
		}
	}
	return view
}

// unseen says whether the command may have written what nobody followed.
func (o traceOutcome) unseen() bool { return o.Past != "" || o.Refused > 0 || o.WroteMore > 0 }

// followed are lines as facts of a page.
func followed(lines []follow.Line) []report.Fact {
	var facts []report.Fact
	for _, l := range lines {
		value := string(l.State) + ": " + l.Text
		if l.Reason != "" {
			value += " — " + l.Reason
		}
		facts = append(facts, report.Fact{Name: l.Object, Value: value})
	}
	return facts
}
