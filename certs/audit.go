package certs

// The audit. In: clients of a cluster. Out: every webhook, conversion webhook and APIService, each
// endpoint of it as the API server would dial it, and all findings. Errors: only when
// nothing could be listed; what else fails is in the report, beside what did not.

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
)

// What the audit finds on the way to a certificate.
const (
	ServiceMissing    Code = "service-missing"
	ServiceUnroutable Code = "service-unroutable" // of a type or without the port that is asked for
	ServiceUnknown    Code = "service-unknown"    // it could not be read
	NoEndpoints       Code = "no-endpoints"
	InvalidURL        Code = "invalid-url"
	Unreachable       Code = "unreachable"
	HandshakeFailed   Code = "handshake-failed"
)

const (
	defaultPort     = 443
	pageSize        = 200
	defaultParallel = 32
)

// AuditOptions say what to audit and with what.
type AuditOptions struct {
	Clients kubernetes.Interface // webhook configurations, Services, EndpointSlices
	Dynamic dynamic.Interface    // CustomResourceDefinitions, APIServices
	// Now is what certificates are judged by. Required.
	Now time.Time
	// SystemRoots stand for those of the API server, for an empty caBundle. Nil: none.
	SystemRoots *x509.CertPool
	// Dial makes connections. Nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// DialTimeout is for one endpoint, connection and handshake. Zero: 5 s.
	DialTimeout time.Duration
	// Parallel is how many things are asked for or dialled at a time. Zero: 32.
	Parallel int
	// Progress is called after each handshake, from one goroutine at a time. Nil: silence.
	Progress func(done, total int)
}

// Where says which thing to change about a finding of this target.
func (t Target) Where(code Code) string {
	place := t.URL
	if t.service != "" {
		place = "Service " + t.Service
	}
	served := "the certificate that " + place + " serves"
	switch code {
	case Unreachable, HandshakeFailed:
		return "what listens behind " + place
	case BundleEmpty, BundleNotPEM, BundleUnreadable, BundleExpired, Untrusted, IssuerExpired:
		return fmt.Sprintf("%s of %s/%s", t.Field, t.Kind, t.Name)
	case VerificationOff:
		return fmt.Sprintf("spec.insecureSkipTLSVerify and %s of %s/%s", t.Field, t.Kind, t.Name)
	case LeafPinned:
		return fmt.Sprintf("%s, then %s of %s/%s", served, t.Field, t.Kind, t.Name)
	case ServiceMissing, ServiceUnroutable, ServiceUnknown, NoEndpoints:
		return place
	case InvalidURL:
		return fmt.Sprintf("%s of %s/%s", strings.TrimSuffix(t.Field, "caBundle")+"url", t.Kind, t.Name)
	default:
		return served
	}
}

// AuditReport is what an audit found.
type AuditReport struct {
	Time    time.Time      `json:"time"`
	Worst   Severity       `json:"worst"`
	Targets []TargetReport `json:"targets"`
	// Counters are of the one API server that answered, since its start.
	Counters []CounterValue `json:"counters,omitempty"`
	// Blamed are hosts that the audit log names.
	Blamed []Blame `json:"blamed,omitempty"`
	// Problems are what could not be looked at.
	Problems []string `json:"problems,omitempty"`
	// Incomplete: a kind of target could not be listed, or time was over before all was dialled.
	Incomplete bool `json:"incomplete"`
}

// TargetReport is a target with what was found.
type TargetReport struct {
	Target
	Worst Severity `json:"worst"`
	// Findings concern the target as a whole: no Service, say.
	Findings  []Finding        `json:"findings,omitempty"`
	Endpoints []EndpointReport `json:"endpoints,omitempty"`

	aliases []string // further hosts by which the API server may know it
}

// EndpointReport is one endpoint of a target.
type EndpointReport struct {
	Address string `json:"address"` // host:port as dialled
	// NotReady: the API server does not call it now.
	NotReady bool   `json:"notReady,omitempty"`
	Subject  string `json:"subject,omitempty"`
	Issuer   string `json:"issuer,omitempty"`
	// ValidUntil is when calls start to fail for age: see the function of that name.
	ValidUntil *time.Time `json:"validUntil,omitempty"`
	DaysLeft   *int       `json:"daysLeft,omitempty"`
	// Call is what a call here would do; nil if nobody looked.
	Call     *Prediction `json:"call,omitempty"`
	Findings []Finding   `json:"findings,omitempty"`
}

// Audit looks at everything. When ctx ends it returns what it has until then, and says so in
// the report.
func Audit(ctx context.Context, o AuditOptions) (AuditReport, error) {
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = defaultDialTimeout
	}
	if o.Parallel == 0 {
		o.Parallel = defaultParallel
	}
	report := AuditReport{Time: o.Now, Targets: []TargetReport{}}
	targets, errs := discover(ctx, o)
	for _, err := range errs {
		report.Problems = append(report.Problems, err.Error())
		report.Incomplete = true
	}
	if len(errs) == len(kinds) {
		return report, fmt.Errorf("audit certificates: %w", errors.Join(errs...))
	}

	routes := resolve(ctx, o, targets)
	served := dialAll(ctx, o, targets, routes)
	late := 0
	for i, target := range targets {
		t, missed := judge(o, target, routes[i], served)
		late += missed
		report.Worst = max(report.Worst, t.Worst)
		t.sayWhere()
		report.Targets = append(report.Targets, t)
	}
	if late > 0 {
		report.Incomplete = true
		report.Problems = append(report.Problems, fmt.Sprintf("endpoints not looked at, as the time was over: %d", late))
	}
	return report, nil
}

// resolve finds the endpoints of every target. The routes are in the order of the targets.
func resolve(ctx context.Context, o AuditOptions, targets []Target) []route {
	type reference struct {
		namespace, name string
		port            int32
	}
	known := map[reference]*route{}
	var group errgroup.Group
	group.SetLimit(o.Parallel)
	for _, t := range targets {
		ref := reference{t.namespace, t.service, t.port}
		if t.service == "" || known[ref] != nil {
			continue
		}
		found := &route{}
		known[ref] = found
		group.Go(func() error {
			*found = resolveService(ctx, o.Clients, ref.namespace, ref.name, ref.port)
			return nil
		})
	}
	_ = group.Wait() // what fails is a finding
	routes := make([]route, len(targets))
	for i, t := range targets {
		switch {
		case t.service != "":
			routes[i] = *known[reference{t.namespace, t.service, t.port}]
		case t.dial != "":
			routes[i] = route{endpoints: []endpoint{{address: t.dial}}}
		default:
			routes[i] = route{findings: []Finding{{Code: InvalidURL, Severity: Error, Breaks: true,
				Message: fmt.Sprintf("%s is no https:// URL with a host", quote(t.URL)),
				Means:   "the API server cannot call it",
				Remedy:  "write the URL of the webhook, or name its Service"}}}
		}
	}
	return routes
}

// served is what came of a handshake.
type served struct {
	chain []*x509.Certificate
	err   error
	late  bool
}

func dialAll(ctx context.Context, o AuditOptions, targets []Target, routes []route) map[door]*served {
	all := map[door]*served{}
	var order []door
	for i, t := range targets {
		for _, e := range routes[i].endpoints {
			d := door{e.address, t.ServerName}
			if all[d] == nil {
				all[d], order = &served{}, append(order, d)
			}
		}
	}
	var group errgroup.Group
	group.SetLimit(o.Parallel)
	var mu sync.Mutex
	done := 0
	for _, d := range order {
		found := all[d]
		group.Go(func() error {
			if found.late = ctx.Err() != nil; !found.late {
				found.chain, found.err = handshake(ctx, o.Dial, o.DialTimeout, d)
				found.late = found.err != nil && len(found.chain) == 0 && ctx.Err() != nil
			}
			if o.Progress != nil {
				mu.Lock()
				defer mu.Unlock()
				done++
				o.Progress(done, len(order))
			}
			return nil
		})
	}
	_ = group.Wait() // what fails is in served
	return all
}

// judge puts together what is known of a target. late is how many of its endpoints were not looked at.
func judge(o AuditOptions, target Target, r route, all map[door]*served) (t TargetReport, late int) {
	t = TargetReport{Target: target, Findings: r.findings}
	if target.Trust.APIService { // its requests go to an address, and the audit log names that
		t.aliases = r.aliases
	}
	if r.late {
		late++
	}
	if len(r.endpoints) == 0 { // what can be said without a certificate
		v := verification{trust: target.Trust, now: o.Now}
		v.bundle()
		t.Findings = slices.Concat(t.Findings, v.findings)
	}
	for _, e := range r.endpoints {
		found := all[door{e.address, target.ServerName}]
		if found.late {
			late++
		}
		t.Endpoints = append(t.Endpoints, judgeEndpoint(o, target, r, e, found))
		if target.Trust.APIService {
			if host, _, err := net.SplitHostPort(e.address); err == nil {
				t.aliases = append(t.aliases, host)
			}
		}
	}
	t.Worst = Worst(t.Findings)
	for _, e := range t.Endpoints {
		t.Worst = max(t.Worst, Worst(e.Findings))
	}
	return t, late
}

// sayWhere fills in what is to be changed.
func (t *TargetReport) sayWhere() {
	where := func(findings []Finding) []Finding {
		findings = slices.Clone(findings) // those of a Service are shared
		for i := range findings {
			findings[i].Change = t.Where(findings[i].Code)
		}
		return findings
	}
	t.Findings = where(t.Findings)
	for i := range t.Endpoints {
		t.Endpoints[i].Findings = where(t.Endpoints[i].Findings)
	}
}

// judgeEndpoint joins what the certificate says with what the way to it says.
func judgeEndpoint(o AuditOptions, target Target, r route, e endpoint, found *served) EndpointReport {
	report := EndpointReport{Address: e.address, NotReady: e.notReady}
	switch {
	case len(found.chain) > 0:
		leaf, until := found.chain[0], ValidUntil(found.chain, withSystemRoots(target.Trust, o.SystemRoots))
		days := int(math.Floor(until.Sub(o.Now).Hours() / 24))
		report.Subject, report.Issuer = leaf.Subject.String(), leaf.Issuer.String()
		report.ValidUntil, report.DaysLeft = &until, &days
		report.Findings = Verify(found.chain, withSystemRoots(target.Trust, o.SystemRoots), target.ServerName, o.Now)
	default:
		v := verification{trust: target.Trust, now: o.Now}
		v.bundle()
		report.Findings = v.findings
	}
	switch {
	case found.late:
		report.Findings = append(report.Findings, Finding{Code: Unreachable, Severity: Warning,
			Message: "not looked at: the time was over",
			Means:   "whether calls work is unknown", Remedy: "give the audit more time"})
	case errors.Is(found.err, errDial) && e.notReady:
		report.Findings = append(report.Findings, Finding{Code: Unreachable, Severity: Info,
			Message: quoteError(found.err),
			Means:   "nothing yet: the endpoint is not ready, and nobody calls it", Remedy: "look at its pod if it stays so"})
	case errors.Is(found.err, errDial):
		report.Findings = append(report.Findings, Finding{Code: Unreachable, Severity: Error, Breaks: true,
			Message: quoteError(found.err),
			Means:   "calls that come here fail, unless the API server has a way there that the audit has not",
			Remedy:  "see that somebody listens there; run the audit inside the cluster to have the way that API servers have"})
	case found.err != nil:
		report.Findings = append(report.Findings, Finding{Code: HandshakeFailed, Severity: Error, Breaks: true,
			Message: "no TLS connection came about: " + quoteError(found.err),
			Means:   "calls fail, unless the server asks for a client certificate that the API server has",
			Remedy:  "see that what listens there speaks TLS, and with which versions"})
	}
	if !found.late {
		report.Call = new(Predict(slices.Concat(r.findings, report.Findings)))
	}
	return report
}

func withSystemRoots(t Trust, roots *x509.CertPool) Trust {
	t.SystemRoots = roots
	return t
}

// quoteError keeps control characters of strangers away from terminals, and quotes otherwise
// nothing.
func quoteError(err error) string {
	text := strconv.Quote(err.Error())
	return strings.ReplaceAll(text[1:len(text)-1], `\"`, `"`)
}
