// Command demo shows what tracehook is for, on a real control plane: one
// `kubectl create` as one trace, and what a certificate without subject
// alternative name does to it.
//
//	stage.go   starts everything and stops it
//	acts.go    what is shown, in two acts
//	publish.go the report, and how to go on with KEEP=1
//
// It reads KEEP (not empty: leave everything running until Ctrl-C) and OUT (where
// the report goes; default out/demo).
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	out := cmp.Or(os.Getenv("OUT"), filepath.Join("out", "demo"))
	if err := run(ctx, out, os.Getenv("KEEP") != "", os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, keep bool, terminal io.Writer) (err error) {
	s, err := setUp(ctx, terminal)
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := s.cluster.Stop(); err == nil {
			err = stopErr
		}
	}()
	if err := actOne(ctx, s); err != nil {
		return err
	}
	if err := actTwo(ctx, s); err != nil {
		return err
	}
	if err := publish(s, out); err != nil {
		return err
	}
	if keep {
		s.explainHowToGoOn()
		<-ctx.Done()
		s.say("\nStopping.")
	}
	return nil
}
