package main

// The clock that certificates are judged by: the API server's, as it is the API server that verifies ours. In: the
// Date header of its answers. Out: the time. Errors: none; while no API server has answered it is this machine's clock.

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
)

const (
	// clockEvery is how often an API server is asked.
	clockEvery = time.Minute
	// clockTolerance is what two clocks may differ by: an API server tells whole seconds.
	clockTolerance = 2 * time.Second
	// clockSkew is how far this machine's clock may be behind without harm while no API server has said so:
	// a pair that is not valid for so long is served as a new one. An hour is what wrong time zones and summer time make.
	clockSkew = time.Hour + time.Minute
)

// apiClock knows what time it is at an API server.
type apiClock struct {
	client *http.Client
	url    string
	log    *slog.Logger
	known  atomic.Pointer[clockReading]
}

// clockReading is the time at an API server, and when that was by the monotonic clock: it goes on when somebody sets the clock of this
// machine.
type clockReading struct{ theirs, ours time.Time }

// newAPIClock asks nobody yet. A nil configuration is a clock of this machine.
func newAPIClock(config *rest.Config, log *slog.Logger) (*apiClock, error) {
	c := &apiClock{log: log}
	if config == nil {
		return c, nil
	}
	config = rest.CopyConfig(config)
	config.Timeout = 10 * time.Second
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("read the API server's address: %w", err)
	}
	if c.client, err = rest.HTTPClientFor(config); err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	c.url = base.JoinPath("version").String() // whatever the answer is, it has a date
	return c, nil
}

// now is the time at the API server.
func (c *apiClock) now() time.Time {
	if known := c.known.Load(); known != nil {
		return known.theirs.Add(time.Since(known.ours))
	}
	return time.Now()
}

// skew is how far the clock may be behind.
func (c *apiClock) skew() time.Duration {
	if c.known.Load() != nil {
		return clockTolerance
	}
	return clockSkew
}

// run asks until ctx ends.
func (c *apiClock) run(ctx context.Context) error {
	for c.client != nil {
		c.ask(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(clockEvery):
		}
	}
	return nil
}

// ask keeps what was known if nobody answers.
func (c *apiClock) ask(ctx context.Context) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return
	}
	asked := time.Now()
	resp, err := c.client.Do(r)
	if err != nil {
		return // who needs the API server says so
	}
	_ = resp.Body.Close()
	ours := asked.Add(time.Since(asked) / 2)
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return
	}
	theirs = theirs.Add(time.Second / 2) // it is cut to seconds
	behind := theirs.Sub(ours.Round(0))  // by the wall clock
	if behind.Abs() <= clockTolerance+time.Since(asked) {
		theirs, behind = ours, 0
	}
	before := c.known.Swap(&clockReading{theirs, ours})
	if behind != 0 && (before == nil || before.theirs.Sub(before.ours).Abs() <= clockTolerance) {
		c.log.Warn("the clock of this machine is not the API server's, by which certificates are judged", "behind", behind.Round(time.Second).String())
	}
}
