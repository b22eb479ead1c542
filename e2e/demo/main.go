// Command demo shows what tracehook is for, on a real control plane: one
// `kubectl create` as one trace, what a certificate without subject alternative
// name does to it, and, where there can be a real node, one trace from kubectl to
// the program in a container.
//
//	stage.go   starts everything and stops it
//	acts.go    what is shown, in two acts
//	pod.go     the last act, on a node
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

	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

// lastAct is the argument by which this program plays its last act alone. Another follows: the file for what it has to
// report.
const lastAct = "last-act"

func main() {
	if len(os.Args) == 3 && os.Args[1] == lastAct {
		os.Exit(playLastAct(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	out := cmp.Or(os.Getenv("OUT"), filepath.Join("out", "demo"))
	if err := run(ctx, out, os.Getenv("KEEP") != "", os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, keep bool, terminal io.Writer) (err error) {
	s, err := setUp(ctx, terminal, cluster.Options{})
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
	if err := actThree(ctx, s); err != nil {
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
