package main

// The first two acts. In: the stage. Out: what the terminal shows, and the sections of the
// report. Errors: anything that is not as the story says; a demo that shows something
// else than it claims must fail.

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// wholeStory is what a trace must hold before it is shown: parenthood from the
// client down to etcd, through the webhook.
var wholeStory = tree.Want{
	Service: "kubectl", Kind: tracestore.KindInternal,
	Children: []tree.Want{{
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
	}},
}

var traceIDLine = regexp.MustCompile(`(?m)^trace id: ([0-9a-f]{32})$`)

// actOne creates three objects and shows each as one trace.
func actOne(ctx context.Context, s *stage) error {
	before, err := s.cluster.Counters(ctx)
	if err != nil {
		return err
	}
	for _, show := range []struct{ heading, command, object string }{
		{"A ConfigMap", "tracehook trace -- kubectl create configmap hello --from-literal=greeting=hello", "configmap/hello"},
		{"A Pod", "tracehook trace -- kubectl create -f e2e/demo/pod.yaml", "pod/hello"},
		{"A Deployment", "tracehook trace -- kubectl create deployment hello --image=registry.k8s.io/pause:3.10", "deployment/hello"},
	} {
		s.heading(show.heading)
		section := report.Section{Heading: show.heading, Command: show.command}
		output, err := s.succeed(ctx, show.command)
		if err != nil {
			return err
		}
		section.Output = output
		match := traceIDLine.FindStringSubmatch(output)
		if match == nil {
			return fmt.Errorf("no trace id in what `%s` printed", show.command)
		}
		trace, err := s.wait(ctx, match[1], func(t tracestore.Trace) error { return tree.Match(t, wholeStory) })
		if err != nil {
			return fmt.Errorf("the trace of `%s` is not whole: %w", show.command, err)
		}
		section.Trace = &trace
		s.say("")
		if err := s.draw(trace); err != nil {
			return err
		}
		stamp, err := s.cluster.Kubectl(ctx, "get", show.object, "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
		if err != nil {
			return err
		}
		if !strings.Contains(stamp, trace.ID) {
			return fmt.Errorf("%s is stamped %q and not with its trace %s", show.object, stamp, trace.ID)
		}
		s.say("\n%s remembers: tracehook.dev/traceparent: %s", show.object, stamp)
		section.Facts = []report.Fact{{Name: "Stored on " + show.object, Value: "tracehook.dev/traceparent: " + stamp}}
		s.report.Sections = append(s.report.Sections, section)
	}
	// The controllers make a ReplicaSet and a Pod of the Deployment; act two must not count those.
	s.heading("The API server's own counters")
	const calls = 5
	if err := s.settle(ctx, before.RequestTotal+calls); err != nil {
		return err
	}
	return s.count(ctx, "A healthy certificate",
		"One call for each object, and for the ReplicaSet and the Pod that controllers made of the Deployment. Nothing else moved.",
		before, cluster.Counters{RequestTotal: calls})
}

// settle waits until the API server has called the webhook this many times.
func (s *stage) settle(ctx context.Context, calls int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		counters, err := s.cluster.Counters(ctx)
		if err != nil {
			return err
		}
		if counters.RequestTotal >= calls {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after 30s the API server has called the webhook %d times, want %d", counters.RequestTotal, calls)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// actTwo gives the webhook a certificate without subject alternative name, and a right one again.
func actTwo(ctx context.Context, s *stage) error {
	s.heading("The same webhook, with a certificate that has no subject alternative name")
	wrong, err := certificates.IssueWithoutSAN(s.certDir)
	if err != nil {
		return err
	}
	if err := s.serve(ctx, wrong); err != nil {
		return err
	}

	// As shipped, a webhook that cannot be called is passed over: nobody notices.
	before, err := s.cluster.Counters(ctx)
	if err != nil {
		return err
	}
	silent := report.Section{
		Heading: "A certificate without SAN, failurePolicy Ignore",
		Text:    "The object is created without its trace context, and nobody is told: only the counters and the audit log know.",
		Command: "kubectl create configmap silent",
	}
	if silent.Output, err = s.succeed(ctx, silent.Command); err != nil {
		return err
	}
	event, err := s.blame(ctx)
	if err != nil {
		return err
	}
	silent.Facts = []report.Fact{event}
	s.say("audit log: %s: %s", event.Name, event.Value)
	s.report.Sections = append(s.report.Sections, silent)

	// With Fail, the user gets to see it.
	if _, err := s.cluster.Kubectl(ctx, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json",
		"-p", `[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Fail"}]`); err != nil {
		return err
	}
	if err := s.cluster.SetCABundle(ctx, wrong); err != nil { // returns when both are in force
		return err
	}
	loud := report.Section{
		Heading: "The same, failurePolicy Fail",
		Command: "kubectl create configmap loud",
		Failed:  true,
	}
	output, code, err := s.command(ctx, loud.Command)
	if err != nil {
		return err
	}
	if code == 0 || !strings.Contains(output, "use SANs instead") {
		return fmt.Errorf("`%s` must fail and say why; it ended with exit code %d", loud.Command, code)
	}
	loud.Output = output
	s.report.Sections = append(s.report.Sections, loud)
	if err := s.count(ctx, "What the certificate did to the counters",
		"Two calls, two refused handshakes, one of them passed over in silence.", before, cluster.Counters{RequestTotal: 2, MissingSAN: 2, FailOpen: 1, Rejections: 1}); err != nil {
		return err
	}

	s.heading("A certificate with names again")
	right, err := certificates.Issue(ctx, s.tracehook, certificates.Service, s.certDir)
	if err != nil {
		return err
	}
	if err := s.serve(ctx, right); err != nil {
		return err
	}
	if err := s.cluster.InstallWebhook(ctx, s.webhook.Port, right); err != nil { // failurePolicy as shipped
		return err
	}
	before, err = s.cluster.Counters(ctx)
	if err != nil {
		return err
	}
	if _, err := s.succeed(ctx, "kubectl create configmap healed"); err != nil {
		return err
	}
	return s.count(ctx, "A certificate with names again", "The webhook is called, and the counter stands still.",
		before, cluster.Counters{RequestTotal: 1})
}

// serve makes the API server trust bundle; its next handshake meets the pair that is in s.certDir now.
func (s *stage) serve(ctx context.Context, bundle []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := certificates.WaitServed(ctx, s.webhook.Port, s.certDir); err != nil {
		return err
	}
	return s.cluster.SetCABundle(ctx, bundle)
}

// blame finds the audit event that names the host whose certificate was refused.
func (s *stage) blame(ctx context.Context) (report.Fact, error) {
	const annotation = "missing-san.invalid-cert.kubernetes.io/" + certificates.ServerName
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	event, err := s.cluster.WaitAuditEvent(ctx, func(e cluster.AuditEvent) bool { return e.Annotations[annotation] != "" })
	if err != nil {
		return report.Fact{}, fmt.Errorf("find the audit event that names the host: %w", err)
	}
	return report.Fact{Name: annotation, Value: event.Annotations[annotation]}, nil
}

// count shows how far the counters have moved since before, which must be as wanted.
func (s *stage) count(ctx context.Context, heading, text string, before, want cluster.Counters) error {
	after, err := s.cluster.Counters(ctx)
	if err != nil {
		return err
	}
	section := report.Section{Heading: heading, Text: text}
	s.say("")
	for _, c := range []struct {
		name          string
		before, after int
	}{
		{"apiserver_webhooks_x509_missing_san_total", before.MissingSAN, after.MissingSAN},
		{"apiserver_admission_webhook_request_total", before.RequestTotal, after.RequestTotal},
		{"apiserver_admission_webhook_fail_open_count", before.FailOpen, after.FailOpen},
	} {
		s.say("%-46s %4d → %-4d %+d", c.name, c.before, c.after, c.after-c.before)
		section.Counters = append(section.Counters, report.Counter{Name: c.name, Before: float64(c.before), After: float64(c.after)})
	}
	s.say("%s", text)
	s.report.Sections = append(s.report.Sections, section)
	if moved := after.Sub(before); moved != want {
		return fmt.Errorf("the counters moved by %+v, want %+v", moved, want)
	}
	return nil
}
