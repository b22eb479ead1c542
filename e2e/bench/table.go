package main

// The rows as Markdown. Pure, but for machine.

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// conditions are what a reader of the numbers must know.
type conditions struct {
	when    time.Time
	rounds  int
	each    time.Duration
	machine string
}

func markdown(rows []row, c conditions) []byte {
	var out bytes.Buffer
	fmt.Fprintln(&out, "| webhook | requests/s | CPU/request | × null | cheaper than usual | p50 | p99 | allocations | bytes | spans lost |")
	fmt.Fprintln(&out, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, r := range rows {
		lost := "–"
		if r.spans > 0 {
			lost = fmt.Sprintf("%.0f %%", 100*r.lost)
		}
		fmt.Fprintf(&out, "| %s | %.0f | %.0f µs | %.2f | %.1f | %s | %s | %.0f | %.0f | %s |\n",
			r.name, r.perSecond, micro(r.cpu), r.timesNull, r.cheaper, milli(r.p50), milli(r.p99), r.allocs, r.bytes, lost)
	}
	fmt.Fprintf(&out, "\n%s, %s: %s. One processor for the server, the other for its %d callers and the Collector. Medians of %d rounds of %s, "+
		"ratios within a round. Allocations and bytes are those of the whole process, net/http and TLS included.\n",
		c.when.Format("2 January 2006"), runtime.Version(), c.machine, connections, c.rounds, c.each.Round(100*time.Millisecond))
	return out.Bytes()
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func milli(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// machine says what kind of computer this is, as far as it tells.
func machine() string {
	kind := runtime.GOARCH
	if content, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, _ := strings.Cut(string(content), "model name")
		line, _, _ := strings.Cut(rest, "\n")
		if name := strings.Trim(line, "\t :"); name != "" {
			kind = name
		}
	}
	return fmt.Sprintf("%d processors (%s), shared", runtime.NumCPU(), kind)
}
