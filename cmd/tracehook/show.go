package main

// `show`: a trace of the store, drawn. In: a trace id and the flags. Out: the drawing on
// stdout. Errors: exit 2 for flags, 1 where there is no such trace.

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

type showOptions struct {
	Store   storeFlags
	Output  string
	Filters bool
	Links   int
	Timeout time.Duration
	Open    bool
}

func newShowCommand() *cobra.Command {
	var o showOptions
	cmd := &cobra.Command{
		Use:   "show [flags] TRACE-ID",
		Short: "Draw a trace that the trace store holds",
		Long: `Draw a trace that the trace store holds: as a tree in the terminal, as JSON, or as a
page that needs nothing but itself.

TRACE-ID is what ` + "`tracehook trace`" + ` prints, or all of a traceparent, such as the one in an
object's annotation tracehook.dev/traceparent.

A controller's work is a trace of its own, whose spans link to what caused it. --links 1
shows the linked traces too, --links 2 also what these link to.

--open shows the page in your browser, where links lead on, spans can be searched and the
critical path is marked. It comes from the loopback interface, at an address that is good
for one visit.`,
		Example: `  tracehook show 2562366aa9a0f93a5df3eeacbd21c6b8 --store jaeger=http://localhost:16686
  tracehook show "$(kubectl get pod web -o jsonpath='{.metadata.annotations.tracehook\.dev/traceparent}')" --links 1`,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError(fmt.Errorf("want one TRACE-ID, got %d (see `%s --help`)", len(args), cmd.CommandPath()))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd, nil, nil)
			defer stop()
			return signalled(ctx, showTrace(ctx, o, args[0], os.Getenv, time.Now(), cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	f := cmd.Flags()
	o.Store.bind(f)
	f.StringVarP(&o.Output, "output", "o", "tree", "`FORMAT`: tree, json, none or html=FILE")
	f.BoolVar(&o.Filters, "filters", false, "draw each filter of the API server, not all of them as one line")
	f.IntVar(&o.Links, "links", 0, "how many steps to follow links to other traces")
	f.BoolVar(&o.Open, "open", false, "show the page in your browser (BROWSER), served on the loopback interface until it is closed")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Second, "time for all questions to the store")
	return cmd
}

func showTrace(ctx context.Context, o showOptions, id string, getenv func(string) string, now time.Time, stdout, stderr io.Writer) error {
	id, err := parseTraceID(id)
	if err != nil {
		return usageError(err)
	}
	output, err := parseOutput(o.Output)
	if err != nil {
		return usageError(err)
	}
	if o.Links < 0 || o.Timeout <= 0 {
		return usageError(errors.New("--links must not be below zero, and --timeout must be above"))
	}
	store, err := o.Store.open(getenv)
	if err != nil {
		return usageError(err)
	}
	if store == nil {
		return usageError(errors.New("which trace store? Give --store or " + storeVariable + ", such as jaeger=http://localhost:16686"))
	}
	asking, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	trace, err := store.Trace(asking, id)
	switch {
	case errors.Is(err, tracestore.ErrNotFound):
		return fmt.Errorf("trace %s is not in the store: either nothing of it was exported there, or not yet (spans may take 5 s), or the store has dropped it", id)
	case err != nil:
		return err
	}
	links := trace
	trace, said := withNodes(asking, store, trace)
	shown := shownTrace{Title: titleOf(trace), Trace: trace, Page: store.Page(id), TraceURL: store.Page(traceIDPlaceholder), Now: now}
	var left int
	shown.Links, left = followLinks(asking, store, links, o.Links)
	if err := output.write(stdout, shown, o.Filters); err != nil {
		return err
	}
	if n := linksOut(links); o.Links == 0 && n > 0 && output.Form != "none" {
		fmt.Fprintf(stderr, "tracehook: it links to %d other traces; --links 1 shows them too\n", n)
	}
	for _, line := range said {
		fmt.Fprintln(stderr, "tracehook:", oneLine(line))
	}
	if left > 0 {
		fmt.Fprintf(stderr, "tracehook: %d more linked traces are not shown\n", left)
	}
	if o.Open {
		page, err := openPage(shown, store, getenv("BROWSER"), stderr)
		if err != nil {
			return err
		}
		page.wait(ctx)
	}
	return nil
}

// titleOf is the name of the first root.
func titleOf(t tracestore.Trace) string {
	for _, root := range t.Forest() {
		if root.Span.Name != "" {
			return root.Span.Name
		}
	}
	return "trace " + t.ID
}

// parseTraceID takes a trace id, or the one in a traceparent (W3C Trace Context, 3.2.2).
func parseTraceID(text string) (string, error) {
	id := strings.ToLower(strings.TrimSpace(text))
	if parts := strings.Split(id, "-"); len(parts) >= 4 && len(parts[0]) == 2 {
		id = parts[1]
	}
	if _, err := hex.DecodeString(id); err != nil || len(id) != 32 || strings.Trim(id, "0") == "" {
		return "", fmt.Errorf("%q is no trace id: want 32 hexadecimal digits, or a traceparent", printable(firstBytes(text, 80)))
	}
	return id, nil
}

func firstBytes(text string, most int) string {
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
