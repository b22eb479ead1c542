package check

// Checks of what is installed. In: a Cluster. Out: verdicts. Errors: part of them.

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tracehook/tracehook/certs"
)

func afterChecks() []Check {
	return []Check{
		{
			Code:   "webhooks",
			Title:  "Is the webhook configuration there, and does it lead to tracehook's Service with a CA bundle?",
			Remedy: "Apply the manifests again, or upgrade the Helm release.",
			phase:  after,
			look: func(ctx context.Context, c *Cluster) verdict {
				webhooks, err := c.webhooks(ctx)
				if err != nil {
					return unread("list mutatingwebhookconfigurations", err)
				}
				_, serviceErr := c.service(ctx)
				return judgeWebhooks(webhooks, apierrors.IsNotFound(serviceErr))
			},
		},
		{
			Code:   "replicas",
			Title:  "Is every replica Ready?",
			Remedy: "kubectl -n NAMESPACE describe pods -l app.kubernetes.io/name=tracehook, and their logs.",
			phase:  after,
			look: func(ctx context.Context, c *Cluster) verdict {
				pods, err := c.replicas(ctx)
				if err != nil {
					namespace, _, _ := c.place(ctx)
					return unread("list pods in namespace "+namespace, err)
				}
				d, _ := c.deployment(ctx) // without it what runs is judged
				return judgeReplicas(d, pods)
			},
		},
		{
			Code:   "certificates",
			Title:  "Does the caBundle of each webhook verify the certificate that each replica serves, for the Service's name?",
			Remedy: "tracehook certs audit names the fault. By files: write caBundle and the Secret anew (certs/MIGRATION.md).",
			phase:  after,
			look:   func(ctx context.Context, c *Cluster) verdict { return c.certificates(ctx) },
		},
		{
			Code:   "authority",
			Title:  "Is somebody there who renews the certificates?",
			Remedy: "Look at the Pods that keep the certificates (tracehook-authority, or tracehook with --certs=managed), and their logs.",
			phase:  after,
			look:   func(ctx context.Context, c *Cluster) verdict { return c.authority(ctx) },
		},
		{
			Code:   "network-policy",
			Title:  "Do NetworkPolicies let API servers in, and spans out?",
			Remedy: "An API server calls from a node's address or from outside: no selector takes it. Allow the port from everywhere, or from an ipBlock, as deploy/base/networkpolicy.yaml does.",
			phase:  after,
			look: func(ctx context.Context, c *Cluster) verdict {
				policies, err := c.policies(ctx)
				if err != nil {
					return unread("list networkpolicies", err)
				}
				pods, err := c.replicas(ctx)
				if err != nil {
					return unread("list pods", err)
				}
				if len(pods) == 0 {
					return skip("there is no Pod")
				}
				return judgePolicies(policies, pods[0], otlpPort(container(pods[0].Spec)))
			},
		},
		{
			Code:   "stamped",
			Title:  "Does a dry-run create reach each webhook, through each API server, and come back stamped?",
			Remedy: "Where replicas and certificates are ok, the API server cannot reach the Pods' port: a firewall, a NetworkPolicy, or a Pod network that the control plane is not on (docs/managed.md). Else mend those first.",
			phase:  after,
			look: func(ctx context.Context, c *Cluster) verdict {
				tries, err := c.tries(ctx)
				if err != nil {
					return unread("list mutatingwebhookconfigurations", err)
				}
				return judgeTries(tries)
			},
		},
		{
			Code:   "continued",
			Title:  "Whose traces go on to the stamp: yours, or the API server's own?",
			Remedy: "",
			phase:  after,
			look: func(ctx context.Context, c *Cluster) verdict {
				t := c.tracing(ctx)
				return judgeContinued(c.traced(ctx), t)
			},
		},
		{
			Code:   "spans",
			Title:  "Do spans arrive at the Collector?",
			Remedy: "Look at OTEL_EXPORTER_OTLP_ENDPOINT of the Deployment, at the Collector there, and at the way to it (NetworkPolicy, port).",
			phase:  after,
			look:   func(ctx context.Context, c *Cluster) verdict { return c.spans(ctx) },
		},
	}
}

// judgeWebhooks looks at what is configured, not at whether it works.
func judgeWebhooks(webhooks []webhook, noService bool) verdict {
	if !slices.ContainsFunc(webhooks, func(w webhook) bool { return w.Name == traceWebhook }) {
		return fail("no MutatingWebhookConfiguration has the webhook %s: nothing is stamped", traceWebhook)
	}
	var names, unbundled []string
	for _, w := range webhooks {
		names = append(names, w.Name)
		if len(w.ClientConfig.CABundle) == 0 {
			unbundled = append(unbundled, w.Name)
		}
	}
	switch {
	case noService:
		return fail("the Service that %s leads to is not there", webhooks[0].configuration)
	case len(unbundled) > 0:
		return fail("no caBundle yet: %s", strings.Join(unbundled, ", ")).
			do("Wait for the authority or cert-manager, and look at its log. By files: write it (`tracehook certs issue` prints the command).")
	}
	return ok("%s", strings.Join(names, ", "))
}

func judgeReplicas(d *appsv1.Deployment, pods []corev1.Pod) verdict {
	want := len(pods)
	if d != nil && d.Spec.Replicas != nil {
		want = int(*d.Spec.Replicas)
	}
	var unready, restarted []string
	for _, pod := range pods {
		if !ready(pod) {
			unready = append(unready, pod.Name+" ("+whyUnready(pod)+")")
		}
		for _, s := range pod.Status.ContainerStatuses {
			if last := s.LastTerminationState.Terminated; last != nil && s.RestartCount > 0 {
				restarted = append(restarted, fmt.Sprintf("%s restarted %d times, last after %s", pod.Name, s.RestartCount, last.Reason))
			}
		}
	}
	switch {
	case d == nil && len(pods) == 0:
		return skip("there is no Deployment and no Pod of it: tracehook runs outside the cluster, or elsewhere")
	case want == 0:
		return fail("the Deployment wants no replica").do("Scale it: two are as shipped.")
	case len(unready) > 0:
		return fail("%d of %d are not Ready: %s", len(unready), want, strings.Join(unready, ", "))
	case len(pods) < want:
		return fail("there are %d Pods, and the Deployment wants %d", len(pods), want).
			do("kubectl -n NAMESPACE describe replicasets: quota, pod security or another webhook may refuse the Pods.")
	case d != nil && d.Status.ObservedGeneration == d.Generation && d.Status.UpdatedReplicas < int32(want):
		return fail("%d of %d replicas are of the newest roll-out", d.Status.UpdatedReplicas, want).do("Wait for the roll-out: kubectl rollout status.")
	case len(restarted) > 0:
		return warn("%d Ready; %s", len(pods), strings.Join(restarted, ", ")).do("Look at the log of the run before: kubectl logs --previous.")
	case want == 1:
		return warn("1 Ready: objects go unstamped whenever it is replaced or its node is drained").do("Run two, as shipped.")
	}
	return ok("%d of %d are Ready", len(pods), want)
}

// whyUnready is the most telling of what the kubelet says.
func whyUnready(pod corev1.Pod) string {
	for _, s := range append(slices.Clone(pod.Status.InitContainerStatuses), pod.Status.ContainerStatuses...) {
		if w := s.State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" {
			return w.Reason
		}
		if t := s.State.Terminated; t != nil {
			return t.Reason
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Status == corev1.ConditionFalse && condition.Reason != "" && condition.Type == corev1.PodScheduled {
			return condition.Reason
		}
	}
	if pod.Status.Phase == corev1.PodRunning {
		return "runs, and its readiness probe fails"
	}
	return string(pod.Status.Phase)
}

// shown is what an endpoint served to a handshake.
type shown struct {
	endpoint
	chain []*x509.Certificate
	err   error
}

// certificates shakes hands with every endpoint.
func (c *Cluster) certificates(ctx context.Context) verdict {
	webhooks, err := c.webhooks(ctx)
	if err != nil {
		return unread("list mutatingwebhookconfigurations", err)
	}
	if len(webhooks) == 0 {
		return skip("there is no webhook")
	}
	endpoints, err := c.endpoints(ctx)
	if err != nil {
		return unread("list endpoints of the Service", err)
	}
	namespace, name, _ := c.place(ctx)
	all := make([]shown, len(endpoints))
	var group errgroup.Group
	group.SetLimit(16)
	for i, e := range endpoints {
		group.Go(func() error {
			all[i].endpoint = e
			raw, err := served(ctx, e.address, certs.ServerName(namespace, name))
			for _, der := range raw {
				certificate, parseErr := x509.ParseCertificate(der)
				if err = parseErr; err != nil {
					break
				}
				all[i].chain = append(all[i].chain, certificate)
			}
			all[i].err = err
			return nil
		})
	}
	_ = group.Wait() // every error is in all
	return judgeCertificates(webhooks, all, certs.ServerName(namespace, name), c.Now(), c.InCluster)
}

func judgeCertificates(webhooks []webhook, all []shown, serverName string, now time.Time, inCluster bool) verdict {
	if len(all) == 0 {
		return fail("the Service of %s has no endpoint", serverName).do("See the line on replicas; the Service's selector must take the Pods.")
	}
	var failures, warnings, unseen []string
	var soonest time.Time
	remedy, fine := "", 0
	for _, s := range all {
		if s.err != nil && len(s.chain) == 0 {
			switch {
			case errors.Is(s.err, errDial) && (!inCluster || !s.ready):
				unseen = append(unseen, s.name)
			default:
				failures = append(failures, fmt.Sprintf("%s: %v", s.name, s.err))
			}
			continue
		}
		bad := false
		for _, w := range webhooks {
			findings := certs.Verify(s.chain, certs.Trust{Bundle: w.ClientConfig.CABundle}, serverName, now)
			for _, f := range findings {
				line := fmt.Sprintf("%s and %s: %s", s.name, w.Name, f.Message)
				switch {
				case f.Breaks:
					failures, bad = append(failures, line), true
					remedy = f.Remedy
				case f.Severity >= certs.Warning:
					warnings = append(warnings, line)
					if remedy == "" {
						remedy = f.Remedy
					}
				}
			}
		}
		if !bad {
			fine++
		}
		if until := s.chain[0].NotAfter; soonest.IsZero() || until.Before(soonest) {
			soonest = until
		}
	}
	switch {
	case len(failures) > 0 && remedy == "":
		return fail("%s", strings.Join(failures, "; ")).do("Look at what listens there: kubectl get pods -o wide.")
	case len(failures) > 0:
		return fail("%s", strings.Join(failures, "; ")).do(sentence(remedy) + " `tracehook certs audit` tells more.")
	case len(warnings) > 0:
		return warn("%s", strings.Join(warnings, "; ")).do(sentence(remedy))
	case fine == 0:
		return skip("no endpoint can be reached from here (%s): run the check in the cluster (deploy/components/check)", strings.Join(unseen, ", "))
	}
	seen := fmt.Sprintf("%d of %d endpoints are trusted by %d webhooks, until %s", fine, len(all), len(webhooks), soonest.UTC().Format(time.DateTime))
	if len(unseen) > 0 {
		seen += "; not reached from here: " + strings.Join(unseen, ", ")
	}
	return ok("%s", seen)
}

// sentence begins with a capital letter and ends with a full stop.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + strings.TrimSuffix(text[1:], ".") + "."
}

// authority looks at the Lease of who keeps the certificates, where somebody of ours does.
func (c *Cluster) authority(ctx context.Context) verdict {
	serving := c.serving(ctx)
	if serving == nil {
		return skip("the Deployment is not to be seen, so neither is who keeps the certificates")
	}
	mode, _ := flag(serving, "certs")
	if mode != "managed" && mode != "secret" {
		return skip("certificates come from files: whoever puts them there renews them")
	}
	namespace, _, _ := c.place(ctx)
	lease, err := c.clients.CoordinationV1().Leases(namespace).Get(ctx, certs.DefaultLeaseName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fail("there is no Lease %s/%s: nobody has ever led", namespace, certs.DefaultLeaseName)
	}
	if err != nil {
		return unread(fmt.Sprintf("get Lease %s/%s", namespace, certs.DefaultLeaseName), err)
	}
	holder, renewed := "", time.Time{}
	if lease.Spec.HolderIdentity != nil {
		holder = *lease.Spec.HolderIdentity
	}
	if lease.Spec.RenewTime != nil {
		renewed = lease.Spec.RenewTime.Time
	}
	return judgeLease(holder, renewed, c.Now())
}

// leaseOver is longer than a Lease lasts, as clocks differ.
const leaseOver = time.Minute

func judgeLease(holder string, renewed, now time.Time) verdict {
	switch {
	case holder == "":
		return fail("nobody holds the Lease %s", certs.DefaultLeaseName)
	case now.Sub(renewed) > leaseOver:
		return fail("%s held the Lease %s and was last seen %s", holder, certs.DefaultLeaseName, renewed.UTC().Format(time.RFC3339))
	}
	return ok("%s leads", holder)
}

// otlpPort is the port that spans go to. 0: it is not known.
func otlpPort(container *corev1.Container) int32 {
	if container == nil {
		return 0
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"} {
		for _, v := range container.Env {
			if v.Name != name {
				continue
			}
			// $(POD_NAMESPACE) is no part of a host.
			u, err := url.Parse(strings.NewReplacer("$(", "", ")", "").Replace(v.Value))
			if err != nil {
				continue
			}
			if port, err := strconv.ParseInt(u.Port(), 10, 32); err == nil {
				return int32(port)
			}
		}
	}
	return 0
}

// judgePolicies says what the NetworkPolicies that take a Pod let through. Pods on the host's network have none.
func judgePolicies(policies []networkingv1.NetworkPolicy, pod corev1.Pod, otlp int32) verdict {
	if pod.Spec.HostNetwork {
		return ok("the Pods are on the host's network: no NetworkPolicy applies")
	}
	webhook := portNamed(container(pod.Spec), "webhook")
	var taking []string
	var in, out, limitedIn, limitedOut bool
	var blocks []string
	for _, p := range policies {
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil || !selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		taking = append(taking, p.Name)
		for _, kind := range p.Spec.PolicyTypes {
			limitedIn = limitedIn || kind == networkingv1.PolicyTypeIngress
			limitedOut = limitedOut || kind == networkingv1.PolicyTypeEgress
		}
		for _, rule := range p.Spec.Ingress {
			if !takesPort(rule.Ports, webhook, "webhook") {
				continue
			}
			in = in || len(rule.From) == 0
			for _, peer := range rule.From {
				if peer.IPBlock != nil {
					blocks = append(blocks, peer.IPBlock.CIDR)
				}
			}
		}
		for _, rule := range p.Spec.Egress {
			out = out || takesPort(rule.Ports, otlp, "")
		}
	}
	switch {
	case webhook == 0:
		return skip("the Pods name no port webhook")
	case limitedIn && !in && len(blocks) == 0:
		return fail("%s: nobody may call port %d from outside the Pods' network, as API servers do", strings.Join(taking, ", "), webhook)
	case limitedOut && otlp != 0 && !out:
		return fail("%s: no egress to port %d, where spans go", strings.Join(taking, ", "), otlp).do("Add that port to the egress of the NetworkPolicy.")
	case limitedIn && !in:
		return ok("API servers must be in %s to call port %d", strings.Join(blocks, ", "), webhook)
	case len(taking) == 0:
		return ok("none takes the Pods; API servers must reach their port %d", webhook)
	}
	return ok("%s: port %d is open to API servers", strings.Join(taking, ", "), webhook)
}

func takesPort(ports []networkingv1.NetworkPolicyPort, port int32, name string) bool {
	if len(ports) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		switch {
		case p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP:
			return false
		case p.Port == nil:
			return true
		case p.Port.StrVal != "":
			return p.Port.StrVal == name
		case p.EndPort != nil:
			return port >= p.Port.IntVal && port <= *p.EndPort
		}
		return p.Port.IntVal == port
	})
}

// judgeTries says of each webhook what its dry runs showed.
func judgeTries(tries []tried) verdict {
	if len(tries) == 0 {
		return skip("there is no webhook")
	}
	servers := map[string]bool{}
	for _, t := range tries {
		servers[t.server] = true
	}
	var failures, warnings, fine, notes []string
	remedy := ""
	for _, t := range tries {
		at := ""
		if len(servers) > 1 {
			at = " through " + t.server
		}
		switch t.outcome {
		case stamped, unsampled:
			line := t.webhook + " (" + t.where + at
			if t.outcome == unsampled {
				line += "; a request that is not traced stores nothing"
			}
			if fine = append(fine, line+")"); t.labelled {
				warnings = append(warnings, t.webhook+": its objectSelector takes only objects with labels")
				remedy = "Leave objectSelector out, unless you mean it so."
			}
		case notCalled:
			failures = append(failures, fmt.Sprintf("%s: %s comes back without a stamp%s", t.webhook, t.where, at))
		case callFailed:
			failures = append(failures, fmt.Sprintf("%s%s: %v", t.webhook, at, t.err))
		case noNamespace:
			if t.webhook == traceWebhook {
				failures = append(failures, t.webhook+": its namespaceSelector takes no namespace")
				remedy = "Label a namespace as namespaceSelector wants it, or change the selector (deploy/README.md, What you may want to change)."
				continue
			}
			notes = append(notes, t.webhook+": no namespace asks for it")
		case noSample:
			notes = append(notes, t.webhook+": a dry run needs an object of your kinds")
		case forbidden:
			notes = append(notes, fmt.Sprintf("%s: may not create %s, not even as a dry run", t.webhook, t.where))
		case refused:
			warnings = append(warnings, fmt.Sprintf("%s: the dry run of %s was refused: %v", t.webhook, t.where, t.err))
			remedy = "Name a namespace whose policies let a Pod of the standard `restricted` in: --try-in."
		case broken:
			failures = append(failures, fmt.Sprintf("%s%s: %v", t.webhook, at, t.err))
		}
	}
	switch {
	case len(failures) > 0:
		v := fail("%s", strings.Join(slices.Compact(failures), "; "))
		if len(failures) == strings.Count(v.message, "takes no namespace") {
			return v.do(remedy)
		}
		return v
	case len(warnings) > 0:
		return warn("%s", strings.Join(slices.Compact(append(warnings, fine...)), "; ")).do(remedy)
	case len(fine) == 0:
		return skip("%s", strings.Join(slices.Compact(notes), "; "))
	}
	message := strings.Join(append(fine, slices.Compact(notes)...), "; ")
	if len(servers) > 1 {
		message = fmt.Sprintf("through %d API servers: %s", len(servers), message)
	}
	return ok("%s", message)
}

// judgeContinued never fails: each answer is a way in which tracehook is used.
func judgeContinued(t trial, known tracing) verdict {
	traces := known.stored || known.flag != nil && *known.flag
	switch {
	case t.sent.IsValid() && !t.stamp.IsValid():
		return ok("your trace context does not reach the stamp: the API server traces, and samples this request by its own rate (or nothing is stamped: see that line)")
	case !t.sent.IsValid():
		return skip("no dry run could be made")
	case t.trust == "link", t.trust == "none":
		return ok("stamps are in tracehook's own traces: serve runs with --trust=%s", t.trust)
	case !t.continued():
		return ok("the API server traces, and does not continue your traces: stamps lead to its own, which link to yours. It continues those of system:masters and system:monitoring (Kubernetes 1.33 and later)")
	case traces:
		return ok("the API server continues your traces: stamps are in them")
	case !t.privileged:
		return ok("everybody's: the API server hands any trace context on, and `tracehook trace` of any user reaches down to the Pods")
	}
	return ok("yours: stamps are in the trace that you send. Either the API server continues it, as for all in system:masters and system:monitoring, or it does not trace and hands everybody's on")
}

// inStore is what arrived in the trace store.
type inStore struct {
	asked, ours, apiServer bool
	err                    error
}

// storedSpans waits until the stamp's span has arrived.
func (c *Cluster) storedSpans(ctx context.Context, t trial) inStore {
	found, _ := read(c, "stored", func() (found inStore, _ error) {
		if c.Store == nil || !t.stamp.IsValid() || !t.stamp.IsSampled() {
			return found, nil
		}
		found.asked = true
		ctx, cancel := context.WithTimeout(ctx, c.SpansWithin)
		defer cancel()
		for {
			got, err := c.Store.Trace(ctx, t.stamp.TraceID().String())
			for _, span := range got.Spans {
				found.ours = found.ours || span.ID == t.stamp.SpanID().String()
				found.apiServer = found.apiServer || span.Service == "apiserver"
			}
			if found.err = err; found.ours {
				return found, nil
			}
			select {
			case <-ctx.Done():
				return found, nil
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	return found
}

// exported are a replica's counters of spans.
type exported struct {
	name         string
	done, failed float64
	err          error
}

// spans asks the trace store, else the replicas' own counters.
func (c *Cluster) spans(ctx context.Context) verdict {
	serving := c.serving(ctx)
	if off := exporterOff(serving); off != "" {
		return skip("spans are switched off: %s", off)
	}
	before := c.counters(ctx)
	if c.Store == nil && !slices.ContainsFunc(before, func(e exported) bool { return e.err == nil }) {
		v, _ := judgeSpans(before, before, false)
		return v
	}
	t := c.newTrial(ctx)
	if c.Store != nil && t.stamp.IsSampled() {
		// The one that `continued` waits for as well, if it made one.
		if stored := c.storedSpans(ctx, c.traced(ctx)); stored.ours {
			return ok("the span of a dry run is in the trace store")
		} else if stored.asked {
			return fail("the span of a dry run is not in the trace store after %s (%v)", c.SpansWithin, stored.err)
		}
	}
	deadline := time.NewTimer(c.SpansWithin)
	defer deadline.Stop()
	for {
		now := c.counters(ctx)
		v, settled := judgeSpans(before, now, t.stamp.IsSampled())
		if settled {
			return v
		}
		select {
		case <-ctx.Done():
			return v
		case <-deadline.C:
			return v
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// exporterOff says which variable switches spans off.
func exporterOff(container *corev1.Container) string {
	if container == nil {
		return ""
	}
	for _, v := range container.Env {
		if v.Name == "OTEL_TRACES_EXPORTER" && v.Value == "none" || v.Name == "OTEL_SDK_DISABLED" && strings.EqualFold(v.Value, "true") {
			return v.Name + "=" + v.Value
		}
	}
	return ""
}

// judgeSpans compares the replicas' counters before and after a dry run. sampled: it made a span. settled: waiting changes nothing.
func judgeSpans(before, now []exported, sampled bool) (v verdict, settled bool) {
	if len(now) == 0 {
		return skip("there is no replica whose counters could be read; --store asks the trace store"), true
	}
	was := map[string]exported{}
	for _, e := range before {
		was[e.name] = e
	}
	var failing, unread []string
	done, total := 0.0, 0.0
	for _, e := range now {
		if e.err != nil {
			unread = append(unread, fmt.Sprintf("%s: %v", e.name, e.err))
			continue
		}
		total += e.done
		if b, known := was[e.name]; known && b.err == nil {
			done += e.done - b.done
			if e.failed > b.failed {
				failing = append(failing, fmt.Sprintf("%s lost %.0f spans", e.name, e.failed-b.failed))
			}
		}
	}
	switch {
	case len(unread) == len(now):
		return skip("may not read the replicas' counters from here (%s): --store asks the trace store, and deploy/components/check runs in the cluster", strings.Join(unread, "; ")), true
	case len(failing) > 0:
		return fail("spans do not reach the Collector: %s", strings.Join(failing, ", ")), true
	case done > 0:
		return ok("%.0f spans were exported since the dry run", done), true
	case !sampled && total > 0:
		return ok("%.0f spans were exported so far; the dry run was not traced", total), true
	case !sampled:
		return skip("the dry run was not traced, and nothing was exported so far"), true
	}
	return fail("the span of a dry run was not exported in time"), false
}

// counters are those of each replica.
func (c *Cluster) counters(ctx context.Context) []exported {
	pods, err := c.replicas(ctx)
	if err != nil {
		return nil
	}
	all := make([]exported, len(pods))
	var group errgroup.Group
	for i, pod := range pods {
		group.Go(func() error {
			all[i] = exported{name: pod.Name}
			all[i].done, all[i].failed, all[i].err = c.counter(ctx, pod)
			return nil
		})
	}
	_ = group.Wait() // every error is in all
	return all
}

func (c *Cluster) counter(ctx context.Context, pod corev1.Pod) (done, failed float64, err error) {
	container := container(pod.Spec)
	port := portNamed(container, "metrics")
	if port == 0 || pod.Status.PodIP == "" {
		return 0, 0, errors.New("it has no address or no port for metrics")
	}
	transport := &http.Transport{DisableKeepAlives: true} // a token goes to this address: to no proxy,
	client := &http.Client{Timeout: 5 * time.Second, Transport: transport}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // and not where that leads
	scheme := "http"
	if secure, _ := flag(container, "metrics-secure"); secure == "true" {
		scheme = "https"
		bundle, err := c.bundle(ctx)
		if err != nil {
			return 0, 0, err
		}
		namespace, name, _ := c.place(ctx)
		transport.TLSClientConfig = &tls.Config{RootCAs: bundle, ServerName: certs.ServerName(namespace, name)}
	}
	token := ""
	if auth, _ := flag(container, "metrics-auth"); auth == "true" {
		if token = c.ownToken(ctx); token == "" {
			return 0, 0, errors.New("its metrics are for ServiceAccounts of its namespace")
		}
	}
	at := fmt.Sprintf("%s://%s/metrics", scheme, net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(int(port))))
	page, code, err := httpGet(ctx, client, at, token)
	switch {
	case err != nil:
		return 0, 0, err
	case code != http.StatusOK:
		return 0, 0, fmt.Errorf("its metrics answer %d %s", code, http.StatusText(code))
	}
	return readExported(page)
}

// readExported adds up what became of spans: in the queue, and in the export.
func readExported(page []byte) (done, failed float64, err error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		return 0, 0, fmt.Errorf("read its metrics: %w", err)
	}
	for _, name := range []string{"otel_sdk_exporter_span_exported_total", "otel_sdk_processor_span_processed_total"} {
		for _, m := range families[name].GetMetric() {
			errorType := ""
			for _, label := range m.GetLabel() {
				if label.GetName() == "error_type" {
					errorType = label.GetValue()
				}
			}
			switch {
			case errorType != "":
				failed += m.GetCounter().GetValue()
			case strings.Contains(name, "exporter"):
				done += m.GetCounter().GetValue()
			}
		}
	}
	return done, failed, nil
}

// bundle is what the API server verifies replicas with.
func (c *Cluster) bundle(ctx context.Context) (*x509.CertPool, error) {
	webhooks, err := c.webhooks(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, w := range webhooks {
		pool.AppendCertsFromPEM(w.ClientConfig.CABundle)
	}
	return pool, nil
}

// ownToken is that of a ServiceAccount of tracehook's namespace. Anybody else's may do more, and no Pod gets to see it. The API server
// names who a request is for: that is the token's owner only where there are no other credentials and nobody is impersonated.
func (c *Cluster) ownToken(ctx context.Context) string {
	o := c.Config
	if o.Impersonate.UserName != "" || o.Username != "" || o.CertFile != "" || len(o.CertData) > 0 || o.ExecProvider != nil || o.AuthProvider != nil {
		return ""
	}
	namespace, _, _ := c.place(ctx)
	if user, err := c.user(ctx); err != nil || !strings.HasPrefix(user.Username, "system:serviceaccount:"+namespace+":") {
		return ""
	}
	if o.BearerTokenFile == "" {
		return o.BearerToken
	}
	content, _ := os.ReadFile(o.BearerTokenFile) // client-go prefers it to BearerToken, which may be another's
	return strings.TrimSpace(string(content))
}
