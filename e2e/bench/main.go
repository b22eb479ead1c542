// Command bench measures what an admission call costs, over TLS and HTTP/1.1 as the
// API server makes it: a handler that does nothing, tracehook, and the webhook that is
// usually written with controller-runtime, side by side in one run.
//
//	variants.go   what is measured
//	server.go     a variant as a process of its own, on one processor
//	load.go       the caller: 25 connections on the other processor
//	collector.go  a real OpenTelemetry Collector to send spans to
//	sink.go       what is behind the Collector
//	run.go        everything started, rounds in turn, everything stopped
//	numbers.go    rounds in, one row a variant out
//	table.go      the rows as Markdown
//	plot.go       the rows as SVG
//
// With the argument `serve` it is one of the servers, with `sink` what stores no spans.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx, stdin, stdout)
	case len(args) == 1 && args[0] == "sink":
		return sink(stdin, stdout)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	duration := flags.Duration("duration", 70*time.Second, "how long all measurements take together")
	rounds := flags.Int("rounds", 5, "how often each variant has its turn")
	out := flags.String("out", filepath.Join("out", "bench"), "where table.md and plot.svg go")
	profile := flags.Bool("profile", false, "also write a CPU profile of each server there, N.pprof for the Nth row from 0 on (the numbers are not comparable then)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rounds < 1 || *duration <= 0 {
		return fmt.Errorf("-rounds %d, -duration %s: want more than nothing", *rounds, *duration)
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	p := plan{rounds: *rounds, duration: *duration, progress: stdout}
	if *profile {
		p.profiles = *out
	}
	measured, err := measure(ctx, p)
	if err != nil {
		return err
	}
	rows := summarize(measured)
	where := conditions{when: time.Now(), rounds: *rounds, each: turn(*duration, *rounds), machine: machine()}
	table := markdown(rows, where)
	for name, content := range map[string][]byte{"table.md": table, "plot.svg": plot(rows, where)} {
		if err := os.WriteFile(filepath.Join(*out, name), content, 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintf(stdout, "\n%s\nwritten to %s\n", table, *out)
	return nil
}
