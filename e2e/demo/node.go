//go:build linux

package main

// The last act. In: a machine on which a node can run. Out: one trace from kubectl to the program in a container, beside
// it what kubelet and containerd did, and what `tracehook explain` says of a Pod that runs and one that does not. It has a control plane of its own, because a node and all that talks to it
// live in network namespaces of the run (see package node). Errors: what the machine lacks is none, and is said.

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/node"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// actThree has this program started once more, for the last act.
func actThree(ctx context.Context, s *stage) error {
	if err := node.Possible(); err != nil {
		s.notShown(err.Error())
		return nil
	}
	dir, err := os.MkdirTemp("", "tracehook-demo-")
	if err != nil {
		return fmt.Errorf("make directory of the last act: %w", err)
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	path := filepath.Join(dir, "sections")
	cmd := exec.CommandContext(ctx, self, lastAct, path)
	cmd.Stdout, cmd.Stderr = s.terminal, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("play the last act: %w", err)
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read what the last act found: %w", err)
	}
	defer file.Close()
	var sections []report.Section
	if err := gob.NewDecoder(file).Decode(&sections); err != nil {
		return fmt.Errorf("read what the last act found: %w", err)
	}
	s.report.Sections = append(s.report.Sections, sections...)
	return nil
}

// playLastAct writes its sections to a file.
func playLastAct(path string) (code int) {
	return node.Main(node.Options{
		Prepare: prepareNode,
		Run: func(dir string) int {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if err := onNode(ctx, dir, path); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return 0
		},
	})
}

const workloadArchive = "workload.tar"

// prepareNode builds what only this act needs.
func prepareNode(dir string) error {
	build := exec.Command("e2e/controlplane/build.sh", node.Programs()...)
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build a node's programs: %w", err)
	}
	root, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the repository: %w", err)
	}
	image := node.Image{Root: root, Program: "e2e/workload", Name: "localhost/workload", Tag: "demo"}
	return image.Build(filepath.Join(dir, workloadArchive))
}

// wholePod is what the trace must hold: the Job, its Pod, what became of it, and the program in it.
var wholePod = tree.Want{
	Service: "kubectl", Kind: tracestore.KindInternal,
	Children: []tree.Want{
		{Service: "apiserver", Name: "Create", Descendant: true, Children: []tree.Want{
			{Service: "tracehook", Name: "POST /mutate", Descendant: true},
			{Service: "etcd", Kind: tracestore.KindServer, Descendant: true},
		}},
		{Service: "tracehook", Name: "create Pod", Descendant: true, Children: []tree.Want{
			{Service: "hello", Name: "work"},
			{Service: "tracehook-lifecycle", Name: "start container"},
		}},
	},
}

func onNode(ctx context.Context, dir, path string) (err error) {
	s, err := setUp(ctx, os.Stdout, cluster.Options{Dir: filepath.Join(dir, "cluster"), Address: node.HostAddress}, "--lineage=parent")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.cluster.Stop()) }()
	begin := time.Now()
	if _, err := node.StartAll(ctx, s.cluster, 1, node.NodeOptions{
		Dir: dir, Images: []string{filepath.Join(dir, workloadArchive)}, Pause: "localhost/workload:demo", Tracing: "deploy/nodes",
	}); err != nil {
		return err
	}
	s.say("%-24s Ready after %.1fs: kubelet, containerd, runc", "node", time.Since(begin).Seconds())
	if _, err := s.cluster.StartTracehook(ctx, cluster.TracehookOptions{
		Name: "tracehook-lifecycle", Args: []string{"lifecycle", "--health-probe-bind-address=0", "--metrics-bind-address=0"},
		Env: []string{"KUBECONFIG=" + s.cluster.Kubeconfig}, // what it may, and no more, is of deploy/components/lifecycle
	}); err != nil {
		return err
	}
	if err := s.showPod(ctx); err != nil {
		return err
	}
	if err := s.explain(ctx); err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write what was found: %w", err)
	}
	defer file.Close()
	if err := gob.NewEncoder(file).Encode(s.report.Sections); err != nil {
		return fmt.Errorf("write what was found: %w", err)
	}
	return nil
}

func (s *stage) showPod(ctx context.Context) error {
	s.heading(lastHeading)
	one := report.Section{
		Heading: lastHeading,
		Text:    "The Job's template asks for TRACEPARENT. The program reads it with OpenTelemetry's environment carrier, so its first span is below the create of its Pod.",
		Command: "tracehook trace -- kubectl create -f e2e/demo/job.yaml",
	}
	output, err := s.succeed(ctx, one.Command)
	if err != nil {
		return err
	}
	one.Output = output
	match := traceIDLine.FindStringSubmatch(output)
	if match == nil {
		return fmt.Errorf("no trace id in what `%s` printed", one.Command)
	}
	trace, err := s.wait(ctx, match[1], func(t tracestore.Trace) error { return tree.Match(t, wholePod) })
	if err != nil {
		return fmt.Errorf("the trace of `%s` is not whole: %w", one.Command, err)
	}
	one.Trace = &trace
	s.say("")
	if err := s.draw(trace); err != nil {
		return err
	}
	s.report.Sections = []report.Section{one}

	uid, err := s.cluster.Kubectl(ctx, "get", "pods", "-l", "batch.kubernetes.io/job-name=hello", "-o", "jsonpath={.items[0].metadata.uid}")
	if err != nil {
		return err
	}
	s.heading(besideHeading)
	started, err := node.WaitStart(ctx, s.cluster.JaegerURL, uid)
	if err != nil {
		return err
	}
	s.say("kubelet begins a trace of its own whenever it looks after a Pod. This one started it, found by\nk8s.pod.uid=%s:\n", uid)
	if err := s.draw(started); err != nil {
		return err
	}
	s.report.Sections = append(s.report.Sections, report.Section{
		Heading: besideHeading,
		Text:    "kubelet begins a trace of its own whenever it looks after a Pod, whoever made the Pod. This is the one that started it, found by the Pod's UID.",
		Facts:   []report.Fact{{Name: "k8s.pod.uid", Value: uid}},
		Trace:   &started,
	})
	return nil
}

const besideHeading = "Beside it, what kubelet and containerd did for that Pod"

// explain asks why two Pods are there, of which one cannot start.
func (s *stage) explain(ctx context.Context) error {
	s.heading("A Pod that cannot start")
	if _, err := s.succeed(ctx, "tracehook trace -- kubectl run broken --image=localhost/nothing:1"); err != nil {
		return err
	}
	if _, err := s.cluster.Kubectl(ctx, "wait", "pod/broken", "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImagePull", "--timeout=60s"); err != nil {
		return err
	}
	for _, show := range []struct{ heading, command, want string }{
		{"Why is the Job's Pod there, and what became of it?", "tracehook explain pod -l batch.kubernetes.io/job-name=hello --store jaeger=" + s.cluster.JaegerURL, "Job hello"},
		{"Why does the broken one not start?", "tracehook explain pod/broken --store jaeger=" + s.cluster.JaegerURL, "localhost/nothing:1"},
	} {
		s.heading(show.heading)
		section := report.Section{Heading: show.heading, Command: show.command}
		var err error
		if section.Output, err = s.succeed(ctx, show.command); err != nil {
			return err
		}
		if !strings.Contains(section.Output, show.want) {
			return fmt.Errorf("`%s` does not speak of %s", show.command, show.want)
		}
		s.report.Sections = append(s.report.Sections, section)
	}
	return nil
}
