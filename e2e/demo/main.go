// Command demo shows what tracehook is for, on a real control plane, in order: one `kubectl
// create` as one trace; a Deployment and its roll-out; where there can be a real node, a Job
// down to the program in its container, and a Pod that cannot start; what `tracehook explain`
// says of them; and what a certificate without subject alternative name does.
//
//	stage.go       starts everything and stops it
//	acts.go        what is shown on every machine
//	node.go        what is shown where there can be a node
//	certificate.go the last act
//	counters.go    the API server's counters
//	publish.go     the report, its picture, and how to go on with KEEP=1
//
// What it shows of a trace is what tracehook's own commands print. It reads KEEP (not empty:
// leave everything running until Ctrl-C, without a node) and OUT (where the report goes;
// default out/demo).
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

func main() {
	out := cmp.Or(os.Getenv("OUT"), filepath.Join("out", "demo"))
	keep := os.Getenv("KEEP") != ""
	noNode := whyNoNode(keep)
	if noNode == "" {
		os.Exit(playOnNode(out))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Stdout, cluster.Options{}, noNode, func(s *stage) error {
		if err := s.play(ctx); err != nil {
			return err
		}
		if err := publish(ctx, s, out); err != nil {
			return err
		}
		if keep {
			s.explainHowToGoOn()
			<-ctx.Done()
			s.say("\nStopping.")
		}
		return nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

// run sets the stage, and clears it after the story. noNode says why there is no node; "":
// the story adds one.
func run(ctx context.Context, terminal io.Writer, o cluster.Options, noNode string, story func(*stage) error) (err error) {
	s, err := setUp(ctx, terminal, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.cluster.Stop()) }()
	s.noNode = noNode
	return story(s)
}
