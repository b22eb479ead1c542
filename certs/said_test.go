package certs

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestAStartThatGoesWellWarnsOfNothingAndOneThatDoesNotIsTold(t *testing.T) {
	begun := time.Unix(1_700_000_000, 0)
	missing := Finding{Code: SecretMissing, Severity: Error, Message: "is not there"}
	expired := Finding{Code: Expired, Severity: Error, Message: "ended yesterday"}
	for _, test := range []struct {
		name     string
		after    time.Duration
		findings []Finding
		levels   string
	}{
		{"what a start passes through", 0, []Finding{missing}, "INFO"},
		{"the same again", 0, []Finding{missing, missing}, "INFO"},
		{"what no start mends", 0, []Finding{missing, expired}, "INFO ERROR"},
		{"a start that takes too long", startPatience, []Finding{missing}, "INFO ERROR"},
		{"a start that went well", startPatience, nil, "INFO INFO"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log bytes.Buffer
			logger := slog.New(slog.NewTextHandler(&log, nil))
			var r report
			r.tell(t.Context(), logger, "serving certificate", []Finding{missing}, begun)
			r.tell(t.Context(), logger, "serving certificate", test.findings, begun.Add(test.after))
			var levels []string
			for line := range strings.Lines(log.String()) {
				_, rest, _ := strings.Cut(line, "level=")
				level, _, _ := strings.Cut(rest, " ")
				levels = append(levels, level)
			}
			if got := strings.Join(levels, " "); got != test.levels {
				t.Errorf("levels %q, want %q:\n%s", got, test.levels, &log)
			}
		})
	}
}
