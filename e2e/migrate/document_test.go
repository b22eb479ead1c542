package migrate

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// The document is certs/MIGRATION.md. A comment `<!-- run: NAME -->` before a fenced block of a terminal session makes the
// block an example: its commands are run, and what they write must be what the block shows, but for what differs from
// run to run. With UPDATE=1 the blocks are written anew.
const document = "../../certs/MIGRATION.md"

var example = regexp.MustCompile("(?s)<!-- run: ([a-z0-9-]+) -->\n```console\n(.*?)```\n")

// session is one block: commands, each with its output.
type session []exchange

type exchange struct{ command, output string }

// prompt is at the beginning of a command's first line; a line that ends in \ goes on.
func parseSession(text string) (s session) {
	for line := range strings.Lines(text) {
		switch last := len(s) - 1; {
		case strings.HasPrefix(line, "$ "):
			s = append(s, exchange{command: strings.TrimPrefix(line, "$ ")})
		case last >= 0 && s[last].output == "" && strings.HasSuffix(s[last].command, "\\\n"):
			s[last].command += line
		case last >= 0:
			s[last].output += line
		}
	}
	return s
}

func (s session) String() string {
	var b strings.Builder
	for _, e := range s {
		b.WriteString("$ " + e.command + e.output)
	}
	return b.String()
}

var updated struct {
	sync.Mutex
	sessions map[string]session
}

// readExamples are the sessions of the document by name.
func readExamples(t *testing.T) map[string]session {
	t.Helper()
	text, err := os.ReadFile(document)
	must(t, err)
	all := map[string]session{}
	for _, match := range example.FindAllStringSubmatch(string(text), -1) {
		if _, twice := all[match[1]]; twice {
			t.Fatalf("two examples are named %s", match[1])
		}
		all[match[1]] = parseSession(match[2])
	}
	return all
}

// play runs a session. What a command complains of is part of what it writes.
func play(t *testing.T, name string, want session) {
	t.Helper()
	var got session
	for _, e := range want {
		output, _ := run(t, e.command)
		got = append(got, exchange{e.command, settled(output)})
		if g, w := mask(settled(output)), mask(e.output); g != w && os.Getenv("UPDATE") == "" {
			t.Errorf("$ %swrote\n%s\nthe document says\n%s\nmasked:\n%s", e.command, output, e.output, firstDifference(g, w))
		}
	}
	updated.Lock()
	defer updated.Unlock()
	if updated.sessions == nil {
		updated.sessions = map[string]session{}
	}
	updated.sessions[name] = got
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d: %q, want %q", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// run is what a person's shell does.
func run(t *testing.T, command string) (output string, code int) {
	t.Helper()
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // a busy machine takes its time
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", command)
	cmd.WaitDelay = time.Second
	cmd.Env = []string{"PATH=" + shared.bin + string(filepath.ListSeparator) + os.Getenv("PATH"), "HOME=" + shared.bin, "KUBECONFIG=" + shared.Kubeconfig}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && (cmd.ProcessState == nil || ctx.Err() != nil) {
		t.Fatalf("$ %s: %v\n%s", command, err, &out)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// passing are lines that come only if a look fell between two others.
var passing = regexp.MustCompile(`(?m)^    ((switched: )?not yet served at|served; asked again).*\n`)

// settled is what a command writes, but for what only the harness makes different.
func settled(output string) string {
	output = passing.ReplaceAllString(output, "")
	return strings.ReplaceAll(output, "wait "+soak, "wait 1m40s")
}

var masks = []struct {
	what *regexp.Regexp
	mask string
}{
	{regexp.MustCompile(`[0-9a-f]{16}…`), "FINGERPRINT…"},
	{regexp.MustCompile(`serial [0-9a-f]+`), "serial SERIAL"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?( UTC|Z)`), "TIME"},
	{regexp.MustCompile(`(localhost|127\.0\.0\.1):\d+`), "$1:PORT"},
	{regexp.MustCompile(`(Service \S+|\.svc):\d+`), "$1:PORT"},
	{regexp.MustCompile(`(?m)^(apiserver_\w+) \d+$`), "$1 N"},
	{regexp.MustCompile(` {2,}`), "  "},
	{regexp.MustCompile(`(?m)^ +\d+(  apiserver_)`), "  N$1"},
	{regexp.MustCompile(`(?m) +$`), ""},
}

func mask(s string) string {
	for _, m := range masks {
		s = m.what.ReplaceAllString(s, m.mask)
	}
	return s
}

// writeExamples puts what was played into the document.
func writeExamples(t *testing.T) {
	text, err := os.ReadFile(document)
	must(t, err)
	text = example.ReplaceAllFunc(text, func(block []byte) []byte {
		name := string(example.FindSubmatch(block)[1])
		played, ok := updated.sessions[name]
		if !ok {
			return block
		}
		return fmt.Appendf(nil, "<!-- run: %s -->\n```console\n%s```\n", name, played)
	})
	must(t, os.WriteFile(document, text, 0o644))
}
