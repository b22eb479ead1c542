package main

// The certificate. In: the stage. Out: what the terminal shows, and sections of the
// report. Errors: anything that is not as the story says.

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

// showCertificate gives the webhook a certificate without subject alternative name, and a right one again.
func (s *stage) showCertificate(ctx context.Context) error {
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
