package main

// The stage. In: binaries. Out: a control plane, a trace pipeline, tracehook
// installed from the shipped manifests. Errors: the cluster's, with the log to read.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

type stage struct {
	cluster   *cluster.Cluster
	webhook   *cluster.Webhook
	certDir   string // of the serving pair, which the last act replaces
	tracehook string // path of the binary
	noNode    string // why there is no node; "": there is one
	shot      string // heading of the section that is at the top of the picture
	terminal  io.Writer
	colour    bool
	report    report.Report
}

// The image of all Pods: e2e/workload, which waits if it is told nothing else.
const (
	imageName = "localhost/workload"
	imageTag  = "demo"
	image     = imageName + ":" + imageTag
)

// lifecycle is the service.name of `tracehook lifecycle`.
const lifecycle = "tracehook-lifecycle"

// setUp starts everything that every machine can have, in about ten seconds.
func setUp(ctx context.Context, terminal io.Writer, o cluster.Options) (_ *stage, err error) {
	s := &stage{terminal: terminal, colour: isTerminal(terminal)}
	s.heading("Starting a control plane, a Collector, Jaeger and tracehook")
	started := time.Now()
	o.Controllers, o.Progress = true, terminal
	s.cluster, err = cluster.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.cluster.Stop() // the first error is the one to tell
		}
	}()
	if s.tracehook, err = s.cluster.Binary("tracehook"); err != nil {
		return nil, err
	}
	s.certDir = filepath.Join(s.cluster.Dir, "serving-certs")
	bundle, err := certificates.Issue(ctx, s.tracehook, certificates.Service, s.certDir)
	if err != nil {
		return nil, err
	}
	if s.webhook, err = s.cluster.StartWebhook(ctx, cluster.WebhookOptions{CertDir: s.certDir, Args: []string{"--lineage=parent"}}); err != nil {
		return nil, err
	}
	if err := s.cluster.InstallWebhook(ctx, s.webhook.Port, bundle); err != nil {
		return nil, err
	}
	if _, err := s.cluster.StartTracehook(ctx, cluster.TracehookOptions{
		Name: lifecycle, Args: []string{"lifecycle", "--health-probe-bind-address=0", "--metrics-bind-address=0"},
		Env: []string{"KUBECONFIG=" + s.cluster.Kubeconfig}, // what it may, and no more, is of deploy/components/lifecycle
	}); err != nil {
		return nil, err
	}
	version, err := s.cluster.Kubectl(ctx, "version")
	if err != nil {
		return nil, err
	}
	s.say("%-24s installed from deploy/, everything after %.1fs", "webhook", time.Since(started).Seconds())
	s.say("%-24s jaeger=%s", "TRACEHOOK_STORE", s.cluster.JaegerURL)
	s.report = report.Report{
		Title:     "One kubectl create, one trace",
		Summary:   "Recorded from real processes, each exporting its own spans through an OpenTelemetry Collector.",
		Generated: time.Now(),
		Facts:     versions(version),
	}
	return s, nil
}

// versions reads what `kubectl version` prints.
func versions(text string) []report.Fact {
	var facts []report.Fact
	for line := range strings.Lines(text) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), ": "); found && !strings.Contains(name, "Kustomize") {
			facts = append(facts, report.Fact{Name: strings.Replace(name, "Version", "version", 1), Value: value})
		}
	}
	return facts
}

// succeed is command for what must exit with 0.
func (s *stage) succeed(ctx context.Context, line string) (output string, err error) {
	output, code, err := s.command(ctx, line)
	if err == nil && code != 0 {
		err = fmt.Errorf("`%s` ended with exit code %d", line, code)
	}
	return output, err
}

// command runs a command line as a user would type it, with the built binaries in
// PATH, and returns what it printed. An exit code other than 0 is no error here.
func (s *stage) command(ctx context.Context, line string) (output string, exitCode int, err error) {
	s.say("\n$ %s", line)
	words := strings.Fields(line)
	program, err := s.cluster.Binary(words[0])
	if err != nil {
		return "", 0, err
	}
	kubectl, err := s.cluster.Binary("kubectl")
	if err != nil {
		return "", 0, err
	}
	var printed bytes.Buffer
	cmd := exec.CommandContext(ctx, program, words[1:]...)
	cmd.Env = append(os.Environ(), s.cluster.Env()...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+s.cluster.Kubeconfig, "TRACEHOOK_STORE=jaeger="+s.cluster.JaegerURL,
		"PATH="+filepath.Dir(kubectl)+string(os.PathListSeparator)+os.Getenv("PATH"))
	cmd.Stdout = io.MultiWriter(&printed, s.terminal)
	cmd.Stderr = cmd.Stdout
	err = cmd.Run()
	if cmd.ProcessState == nil {
		return "", 0, fmt.Errorf("run %s: %w", line, err)
	}
	return printed.String(), cmd.ProcessState.ExitCode(), ctx.Err()
}

// wait returns the trace when it is complete.
func (s *stage) wait(ctx context.Context, id string, complete func(tracestore.Trace) error) (tracestore.Trace, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client := tracestore.Client{BaseURL: s.cluster.JaegerURL}
	return client.Wait(ctx, id, complete)
}

func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(s.terminal, format+"\n", args...)
}

func (s *stage) heading(text string) {
	if s.colour {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	s.say("\n%s", text)
}

// isTerminal also respects https://no-color.org.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
