package certs

// A term of office. In: what the Lease says. Out: whether it is still held, and the end of the term as soon as it is not.
//
// client-go's elector alone would go on for RenewDeadline after it has read that somebody else leads, and knows no
// wall clock: a leader that slept (a virtual machine that was paused, a suspended one) would write beside the next one.

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// errLease: whoever leads now, it is not this process.
var errLease = errors.New("the Lease has run out, or is somebody else's")

// lease is the Lease of one campaign, watched while client-go's elector works with it.
type lease struct {
	resourcelock.Interface
	duration time.Duration
	lost     func()           // called when somebody else is seen to hold it who did not before
	now      func() time.Time // with a monotonic reading

	mu      sync.Mutex
	holder  string    // as last read
	renewed time.Time // when that was asked for; zero: it is not ours
}

// held: nobody else can have taken it over. It has run out when either clock says so: the monotonic one stands still
// in a suspended machine, the other one may be set.
func (l *lease) held() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	return !l.renewed.IsZero() && now.Sub(l.renewed) < l.duration && now.Round(0).Sub(l.renewed.Round(0)) < l.duration
}

// Get reads who holds it.
func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err != nil {
		return record, raw, err
	}
	l.mu.Lock()
	lost := !l.renewed.IsZero() && record.HolderIdentity != l.Identity()
	l.holder = record.HolderIdentity
	if lost {
		l.renewed = time.Time{}
	}
	l.mu.Unlock()
	if lost {
		l.lost()
	}
	return record, raw, nil
}

// Create takes it when there is none.
func (l *lease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	asked := l.now()
	err := l.Interface.Create(ctx, record)
	if err == nil {
		l.wrote(record, asked)
	}
	return err
}

// Update takes it, renews it, or gives it back: that only if it is ours, which the elector does not look at.
func (l *lease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	l.mu.Lock()
	ours := l.holder == l.Identity()
	l.mu.Unlock()
	if record.HolderIdentity == "" && !ours {
		return nil
	}
	asked := l.now()
	err := l.Interface.Update(ctx, record)
	if err == nil {
		l.wrote(record, asked)
	}
	return err
}

func (l *lease) wrote(record resourcelock.LeaderElectionRecord, asked time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holder, l.renewed = record.HolderIdentity, time.Time{}
	if l.holder == l.Identity() {
		l.renewed = asked
	}
}

// electionLog writes down what client-go's elector has to say. It calls it an error when another candidate is faster,
// which is an election, and when it is told to stop.
type electionLog struct{ slog.Handler }

func (h electionLog) Handle(ctx context.Context, record slog.Record) error {
	record.Attrs(func(attr slog.Attr) bool {
		if err, ok := attr.Value.Any().(error); ok && (apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) || errors.Is(err, context.Canceled)) {
			record.Level = min(record.Level, slog.LevelInfo)
		}
		return true
	})
	return h.Handler.Handle(ctx, record)
}

func (h electionLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return electionLog{h.Handler.WithAttrs(attrs)}
}

func (h electionLog) WithGroup(name string) slog.Handler {
	return electionLog{h.Handler.WithGroup(name)}
}
