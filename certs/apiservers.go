package certs

// API servers. In: how to talk to the cluster. Out: all of its API servers, each asked at an address of its
// own, over fresh connections. Errors: the list cannot be read; ctx's, with what was still missing at which of them.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// apiServerName is a name that the certificate of every API server has.
	apiServerName = "kubernetes.default.svc"
	// identityFresh: an API server renews its identity Lease every ten seconds. The clock of who does is not ours.
	identityFresh = 2 * time.Minute

	askTimeout   = 15 * time.Second
	defaultRetry = 200 * time.Millisecond

	// A direct answer is asked for twice: only the second connection is sure to be younger than the first answer.
	asksDirect = 2
	// Behind a load balancer: per API server that is known of, and if nobody knows how many there are.
	asksPerSampled, asksUnknown = 8, 16
)

// apiServers are those of a cluster.
type apiServers struct {
	config  *rest.Config
	urls    []string // given; empty: discovered
	clients kubernetes.Interface
	now     func() time.Time
}

// apiServer is one address at which to ask, and how often.
type apiServer struct {
	url     string
	clients kubernetes.Interface
	asks    int
}

// find returns the addresses, and how much it says when all of them have answered.
func (a *apiServers) find(ctx context.Context) (servers []apiServer, certainty Certainty, err error) {
	urls, serverName := a.urls, a.config.ServerName
	if len(urls) == 0 {
		if urls, err = a.discover(ctx); err != nil {
			return nil, "", fmt.Errorf("find API servers: %w", err)
		}
		if serverName == "" {
			serverName = apiServerName
		}
	}
	asks, certainty := asksDirect, Proven
	// Who gives URLs says that these are all; otherwise only the identity Leases tell.
	switch known := a.identities(ctx); {
	case known > len(urls):
		asks, certainty = asksPerSampled*known, Sampled
	case known == 0 && len(a.urls) == 0:
		asks, certainty = asksUnknown, Sampled
	}
	for _, url := range urls {
		config := rest.CopyConfig(a.config)
		config.Host, config.ServerName, config.QPS, config.Timeout = url, serverName, -1, askTimeout
		clients, err := freshClient(config)
		if err != nil {
			return nil, "", fmt.Errorf("make client of %s: %w", url, err)
		}
		servers = append(servers, apiServer{url, clients, asks})
	}
	return servers, certainty, nil
}

// discover returns the URLs of the endpoints of Service default/kubernetes.
func (a *apiServers) discover(ctx context.Context) (urls []string, err error) {
	endpoints, err := a.clients.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).
		List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("list endpoints of Service default/kubernetes: %w", err)
	}
	for _, slice := range endpoints.Items {
		for _, port := range slice.Ports {
			if port.Port == nil || port.Name == nil || *port.Name != "https" {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				for _, address := range endpoint.Addresses {
					url := "https://" + net.JoinHostPort(address, strconv.Itoa(int(*port.Port)))
					if !slices.Contains(urls, url) {
						urls = append(urls, url)
					}
				}
			}
		}
	}
	if len(urls) == 0 {
		return nil, errors.New("the Service default/kubernetes has no endpoints: give the URLs of the API servers")
	}
	slices.Sort(urls)
	return urls, nil
}

// identities counts the API servers that have renewed their identity Lease. 0: nobody knows.
func (a *apiServers) identities(ctx context.Context) int {
	leases, err := a.clients.CoordinationV1().Leases(metav1.NamespaceSystem).
		List(ctx, metav1.ListOptions{LabelSelector: "apiserver.kubernetes.io/identity=kube-apiserver"})
	if err != nil { // the right to do so is optional
		return 0
	}
	count := 0
	for _, lease := range leases.Items {
		if renewed := lease.Spec.RenewTime; renewed != nil && a.now().Sub(renewed.Time) < identityFresh {
			count++
		}
	}
	return count
}

// freshClient makes a connection for every request: a kept one says nothing about others behind a load balancer.
func freshClient(config *rest.Config) (kubernetes.Interface, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: config.Dial,
		TLSClientConfig: tlsConfig, TLSHandshakeTimeout: askTimeout, DisableKeepAlives: true,
	}
	if config.Proxy != nil {
		transport.Proxy = config.Proxy
	}
	authenticated, err := rest.HTTPWrappersForConfig(config, transport)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfigAndClient(config, &http.Client{Transport: authenticated, Timeout: config.Timeout})
}

// asking is a question to all API servers.
type asking struct {
	apiServers
	retry    time.Duration
	log      *slog.Logger
	duration metric.Float64Histogram

	prover string // in metrics
	// prepare is called before each round. What it did already it must not do again.
	prepare func(context.Context) error
	// arrived asks one API server once; nil means yes.
	arrived func(context.Context, apiServer) error
}

// newAsking fills in everything but the question.
func newAsking(config *rest.Config, urls []string, retry time.Duration, log *slog.Logger, meters metric.MeterProvider, now func() time.Time) (asking, error) {
	if config == nil {
		return asking{}, errors.New("how to talk to the cluster is missing")
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return asking{}, fmt.Errorf("make client: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if now == nil {
		now = time.Now
	}
	duration, err := meterOf(meters).Float64Histogram("tracehook.certs.proof.duration",
		metric.WithUnit("s"),
		metric.WithDescription("Time until every API server had loaded what was published, by prover and how it ended."),
		metric.WithExplicitBucketBoundaries(.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300))
	if err != nil {
		return asking{}, fmt.Errorf("create the histogram of proofs: %w", err)
	}
	return asking{apiServers: apiServers{config, urls, clients, now}, retry: cmp.Or(retry, defaultRetry), log: log, duration: duration}, nil
}

// meterOf is the meter of this package's metrics; nil is a provider that keeps nothing.
func meterOf(provider metric.MeterProvider) metric.Meter {
	if provider == nil {
		provider = noop.NewMeterProvider()
	}
	return provider.Meter("github.com/tracehook/tracehook/certs")
}

// timed records how long a proof took.
func (a asking) timed(ctx context.Context, prove func(context.Context) (Proof, error)) (proof Proof, err error) {
	began := a.now()
	defer func() {
		outcome := "failed"
		if err == nil {
			outcome = string(proof.Certainty)
		}
		a.duration.Record(ctx, a.now().Sub(began).Seconds(), metric.WithAttributes(
			attribute.String("tracehook.certs.prover", a.prover), attribute.String("tracehook.certs.outcome", outcome)))
	}()
	return prove(ctx)
}

// untilAll is all, timed.
func (a asking) untilAll(ctx context.Context) (Proof, error) { return a.timed(ctx, a.all) }

// all asks until every API server says yes. The list is read anew each time: one that has gone does not
// hold up the rest, and one that came is asked too. If ctx ends before, the error has the words of the last round.
func (a asking) all(ctx context.Context) (Proof, error) {
	arrived := map[string]bool{}
	var missing error
	for {
		servers, certainty, err := a.round(ctx, arrived)
		if err == nil {
			return Proof{Time: a.now(), Certainty: certainty, Servers: servers}, nil
		}
		if missing == nil || ctx.Err() == nil { // a round that ctx cut short knows less than the one before
			if missing == nil || missing.Error() != err.Error() {
				a.log.InfoContext(ctx, "API servers have not arrived yet", slog.String("error", err.Error()))
			}
			missing = err
		}
		if err := sleep(ctx, a.retry); err != nil {
			return Proof{}, fmt.Errorf("%w: %w", err, missing)
		}
	}
}

// round asks, side by side, all that have not arrived.
func (a asking) round(ctx context.Context, arrived map[string]bool) (urls []string, certainty Certainty, err error) {
	if err := a.prepare(ctx); err != nil {
		return nil, "", err
	}
	servers, certainty, err := a.find(ctx)
	if err != nil {
		return nil, "", err
	}
	failures := make([]error, len(servers))
	var group errgroup.Group
	for i, server := range servers {
		urls = append(urls, server.url)
		if arrived[server.url] {
			continue
		}
		group.Go(func() error {
			for range server.asks {
				if err := a.arrived(ctx, server); err != nil {
					failures[i] = fmt.Errorf("API server %s: %w", server.url, err)
					break
				}
			}
			return nil
		})
	}
	_ = group.Wait() // every error is in failures
	for i, server := range servers {
		arrived[server.url] = arrived[server.url] || failures[i] == nil
	}
	return urls, certainty, errors.Join(failures...)
}
