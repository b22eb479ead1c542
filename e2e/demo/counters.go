package main

// The API server's counters, before and after. Errors: they did not move as they must.

import (
	"context"
	"fmt"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

// settle waits until the API server has called the webhook this many times.
func (s *stage) settle(ctx context.Context, calls int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		counters, err := s.cluster.Counters(ctx)
		if err != nil {
			return err
		}
		if counters.RequestTotal >= calls {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after 30s the API server has called the webhook %d times, want %d", counters.RequestTotal, calls)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// count shows how far the counters have moved since before, which must be as wanted.
func (s *stage) count(ctx context.Context, heading, text string, before, want cluster.Counters) error {
	after, err := s.cluster.Counters(ctx)
	if err != nil {
		return err
	}
	section := report.Section{Heading: heading, Text: text}
	s.say("")
	for _, c := range []struct {
		name          string
		before, after int
	}{
		{"apiserver_webhooks_x509_missing_san_total", before.MissingSAN, after.MissingSAN},
		{"apiserver_admission_webhook_request_total", before.RequestTotal, after.RequestTotal},
		{"apiserver_admission_webhook_fail_open_count", before.FailOpen, after.FailOpen},
	} {
		s.say("%-46s %4d → %-4d %+d", c.name, c.before, c.after, c.after-c.before)
		section.Counters = append(section.Counters, report.Counter{Name: c.name, Before: float64(c.before), After: float64(c.after)})
	}
	s.say("%s", text)
	s.report.Sections = append(s.report.Sections, section)
	if moved := after.Sub(before); moved != want {
		return fmt.Errorf("the counters moved by %+v, want %+v", moved, want)
	}
	return nil
}
