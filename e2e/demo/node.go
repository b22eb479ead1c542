//go:build linux

package main

// With a real node. In: a machine on which one can run. Out: the same story in network namespaces of the run (see package
// node), and what only a node shows. Errors: anything that is not as the story says; what the machine lacks is none.

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/node"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// onNode is the argument of a demo that has a node. Package node starts this program again with the same arguments, in
// namespaces where nothing can be asked a second time.
const onNode = "on-node"

// whyNoNode says why there is no node. "": there is one.
func whyNoNode(keep bool) string {
	switch {
	case slices.Contains(os.Args[1:], onNode):
		return ""
	case keep:
		return "with KEEP=1 there is none: it would be in networks of its own, which you could not reach"
	}
	if err := node.Possible(); err != nil {
		return err.Error()
	}
	os.Args = append(os.Args, onNode)
	return ""
}

// playOnNode is the demo in namespaces of its own. It returns an exit code.
func playOnNode(out string) (code int) {
	return node.Main(node.Options{
		Prepare: prepareNode,
		Run: func(dir string) int {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			o := cluster.Options{Dir: filepath.Join(dir, "cluster"), Address: node.HostAddress}
			err := run(ctx, os.Stdout, o, "", func(s *stage) error {
				if err := s.addNode(ctx, dir); err != nil {
					return err
				}
				if err := s.play(ctx); err != nil {
					return err
				}
				return publish(ctx, s, out)
			})
			if err != nil {
				fmt.Fprintln(os.Stderr, "demo:", err)
				return 1
			}
			return 0
		},
	})
}

const workloadArchive = "workload.tar"

// prepareNode builds what only a node needs.
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
	image := node.Image{Root: root, Program: "e2e/workload", Name: imageName, Tag: imageTag}
	return image.Build(filepath.Join(dir, workloadArchive))
}

func (s *stage) addNode(ctx context.Context, dir string) error {
	begin := time.Now()
	if _, err := node.StartAll(ctx, s.cluster, 1, node.NodeOptions{
		Dir: dir, Images: []string{filepath.Join(dir, workloadArchive)}, Pause: image, Tracing: "deploy/nodes",
	}); err != nil {
		return err
	}
	s.say("%-24s Ready after %.1fs: kubelet, containerd, runc", "node", time.Since(begin).Seconds())
	return nil
}

// wholeJob is what the trace must hold: the Job, its Pod, what became of it, and the program in it.
var wholeJob = of(created,
	tree.Want{Service: lifecycle, Name: "run Job", Status: "unset", Descendant: true},
	made(tree.Want{Service: "hello", Name: "work"}, started),
)

const (
	jobHeading    = "A Job, from kubectl to the program in its container"
	besideHeading = "Beside it, what kubelet and containerd did for that Pod"
)

// showOnNode is what takes a node: a program that goes on with the trace, the node's own traces, and an image that is not
// to be had.
func (s *stage) showOnNode(ctx context.Context) error {
	s.heading(jobHeading)
	section, err := s.trace(ctx, jobHeading, "tracehook trace --follow -- kubectl create -f e2e/demo/job.yaml", wholeJob)
	if err != nil {
		return err
	}
	section.Text = "The Job's template asks for TRACEPARENT. The program reads it with OpenTelemetry's environment carrier, so its first span is below the create of its Pod."
	if err := s.show(ctx, section.Trace.ID); err != nil {
		return err
	}
	s.report.Sections = append(s.report.Sections, section)
	s.shot = section.Heading

	pod, err := s.cluster.Kubectl(ctx, "get", "pods", "-l", "batch.kubernetes.io/job-name=hello", "-o", "jsonpath={.items[0].metadata.name} {.items[0].metadata.uid}")
	if err != nil {
		return err
	}
	name, uid, _ := strings.Cut(pod, " ")
	s.heading(besideHeading)
	onItsNode, err := node.WaitStart(ctx, s.cluster.JaegerURL, uid)
	if err != nil {
		return err
	}
	s.say("kubelet begins a trace of its own whenever it looks after a Pod. This one started it, found by\nk8s.pod.uid=%s:", uid)
	if err := s.show(ctx, onItsNode.ID); err != nil {
		return err
	}
	s.report.Sections = append(s.report.Sections, report.Section{
		Heading: besideHeading,
		Text:    "kubelet begins a trace of its own whenever it looks after a Pod, whoever made the Pod. This is the one that started it, found by the Pod's UID.",
		Facts:   []report.Fact{{Name: "k8s.pod.uid", Value: uid}},
		Trace:   &onItsNode,
	})
	if err := s.explain(ctx, "Why is the Job's Pod there, and what became of it?", "pod/"+name, "Job hello"); err != nil {
		return err
	}

	s.heading("A Pod that cannot start")
	if _, err := s.succeed(ctx, "tracehook trace -- kubectl run broken --image=localhost/nothing:1"); err != nil {
		return err
	}
	if _, err := s.cluster.Kubectl(ctx, "wait", "pod/broken", "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImagePull", "--timeout=60s"); err != nil {
		return err
	}
	return s.explain(ctx, "Why does it not start?", "pod/broken", "localhost/nothing:1")
}
