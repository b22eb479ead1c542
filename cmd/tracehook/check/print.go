package check

// A Report as text, for people. In: a Report. Out: one line a check, and below a red one what to do. Pure. What comes from a
// cluster is made printable.

import (
	"fmt"
	"io"
	"strings"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
)

// Printer writes reports. After the first it writes only what has changed.
type Printer struct {
	Out    io.Writer
	Colour bool

	last map[string]Result
}

// colours of SGR, by status.
var colours = map[Status]string{StatusOK: "32", StatusWarn: "33", StatusFail: "31", StatusSkip: "2"}

// Print writes the lines that are new, or not as they were. Errors are the writer's.
func (p *Printer) Print(r Report) error {
	codes := 0
	for _, check := range All() {
		codes = max(codes, len(check.Code))
	}
	seen := map[string]Result{}
	var b strings.Builder
	for _, one := range r.Results {
		seen[one.Code] = one
		if last, known := p.last[one.Code]; known && last == one {
			continue
		}
		status := fmt.Sprintf("%-4s", one.Status)
		if p.Colour {
			status = "\x1b[" + colours[one.Status] + "m" + status + "\x1b[0m"
		}
		fmt.Fprintf(&b, "%s  %-*s  %s\n", status, codes, one.Code, printable(one.Message))
		if one.Remedy != "" {
			fmt.Fprintf(&b, "%*s  do: %s\n", len("fail")+2+codes, "", printable(one.Remedy))
		}
	}
	p.last = seen
	_, err := io.WriteString(p.Out, b.String())
	return err
}

// printable is what a cluster says, in one line.
func printable(text string) string { return report.Printable(strings.Join(strings.Fields(text), " ")) }
