package main

// The caller. In: a server's address and a review. Out: how long each answer took.
// It makes calls as the API server does: HTTP/1.1 over TLS, POST with ?timeout=, on
// connections that are kept. It is not net/http's client, whose own work would be half
// of what is measured. Errors: an answer that is not 200 or does not allow the request.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// connections is how many the API server keeps open to a webhook at most
	// (MaxIdleConnsPerHost of its webhook clients).
	connections = 25
	reviewUID   = "0df28fbd-5f5f-11e8-bc74-36e6bb280816" // of webhook/testdata/bench/pod.json
)

// load calls one server on all connections, each call as soon as the one before is answered.
type load struct {
	address string
	roots   *x509.CertPool
	review  []byte
	sampled int  // of 100 requests
	patched bool // the answers must have a patch
}

// run calls for a while and returns what each answer took. It ends early, with an
// error, when a call goes wrong or ctx ends.
func (l load) run(ctx context.Context, duration time.Duration) ([]time.Duration, error) {
	group, ctx := errgroup.WithContext(ctx)
	took := make([][]time.Duration, connections)
	end := time.Now().Add(duration)
	for i := range connections {
		group.Go(func() (err error) {
			took[i], err = l.connection(ctx, i, end)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("call %s: %w", l.address, err)
	}
	var all []time.Duration
	for _, t := range took {
		all = append(all, t...)
	}
	return all, nil
}

// connection makes calls on one connection; number tells it from the others.
func (l load) connection(ctx context.Context, number int, end time.Time) ([]time.Duration, error) {
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: l.roots, ServerName: serverName, NextProtos: []string{"http/1.1"}}}
	conn, err := dialer.DialContext(ctx, "tcp", l.address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(end.Add(30 * time.Second)); err != nil {
		return nil, err
	}
	var request bytes.Buffer
	fmt.Fprintf(&request, "POST /mutate?timeout=10s HTTP/1.1\r\nHost: %s:443\r\nUser-Agent: kube-apiserver-admission\r\nContent-Length: %d\r\n"+
		"Accept: application/json, */*\r\nContent-Type: application/json\r\nTraceparent: ", serverName, len(l.review))
	place := request.Len()
	fmt.Fprintf(&request, "00-%032x-%016x-00\r\nAccept-Encoding: gzip\r\n\r\n", 1, 1)
	request.Write(l.review)
	call := request.Bytes()

	var took []time.Duration
	var written [55]byte
	answer := newAnswerReader(conn, l.patched)
	for i := number; ctx.Err() == nil; i++ {
		// A trace of its own for each call, as in life.
		traceparent := fmt.Appendf(written[:0], "00-%016x%016x-%016x-00", rand.Uint64(), rand.Uint64(), 1+rand.Uint64N(1<<63))
		if i%100 < l.sampled {
			traceparent[len(traceparent)-1] = '1'
		}
		copy(call[place:], traceparent)
		start := time.Now()
		if start.After(end) {
			return took, nil
		}
		if _, err := conn.Write(call); err != nil {
			return nil, err
		}
		if err := answer.read(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return nil, ctx.Err()
}

// answerReader reads answers that have a Content-Length, as short ones of net/http's do.
type answerReader struct {
	in      *bufio.Reader
	body    []byte
	patched bool
}

func newAnswerReader(in io.Reader, patched bool) *answerReader {
	return &answerReader{in: bufio.NewReader(in), patched: patched}
}

func (a *answerReader) read() error {
	status, err := a.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("the answer is %q", bytes.TrimSpace(status))
	}
	length := -1
	for {
		line, err := a.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			break
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return fmt.Errorf("read the answer's length: %w", err)
			}
		}
	}
	if length < 0 {
		return errors.New("the answer has no Content-Length")
	}
	a.body = slices.Grow(a.body[:0], length)[:length]
	if _, err := io.ReadFull(a.in, a.body); err != nil {
		return err
	}
	if !bytes.Contains(a.body, []byte(`"uid":"`+reviewUID+`","allowed":true`)) || bytes.Contains(a.body, []byte(`"patch":"`)) != a.patched {
		return fmt.Errorf("not the answer to this review: %s", a.body)
	}
	return nil
}
