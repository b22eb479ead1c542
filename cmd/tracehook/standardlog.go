package main

// What net/http writes to the standard logger, and many a library. In: lines. Out: log records, few of each kind. Errors: none.

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"slices"
	"strings"

	"github.com/tracehook/tracehook/webhook/limit"
)

// messageKinds are how lines begin that callers can cause, so that many of one kind do not hide another.
var messageKinds = []string{"http: panic serving", "http: Accept error", "http2: ", "http: ", ""}

// standardLog receives the lines of the standard logger.
type standardLog struct {
	log  *slog.Logger
	said []limit.Records // by index of messageKinds
}

// takeStandardLog makes the standard logger of this process write to log. It is the process's one such logger, so this
// is for main programs.
func takeStandardLog(to *slog.Logger) {
	log.SetFlags(0)
	log.SetOutput(newStandardLog(to))
}

func newStandardLog(to *slog.Logger) *standardLog {
	return &standardLog{log: to, said: make([]limit.Records, len(messageKinds))}
}

// Write takes one line.
func (s *standardLog) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	kind := slices.IndexFunc(messageKinds, func(begin string) bool { return strings.HasPrefix(text, begin) })
	s.said[kind].Log(context.Background(), s.log, slog.LevelWarn, "message of the standard library", func() []slog.Attr {
		return []slog.Attr{slog.String("text", text)}
	})
	return len(line), nil
}
