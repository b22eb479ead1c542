package main

// --open: the page in the user's browser. In: what is shown. Out: a page on the loopback
// interface, until it is closed. Errors: no port to listen on.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/cli/browser"

	"github.com/tracehook/tracehook/cmd/tracehook/pageserver"
	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// browserPatience is how long a browser may take to open the page, before a person is told
// its address.
const browserPatience = 10 * time.Second

// mostPatience bounds how long the page is served for a person who has its address.
const mostPatience = time.Hour

// openedPage is the page, and the browser that was asked to show it.
type openedPage struct {
	*pageserver.Server
	stderr io.Writer
	ending chan error // of the program that opens pages
}

// openPage serves s and asks the browser for it. store may be nil.
func openPage(s shownTrace, store *tracestore.Client, browserVariable string, stderr io.Writer) (*openedPage, error) {
	options := pageserver.Options{Random: rand.Reader}
	if store != nil {
		options.Linked = func(ctx context.Context, id string) (report.Report, error) {
			trace, err := store.Trace(ctx, id)
			if err != nil {
				return report.Report{}, err
			}
			trace, _ = withNodes(ctx, store, trace) // the page shows what there is
			return shownTrace{Title: titleOf(trace), Trace: trace, Page: store.Page(id), Now: time.Now()}.report(), nil
		}
	}
	server, err := pageserver.Start(options, s.report())
	if err != nil {
		return nil, err
	}
	page := &openedPage{Server: server, stderr: stderr, ending: make(chan error, 1)}
	go func() { page.ending <- openBrowser(server.URL, browserVariable) }()
	return page, nil
}

// openBrowser heeds BROWSER, as other programs do: programs, separated by colons, of which the
// first that can be started gets the address as its last argument, or in the place of %s.
func openBrowser(url, variable string) error {
	if variable == "" {
		browser.Stdout, browser.Stderr = io.Discard, io.Discard // the terminal is the command's
		return browser.OpenURL(url)
	}
	var err error
	for _, candidate := range strings.Split(variable, ":") {
		words := strings.Fields(candidate)
		if len(words) == 0 {
			continue
		}
		placed := false
		for i, word := range words[1:] {
			words[i+1] = strings.ReplaceAll(word, "%s", url)
			placed = placed || words[i+1] != word
		}
		if !placed {
			words = append(words, url)
		}
		if err = exec.Command(words[0], words[1:]...).Run(); err == nil {
			return nil
		}
	}
	if err == nil {
		err = errors.New("BROWSER names no program")
	}
	return err
}

// wait returns when the page has been closed, or ctx ends. Where no browser comes, a person is
// told where the page is.
func (p *openedPage) wait(ctx context.Context) {
	defer p.Close()
	fmt.Fprintln(p.stderr, "tracehook: the page is in your browser, until you close it or press Ctrl-C")
	came := make(chan error, 1)
	go func() { came <- p.Wait(ctx, browserPatience) }()
	for {
		select {
		case err := <-p.ending:
			if err == nil {
				continue // a program was started; whether the page came is for Wait to see
			}
		case err := <-came:
			if !errors.Is(err, pageserver.ErrNobodyCame) {
				return // it was closed, or ctx has ended
			}
		}
		fmt.Fprintln(p.stderr, "tracehook: no browser has opened it; it is at", p.URL)
		_ = p.Wait(ctx, mostPatience)
		return
	}
}
