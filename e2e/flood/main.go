// Flood is the program of a Pod that attacks:
//
//	flood WEBHOOK PROBES WITHIN
//
// In: the addresses (host:port) of tracehook's ports, and how long one attack may take. Out: all attacks of package flood
// that a server without HTTP/2 can meet, one after the other, each with a line that says how it went, and "done" at the end.
// Errors: of the arguments, on stderr, with exit code 1.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/flood"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "flood: want WEBHOOK PROBES WITHIN")
		os.Exit(1)
	}
	within, err := time.ParseDuration(os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
	attacks := flood.Attacks()
	target := flood.Target{Webhook: os.Args[1], Probes: os.Args[2], Within: within}
	for _, name := range slices.Sorted(maps.Keys(attacks)) {
		if strings.HasPrefix(name, "HTTP/2") {
			continue
		}
		start := time.Now()
		// Its connections may take longer than its calls.
		ctx, cancel := context.WithTimeout(context.Background(), 3*within)
		met := attacks[name](ctx, target)
		cancel()
		fmt.Printf("%s: %s, %.1f s\n", name, met, time.Since(start).Seconds())
	}
	fmt.Println("done")
}
