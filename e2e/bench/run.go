package main

// Everything started, rounds in turn, everything stopped. In: a plan. Out: what was
// measured of each variant in each round.

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/tracehook/tracehook/certs"
)

// serverName is what the API server verifies.
const serverName = "tracehook.tracehook-system.svc"

// plan says how much is measured.
type plan struct {
	rounds   int
	duration time.Duration // of all turns together
	profiles string        // directory for a CPU profile of each server; "": none
	progress io.Writer     // one line a round
}

// starter starts a process on a processor.
type starter func(cmd *exec.Cmd, cpu int) error

// round is one variant's turn.
type round struct {
	took          []time.Duration // one for each call
	elapsed       time.Duration
	before, after reading
}

// turn is how long a variant is measured in a round.
func turn(duration time.Duration, rounds int) time.Duration {
	return duration / time.Duration(rounds*len(variants))
}

// measure returns the rounds of each variant, in the order of variants.
func measure(ctx context.Context, p plan) ([][]round, error) {
	serverCPU, otherCPU, err := processors()
	if err != nil {
		return nil, err
	}
	root, err := repository()
	if err != nil {
		return nil, err
	}
	review, err := os.ReadFile(filepath.Join(root, "webhook", "testdata", "bench", "pod.json"))
	if err != nil {
		return nil, fmt.Errorf("read the review: %w", err)
	}
	dir, err := os.MkdirTemp("", "tracehook-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	start := newStarter()
	sink, sinkAddress, err := startSink(start, otherCPU)
	if err != nil {
		return nil, err
	}
	defer sink.stop()
	collector, err := startCollector(ctx, start, root, dir, sinkAddress, otherCPU)
	if err != nil {
		return nil, err
	}
	defer collector.stop()

	roots, common, err := certificate()
	if err != nil {
		return nil, err
	}
	common.Collector = collector.address
	servers := make([]server, len(variants))
	for i, v := range variants {
		settings := common
		settings.Variant = v.name
		if p.profiles != "" {
			settings.Profile = filepath.Join(p.profiles, fmt.Sprintf("%d.pprof", i))
		}
		if servers[i], err = startServer(start, settings, serverCPU); err != nil {
			return nil, fmt.Errorf("start %q: %w", v.name, err)
		}
		defer servers[i].stop()
	}
	if err := settle(otherCPU); err != nil {
		return nil, err
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))

	measured := make([][]round, len(variants))
	each := turn(p.duration, p.rounds)
	for n := range p.rounds {
		fmt.Fprintf(p.progress, "round %d of %d\n", n+1, p.rounds)
		for i := range variants {
			i = (i + n) % len(variants) // nobody always has the same neighbour
			r, err := measureRound(ctx, servers[i], variants[i], roots, review, each)
			if err != nil {
				return nil, fmt.Errorf("measure %q: %w", variants[i].name, err)
			}
			measured[i] = append(measured[i], r)
		}
	}
	return measured, nil
}

func measureRound(ctx context.Context, s server, v variant, roots *x509.CertPool, review []byte, each time.Duration) (r round, err error) {
	if r.before, err = s.read(); err != nil {
		return r, err
	}
	l := load{address: r.before.Address, roots: roots, review: review, sampled: v.sampled, patched: v.name != nullName}
	// Handshakes, buffers, the heap's size: not what is asked about.
	if _, err = l.run(ctx, each/8); err != nil {
		return r, err
	}
	if r.before, err = s.read(); err != nil {
		return r, err
	}
	began := time.Now()
	if r.took, err = l.run(ctx, each); err != nil {
		return r, err
	}
	r.elapsed = time.Since(began)
	r.after, err = s.read()
	return r, err
}

// child is this program again, as something else.
type child struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Reader
}

func startChild(start starter, role string, cpu int) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(self, role)}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.answers = bufio.NewReader(out)
	if err := start(c.cmd, cpu); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	return c, nil
}

func (c *child) stop() {
	c.in.Close()
	timer := time.AfterFunc(10*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer timer.Stop()
	_ = c.cmd.Wait() // it has told what there was to tell
}

// startSink returns its address, too.
func startSink(start starter, cpu int) (*child, string, error) {
	c, err := startChild(start, "sink", cpu)
	if err != nil {
		return nil, "", err
	}
	address, err := c.answers.ReadString('\n')
	if err != nil {
		c.stop()
		return nil, "", fmt.Errorf("hear where the sink is: %w", err)
	}
	return c, strings.TrimSpace(address), nil
}

// server is a variant's process.
type server struct{ *child }

func startServer(start starter, set settings, cpu int) (server, error) {
	c, err := startChild(start, "serve", cpu)
	if err != nil {
		return server{}, err
	}
	return server{c}, json.NewEncoder(c.in).Encode(set)
}

func (s server) read() (reading, error) {
	var r reading
	if _, err := io.WriteString(s.in, "\n"); err != nil {
		return r, fmt.Errorf("ask the server: %w", err)
	}
	line, err := s.answers.ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("hear the server: %w", err)
	}
	return r, json.Unmarshal(line, &r)
}

// certificate makes the servers' pair, and what the caller trusts.
func certificate() (*x509.CertPool, settings, error) {
	var set settings
	now := time.Now()
	ca, err := certs.NewCA(certs.CAOptions{Now: now})
	if err != nil {
		return nil, set, err
	}
	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: now, Names: []string{serverName}})
	if err != nil {
		return nil, set, err
	}
	if set.Certificate, err = leaf.CertificatePEM(); err != nil {
		return nil, set, err
	}
	if set.Key, err = leaf.KeyPEM(); err != nil {
		return nil, set, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate)
	return roots, set, nil
}

// repository returns the root of this module's checkout, which a bench is run in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the repository: no go.mod here or above")
		}
		dir = parent
	}
}
