package certs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// record is a Lease without an API server. That two processes obey one is e2e/rotation's story.
type record struct{ holder string }

func (r *record) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	return &resourcelock.LeaderElectionRecord{HolderIdentity: r.holder}, nil, nil
}

func (r *record) Create(ctx context.Context, e resourcelock.LeaderElectionRecord) error {
	return r.Update(ctx, e)
}

func (r *record) Update(_ context.Context, e resourcelock.LeaderElectionRecord) error {
	r.holder = e.HolderIdentity
	return nil
}
func (*record) RecordEvent(string) {}
func (*record) Identity() string   { return "we" }
func (*record) Describe() string   { return "a Lease" }

func TestATermEndsWithItsLease(t *testing.T) {
	we, others, nobody := resourcelock.LeaderElectionRecord{HolderIdentity: "we"}, resourcelock.LeaderElectionRecord{HolderIdentity: "others"}, resourcelock.LeaderElectionRecord{}
	wall := func(d time.Duration) func(time.Time) time.Time {
		return func(t time.Time) time.Time { return t.Round(0).Add(d) } // as after a suspension: that clock alone has gone on
	}
	both := func(d time.Duration) func(time.Time) time.Time {
		return func(t time.Time) time.Time { return t.Add(d) }
	}
	for name, test := range map[string]struct {
		do         func(context.Context, *lease, *record) error
		later      func(time.Time) time.Time
		held, lost bool
		holder     string
	}{
		"taken":               {later: both(0), held: true, holder: "we"},
		"nearly over":         {later: both(14 * time.Second), held: true, holder: "we"},
		"over":                {later: both(15 * time.Second), holder: "we"},
		"over, while asleep":  {later: wall(15 * time.Second), holder: "we"},
		"the clock went back": {later: wall(-time.Hour), held: true, holder: "we"},
		"renewed": {later: both(14 * time.Second), held: true, holder: "we", do: func(ctx context.Context, l *lease, _ *record) error {
			l.now = func() time.Time { return time.Now().Add(10 * time.Second) }
			return l.Update(ctx, we)
		}},
		"read, still ours": {later: both(0), held: true, holder: "we", do: func(ctx context.Context, l *lease, _ *record) error {
			_, _, err := l.Get(ctx)
			return err
		}},
		"read, another's": {later: both(0), lost: true, holder: "others", do: func(ctx context.Context, l *lease, r *record) error {
			_ = r.Update(ctx, others)
			_, _, err := l.Get(ctx)
			return err
		}},
		"given back": {later: both(0), holder: "", do: func(ctx context.Context, l *lease, _ *record) error { return l.Update(ctx, nobody) }},
		"another's, given back": {later: both(0), lost: true, holder: "others", do: func(ctx context.Context, l *lease, r *record) error {
			_ = r.Update(ctx, others)
			if _, _, err := l.Get(ctx); err != nil {
				return err
			}
			return l.Update(ctx, nobody)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			stored, lost := &record{}, false
			l := &lease{Interface: stored, duration: 15 * time.Second, lost: func() { lost = true }, now: time.Now}
			if l.held() {
				t.Error("held before it was taken")
			}
			if err := l.Create(t.Context(), we); err != nil {
				t.Fatal(err)
			}
			if test.do != nil {
				if err := test.do(t.Context(), l, stored); err != nil {
					t.Fatal(err)
				}
			}
			l.now = func() time.Time { return test.later(time.Now()) }
			if l.held() != test.held || lost != test.lost || stored.holder != test.holder {
				t.Errorf("held %t, lost %t, holder %q; want %t, %t, %q", l.held(), lost, stored.holder, test.held, test.lost, test.holder)
			}
		})
	}
}

func TestThatAnotherCandidateWasFasterIsNoError(t *testing.T) {
	leases := schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}
	for _, test := range []struct {
		err   error
		level string
	}{
		{apierrors.NewAlreadyExists(leases, "tracehook-certs"), "INFO"},
		{apierrors.NewConflict(leases, "tracehook-certs", errors.New("the object has been modified")), "INFO"},
		{context.Canceled, "INFO"},
		{apierrors.NewForbidden(leases, "tracehook-certs", errors.New("no right")), "ERROR"},
		{errors.New("connection refused"), "ERROR"},
	} {
		var log bytes.Buffer
		logr.FromSlogHandler(electionLog{slog.NewTextHandler(&log, nil)}).WithName("elector").WithValues("lock", "a").Error(test.err, "Failed to update lease")
		if !strings.Contains(log.String(), "level="+test.level+" ") {
			t.Errorf("%v: %s, want level %s", test.err, &log, test.level)
		}
	}
}
