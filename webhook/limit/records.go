package limit

// Log records: of a kind that any caller can cause, one in a while is written and the others
// are counted. Errors: none.

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// DefaultEvery is the while.
const DefaultEvery = 30 * time.Second

// Records lets the log records of one kind through that are worth it. The zero value is
// ready, with DefaultEvery. All methods may be called at once.
type Records struct {
	// Every is how often a record is written. Zero: DefaultEvery.
	Every time.Duration

	mu      sync.Mutex
	until   time.Time
	leftOut int
}

// Log writes the first record, and counts those that come within the while after it. At
// its end one more record says how many were left out, if any were. attrs is called for what is
// written; same are the attributes that all records of this kind have in common.
func (r *Records) Log(ctx context.Context, log *slog.Logger, level slog.Level, message string, attrs func() []slog.Attr, same ...slog.Attr) {
	if !log.Enabled(ctx, level) {
		return
	}
	every := r.Every
	if every == 0 {
		every = DefaultEvery
	}
	now := time.Now()
	r.mu.Lock()
	if now.Before(r.until) {
		r.leftOut++
		if r.leftOut == 1 {
			time.AfterFunc(r.until.Sub(now), func() { r.sum(log, level, message, every, same) })
		}
		r.mu.Unlock()
		return
	}
	r.until = now.Add(every)
	r.mu.Unlock()
	log.LogAttrs(ctx, level, message, append(attrs(), same...)...) //nolint:sloglint // the message is the caller's constant
}

// sum tells what was left out since the last record.
func (r *Records) sum(log *slog.Logger, level slog.Level, message string, every time.Duration, same []slog.Attr) {
	r.mu.Lock()
	n := r.leftOut
	r.leftOut = 0
	r.mu.Unlock()
	log.LogAttrs(context.Background(), level, "records left out of the log", append([]slog.Attr{
		slog.String("like", message), slog.Int("left_out", n), slog.Duration("within", every)}, same...)...)
}
