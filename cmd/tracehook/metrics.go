package main

// /metrics. In: flags, the serving certificate. Out: controller-runtime's registry, served. Errors: no API server to
// ask who may read them.

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/metric"
	"k8s.io/client-go/rest"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"

	"github.com/tracehook/tracehook/webhook/limit"
)

const (
	// mostScrapes are answered at once; one more gets 503.
	mostScrapes = 5
	// A Prometheus costs a TokenReview a minute and a SubjectAccessReview in five. Whoever makes tokens up costs one for
	// each, so the API server is asked no more often than this a second; who comes then waits.
	mostReviews, mostReviewsAtOnce = 10, 20
)

// newMetricsServer returns nil where there are to be no metrics. get is for --metrics-secure.
func newMetricsServer(config processConfig, get getCertificate, provider metric.MeterProvider, log *slog.Logger) (*sideServer, error) {
	handler := promhttp.HandlerFor(ctrlmetrics.Registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: mostScrapes,
		// Exemplars, which lead from a slow bucket to its trace, exist in this format only.
		EnableOpenMetrics: true,
	})
	sparing := &sparingHandler{log.Handler(), new(limit.Records)}
	if config.MetricsAuth {
		cluster, err := connect(config.API, "--metrics-auth")
		if err != nil {
			return nil, err
		}
		api := rest.CopyConfig(cluster.rest)
		api.QPS, api.Burst = mostReviews, mostReviewsAtOnce
		client, err := rest.HTTPClientFor(api)
		if err != nil {
			return nil, fmt.Errorf("make client for --metrics-auth: %w", err)
		}
		filter, err := filters.WithAuthenticationAndAuthorization(api, client)
		if err != nil {
			return nil, fmt.Errorf("ask who may read /metrics: %w", err)
		}
		if handler, err = filter(logr.FromSlogHandler(sparing), handler); err != nil {
			return nil, fmt.Errorf("ask who may read /metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", handler)
	server, err := newSideServer("metrics", config.MetricsAddress, mux, provider)
	if server != nil && config.MetricsSecure {
		server.tls = &tls.Config{GetCertificate: get, MinVersion: tls.VersionTLS12}
		server.handshakeFailed = func(remote net.Addr, err error) { // not counted: it is none of an API server
			slog.New(sparing).Warn("TLS handshake with the port of metrics failed", "remote", remote, "error", err)
		}
	}
	return server, err
}

// sparingHandler writes one record in a while: any caller can cause them.
type sparingHandler struct {
	slog.Handler
	records *limit.Records
}

func (h *sparingHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &sparingHandler{h.Handler.WithAttrs(attrs), h.records}
}

func (h *sparingHandler) WithGroup(name string) slog.Handler {
	return &sparingHandler{h.Handler.WithGroup(name), h.records}
}

func (h *sparingHandler) Handle(ctx context.Context, r slog.Record) error {
	h.records.Log(ctx, slog.New(h.Handler), r.Level, r.Message, func() (attrs []slog.Attr) {
		r.Attrs(func(a slog.Attr) bool {
			attrs = append(attrs, a)
			return true
		})
		return attrs
	})
	return nil
}
