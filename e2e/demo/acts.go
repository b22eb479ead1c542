package main

// What is shown on every machine. In: the stage. Out: what the terminal shows, and sections
// of the report. Errors: anything that is not as the story says; a demo that shows something
// else than it claims must fail.

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// created is what every trace must hold: parenthood from the client down to etcd, through
// the webhook.
var created = tree.Want{
	Service: "apiserver", Name: "Create", Descendant: true,
	Children: []tree.Want{
		{Service: "apiserver", Name: "Call mutating webhook", Children: []tree.Want{
			{Service: "apiserver", Name: "HTTP POST", Children: []tree.Want{
				{Service: "tracehook", Name: "POST /mutate", Children: []tree.Want{
					{Service: "tracehook", Name: "mutate trace-context"},
				}},
			}},
		}},
		{Service: "apiserver", Name: "Create etcd3", Children: []tree.Want{
			{Service: "etcd", Kind: tracestore.KindServer, Descendant: true},
		}},
	},
}

// of is a whole trace of kubectl.
func of(children ...tree.Want) tree.Want {
	return tree.Want{Service: "kubectl", Kind: tracestore.KindInternal, Children: children}
}

// replicas of the Deployment.
const replicas = 2

// play tells the story in order.
func (s *stage) play(ctx context.Context) error {
	before, err := s.cluster.Counters(ctx)
	if err != nil {
		return err
	}
	if err := s.showConfigMap(ctx); err != nil {
		return err
	}
	if err := s.showDeployment(ctx); err != nil {
		return err
	}
	const calls = 1 + 1 + 1 + replicas // ConfigMap, Deployment, ReplicaSet, Pods
	s.heading("The API server's own counters")
	if err := s.settle(ctx, before.RequestTotal+calls); err != nil {
		return err
	}
	if err := s.count(ctx, "A healthy certificate",
		"One call for each object, and for the ReplicaSet and the Pods that controllers made of the Deployment. Nothing else moved.",
		before, cluster.Counters{RequestTotal: calls}); err != nil {
		return err
	}
	if s.noNode == "" {
		if err := s.showOnNode(ctx); err != nil {
			return err
		}
	}
	return s.showCertificate(ctx)
}

func (s *stage) showConfigMap(ctx context.Context) error {
	const heading, object = "A ConfigMap", "configmap/hello"
	s.heading(heading)
	section, err := s.trace(ctx, heading, "tracehook trace -o tree -- kubectl create configmap hello --from-literal=greeting=hello", of(created))
	if err != nil {
		return err
	}
	return s.remembers(ctx, section, object)
}

// remembers shows the stamp on an object.
func (s *stage) remembers(ctx context.Context, section report.Section, object string) error {
	stamp, err := s.cluster.Kubectl(ctx, "get", object, "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
	if err != nil {
		return err
	}
	if !strings.Contains(stamp, section.Trace.ID) {
		return fmt.Errorf("%s is stamped %q and not with its trace %s", object, stamp, section.Trace.ID)
	}
	s.say("\n%s remembers: tracehook.dev/traceparent: %s", object, stamp)
	section.Facts = []report.Fact{{Name: "Stored on " + object, Value: "tracehook.dev/traceparent: " + stamp}}
	s.report.Sections = append(s.report.Sections, section)
	return nil
}

// made is the create of a Pod by a controller, and what became of the Pod.
func made(became ...tree.Want) tree.Want {
	return tree.Want{Service: "tracehook", Name: "create Pod", Descendant: true, Children: became}
}

var (
	rolledOut = tree.Want{Service: lifecycle, Name: "roll out", Status: "unset", Descendant: true}
	started   = tree.Want{Service: lifecycle, Name: "start container"}
	noPlace   = tree.Want{Service: lifecycle, Name: "schedule", Status: "error"}
)

func (s *stage) showDeployment(ctx context.Context) error {
	heading, command := "A Deployment, and its roll-out until its Pods are ready", "tracehook trace --follow --"
	want, wait := of(created, rolledOut, made(started), made(started)), "--for=condition=Ready"
	if s.noNode != "" {
		heading, command = "A Deployment, and its Pods", "tracehook trace --"
		want, wait = of(created, made(noPlace), made(noPlace)), "--for=condition=PodScheduled=false"
	}
	s.heading(heading)
	section, err := s.trace(ctx, heading, fmt.Sprintf("%s kubectl create deployment web --image=%s --replicas=%d", command, image, replicas), want)
	if err != nil {
		return err
	}
	section.Text = "What controllers make of the Deployment is in its trace: the ReplicaSet and the Pods. `tracehook lifecycle` adds what became of them."
	if err := s.show(ctx, section.Trace.ID); err != nil {
		return err
	}
	s.shot = heading
	if err := s.remembers(ctx, section, "deployment/web"); err != nil {
		return err
	}
	if _, err := s.cluster.Kubectl(ctx, "wait", "pod", "-l", "app=web", wait, "--timeout=60s"); err != nil {
		return err
	}
	pod, err := s.cluster.Kubectl(ctx, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return err
	}
	if s.noNode == "" {
		return s.explain(ctx, "Why is its Pod there, and what became of it?", "pod/"+pod, "Deployment web")
	}
	if err := s.explain(ctx, "Why is its Pod there, and why does it not start?", "pod/"+pod, "no nodes available"); err != nil {
		return err
	}
	s.say("\nNot shown here: ready Pods, a Job down to its program and an image that cannot be pulled take a real node, and %s.", s.noNode)
	return nil
}

// explain shows what `tracehook explain` says of an object, which must speak of want.
func (s *stage) explain(ctx context.Context, heading, object, want string) (err error) {
	s.heading(heading)
	section := report.Section{Heading: heading, Command: "tracehook explain " + object}
	if section.Output, err = s.succeed(ctx, section.Command); err != nil {
		return err
	}
	if !strings.Contains(section.Output, want) {
		return fmt.Errorf("`%s` does not speak of %q", section.Command, want)
	}
	s.report.Sections = append(s.report.Sections, section)
	return nil
}

var (
	traceIDLine = regexp.MustCompile(`(?m)^trace id: ([0-9a-f]{32})$`)
	// The page has the drawing itself, and no link to a store that is gone when it is read.
	drawing = regexp.MustCompile(`(?ms)^trace [0-9a-f]{32} · .*?^(tracehook: |trace id: )`)
	link    = regexp.MustCompile(`(?m)^trace link: .*\n`)
)

// trace runs a traced command and waits until its trace is as wanted.
func (s *stage) trace(ctx context.Context, heading, command string, want tree.Want) (report.Section, error) {
	section := report.Section{Heading: heading, Command: command}
	output, err := s.succeed(ctx, command)
	if err != nil {
		return section, err
	}
	match := traceIDLine.FindStringSubmatch(output)
	if match == nil {
		return section, fmt.Errorf("no trace id in what `%s` printed", command)
	}
	section.Output = link.ReplaceAllString(drawing.ReplaceAllString(output, "$1"), "")
	trace, err := s.wait(ctx, match[1], func(t tracestore.Trace) error { return tree.Match(t, want) })
	if err != nil {
		return section, fmt.Errorf("the trace of `%s` is not whole: %w", command, err)
	}
	section.Trace = &trace
	return section, nil
}

// show draws a trace that is whole.
func (s *stage) show(ctx context.Context, id string) error {
	_, err := s.succeed(ctx, "tracehook show "+id)
	return err
}
