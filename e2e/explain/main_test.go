// Package explain tests `tracehook explain` against a real control plane: what users ask, and what they read.
package explain

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

var shared struct {
	*cluster.Cluster
	tracehook string // path of the binary
}

func TestMain(m *testing.M) { os.Exit(story.Run(m, cluster.Options{Controllers: true}, install)) }

func install(ctx context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.tracehook, err = c.Binary("tracehook"); err != nil {
		return err
	}
	// Before anybody is called: what is made in there carries no cause.
	if _, err := c.Kubectl(ctx, "create", "deployment", "old", "--image=app:1"); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "wait", "--for=create", "pod", "-l", "app=old", "--timeout=30s"); err != nil {
		return err
	}
	certs := filepath.Join(c.Dir, "serving-certs")
	bundle, err := certificates.Issue(ctx, shared.tracehook, certificates.Service, certs)
	if err != nil {
		return err
	}
	webhook, err := c.StartWebhook(ctx, cluster.WebhookOptions{CertDir: certs})
	if err != nil {
		return err
	}
	if err := c.InstallWebhook(ctx, webhook.Port, bundle); err != nil {
		return err
	}
	// As deploy/components/custom-resources has it, for one group.
	if _, err := c.Kubectl(ctx, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p", `[{"op":"add","path":"/webhooks/0/rules/-","value":
		{"operations":["CREATE","UPDATE"],"apiGroups":["shop.example"],"apiVersions":["*"],"resources":["*"],"scope":"Namespaced"}}]`); err != nil {
		return err
	}
	return c.SetCABundle(ctx, bundle)
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, shared.Cluster, args...)
}

// answer is what a command wrote, and its exit code.
type answer struct {
	out, errs string
	code      int
}

// tracehookAs runs the built program with a kubeconfig.
func tracehookAs(t *testing.T, kubeconfig string, args ...string) answer {
	t.Helper()
	cmd := exec.CommandContext(story.Within(t, time.Minute), shared.tracehook, args...)
	cmd.Env = append(os.Environ(), append(shared.Env(), "KUBECONFIG="+kubeconfig, "HOME="+filepath.Join(shared.Dir, "home"), "TZ=UTC")...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return answer{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// explained is what `tracehook explain` answers to a member of system:masters.
func explained(t *testing.T, args ...string) string {
	t.Helper()
	a := tracehookAs(t, shared.Kubeconfig, append([]string{"explain"}, args...)...)
	if a.code != 0 {
		t.Fatalf("explain %s: exit code %d\n%s%s", strings.Join(args, " "), a.code, a.out, a.errs)
	}
	t.Logf("$ tracehook explain %s\n%s", strings.Join(args, " "), a.out)
	return a.out
}

var printedTraceID = regexp.MustCompile(`(?m)^trace id: ([0-9a-f]{32})$`)

// traced runs `tracehook trace -- kubectl args…` and returns the trace's id.
func traced(t *testing.T, args ...string) (traceID string) {
	t.Helper()
	kubectl, err := shared.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	a := tracehookAs(t, shared.Kubeconfig, append([]string{"trace", "--", kubectl}, args...)...)
	match := printedTraceID.FindStringSubmatch(a.errs)
	if a.code != 0 || match == nil {
		t.Fatalf("trace -- kubectl %s: exit code %d\n%s%s", strings.Join(args, " "), a.code, a.out, a.errs)
	}
	return match[1]
}

// namespace makes one for a test.
func namespace(t *testing.T, name string) string {
	t.Helper()
	mustKubectl(t, "create", "namespace", name)
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace", name, "--wait=false") })
	mustKubectl(t, "-n", name, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	return name
}

// want checks lines, each a regular expression of a whole line, in their order; others may stand between.
func want(t *testing.T, text string, patterns ...string) {
	t.Helper()
	if missing := firstMissing(text, patterns...); missing != "" {
		t.Fatalf("no line %s, or not in this order, in\n%s", missing, text)
	}
}

func firstMissing(text string, patterns ...string) string {
	lines := strings.Split(text, "\n")
	at := 0
	for _, pattern := range patterns {
		re := regexp.MustCompile(`^(` + pattern + `)$`)
		for at < len(lines) && !re.MatchString(lines[at]) {
			at++
		}
		if at == len(lines) {
			return pattern
		}
		at++
	}
	return ""
}
