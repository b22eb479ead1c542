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
	// SlowHandshake: it takes longer than the API server gives the call.
	SlowHandshake Code = "slow-handshake"
	// ClientCertificate: the server demands one.
	ClientCertificate Code = "client-certificate"
	// OutOfReach: it cannot be looked at from where the audit runs.
	OutOfReach Code = "out-of-reach"
	// ProofLeft: an object that was made for a proof of tracehook's, by a process that was killed.
	ProofLeft Code = "proof-left-behind"
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
	// Namespace: only what leads to Services there. Empty: everything.
	Namespace string
	// OnAPIServer: this runs in the network of the API server. A loopback address in a URL is the API server's, and a name is what
	// the API server resolves it to; so elsewhere such an address is not dialled, and a name that cannot be resolved says nothing.
	OnAPIServer bool
	// Dial makes connections. Nil: a net.Dialer. Names that lead to a loopback address are found out only with that one.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// DialTimeout is for one endpoint, connection and handshake. Zero: 10 s.
	DialTimeout time.Duration
	// Parallel is how many things are asked for or dialled at a time. Zero: 32.
	Parallel int
	// Progress is called after each handshake, from one goroutine at a time. Nil: silence.
	Progress func(done, total int)
}

// Where says which thing to change about a finding of this target.
func (t Target) Where(code Code) string {
	place := t.URL
	if t.Service != "" {
		place = "Service " + t.Service
	}
	served := "the certificate that " + place + " serves"
	switch code {
	case Unreachable, HandshakeFailed, ClientCertificate, SlowHandshake:
		return "what listens behind " + place
	case OutOfReach:
		return "nothing"
	case ProofLeft:
		return t.Kind + "/" + t.Name
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

	var left []LeftProof
	var looking sync.WaitGroup
	looking.Go(func() { left, _ = FindLeftProofs(ctx, o.Clients, o.Dynamic) }) // what cannot be listed is said already
	routes := resolve(ctx, o, targets)
	served := dialAll(ctx, o, targets, routes)
	looking.Wait()
	for _, l := range left {
		t := l.report()
		report.Worst = max(report.Worst, t.Worst)
		t.sayWhere()
		report.Targets = append(report.Targets, t)
	}
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
			host, _, _ := net.SplitHostPort(t.dial)
			routes[i] = route{endpoints: []endpoint{{address: t.dial, elsewhere: !o.OnAPIServer && ownAddress(host)}}}
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
	took  time.Duration
	// byHTTP2 is what came of another one, for APIServices, where the server speaks nothing else.
	byHTTP2 *served
}

// to is what concerns a target.
func (s *served) to(t Target) *served {
	if t.Trust.APIService && s.byHTTP2 != nil {
		return s.byHTTP2
	}
	return s
}

// doorTo is where a target's endpoint is.
func doorTo(o AuditOptions, t Target, e endpoint) door {
	host, _, _ := net.SplitHostPort(e.address)
	return door{e.address, t.ServerName, t.URL != "" && !o.OnAPIServer && net.ParseIP(host) == nil}
}

func dialAll(ctx context.Context, o AuditOptions, targets []Target, routes []route) map[door]*served {
	all, aggregated := map[door]*served{}, map[door]bool{}
	var order []door
	for i, t := range targets {
		for _, e := range routes[i].endpoints {
			d := doorTo(o, t, e)
			aggregated[d] = aggregated[d] || t.Trust.APIService
			if all[d] != nil {
				continue
			}
			all[d] = &served{}
			if e.elsewhere {
				all[d].err = errElsewhere
			} else {
				order = append(order, d)
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
				begin := time.Now()
				found.chain, found.err = handshake(ctx, o.Dial, o.DialTimeout, d, http1)
				found.took = time.Since(begin)
				if aggregated[d] && otherProtocol(found.err) {
					found.byHTTP2 = &served{}
					found.byHTTP2.chain, found.byHTTP2.err = handshake(ctx, o.Dial, o.DialTimeout, d, http2)
				}
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
		found := all[doorTo(o, target, e)].to(target)
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
	report.Findings = append(report.Findings, wayFindings(o, target, e, found)...)
	switch worst := slices.IndexFunc(report.Findings, func(f Finding) bool { return f.Code == OutOfReach || f.Code == ClientCertificate && !f.Breaks }); {
	case found.late:
	case worst < 0 || !Predict(report.Findings).Works: // what is out of reach may be broken for another reason
		report.Call = new(Predict(slices.Concat(r.findings, report.Findings)))
	}
	return report
}

// wayFindings are about how the handshake went.
func wayFindings(o AuditOptions, target Target, e endpoint, found *served) []Finding {
	var dns *net.DNSError
	switch {
	case found.late:
		return []Finding{{Code: Unreachable, Severity: Warning,
			Message: "not looked at: the time was over",
			Means:   "whether calls work is unknown", Remedy: "give the audit more time"}}
	case errors.Is(found.err, errElsewhere):
		return []Finding{{Code: OutOfReach, Severity: Info,
			Message: fmt.Sprintf("cannot be looked at from here: %s leads to an address of the API server's own machine", printableHost(e.address)),
			Means:   "whether calls work is unknown; nothing was dialled",
			Remedy:  "none is needed; to look at it run the audit in the network of the API server, with --on-api-server"}}
	case errors.As(found.err, &dns) && !o.OnAPIServer:
		return []Finding{{Code: OutOfReach, Severity: Info,
			Message: fmt.Sprintf("cannot be looked at from here: %s cannot be resolved here (%s)", printableHost(dns.Name), quoteError(dns)),
			Means:   "whether calls work is unknown: the API server resolves names itself, or its egress proxy does",
			Remedy:  "none if the API server knows the name; to look at it run the audit in the network of the API server, with --on-api-server"}}
	case errors.Is(found.err, errDial) && e.notReady:
		return []Finding{{Code: Unreachable, Severity: Info,
			Message: quoteError(found.err),
			Means:   "nothing yet: the endpoint is not ready, and nobody calls it", Remedy: "look at its pod if it stays so"}}
	case errors.Is(found.err, errDial):
		return []Finding{{Code: Unreachable, Severity: Error, Breaks: true,
			Message: quoteError(found.err),
			Means:   "calls that come here fail, unless the API server has a way there that the audit has not",
			Remedy:  "see that somebody listens there; run the audit inside the cluster to have the way that API servers have"}}
	case errors.Is(found.err, errClientCertificate) && target.Trust.APIService:
		return []Finding{{Code: ClientCertificate, Severity: Info,
			Message: quoteError(found.err),
			Means:   "whether calls work is unknown: an API server shows its --proxy-client-cert-file, and the audit has none",
			Remedy:  "none if the APIService is available"}}
	case errors.Is(found.err, errClientCertificate):
		return []Finding{{Code: ClientCertificate, Severity: Error, Breaks: true,
			Message: quoteError(found.err),
			Means:   "every call fails, unless the API server has a client certificate for this host",
			Remedy:  "name one for this host in the file that --admission-control-config-file leads to (kubeConfigFile of the plugin), or have the server ask for a certificate without demanding it"}}
	case found.err != nil:
		return []Finding{{Code: HandshakeFailed, Severity: Error, Breaks: true,
			Message: "no TLS connection came about: " + quoteError(found.err),
			Means:   "calls fail",
			Remedy:  "see that what listens there speaks TLS, and with which versions"}}
	case target.timeout > 0 && found.took-afterHandshake > target.timeout:
		return []Finding{{Code: SlowHandshake, Severity: Error, Breaks: true,
			Message: fmt.Sprintf("the handshake takes %s, and a call has %s (timeoutSeconds)", found.took.Round(100*time.Millisecond), target.timeout),
			Means:   "a call fails whenever it needs a new connection",
			Remedy:  "find out what holds the server up; or raise timeoutSeconds, with which every request waits longer"}}
	}
	return nil
}

// report is a target with nothing but that it was left.
func (l LeftProof) report() TargetReport {
	f := Finding{Code: ProofLeft, Severity: Warning,
		Message: fmt.Sprintf("it was made for a proof of `tracehook certs` at %s, by a process that is gone", stamp(l.Made)),
		Means:   "nothing but probes of tracehook's ever meets it",
		Remedy:  fmt.Sprintf("kubectl delete %s %s; the next `tracehook certs migrate --apply` removes it, too", strings.ToLower(l.Kind), l.Name)}
	if !l.Certain {
		f.Message = fmt.Sprintf("it was made for a proof of `tracehook certs` at %s; whether that is still under way cannot be said: its maker's Lease could not be read, or the time was over", stamp(l.Made))
	}
	if l.Kind == KindAPIService {
		f.Severity, f.Means = Error, "discovery lists a group that nobody answers for, so no namespace can be deleted"
	}
	return TargetReport{Target: Target{Kind: l.Kind, Name: l.Name}, Worst: f.Severity, Findings: []Finding{f}}
}

// printableHost keeps control characters of strangers away from terminals.
func printableHost(s string) string {
	quoted := quote(s)
	return quoted[1 : len(quoted)-1]
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
