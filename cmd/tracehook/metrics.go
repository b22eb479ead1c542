package main

// /metrics. In: flags, the serving certificate. Out: controller-runtime's metrics server. Errors: no API server to
// ask who may read them.

import (
	"crypto/tls"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

// newMetricsServer returns nil where there are to be no metrics. get is for --metrics-secure.
func newMetricsServer(config processConfig, get getCertificate) (metricsserver.Server, error) {
	options := metricsserver.Options{
		BindAddress:   config.MetricsAddress,
		SecureServing: config.MetricsSecure,
		TLSOpts: []func(*tls.Config){func(c *tls.Config) {
			c.GetCertificate = get
			c.MinVersion = tls.VersionTLS12
			c.NextProtos = []string{"http/1.1"}
		}},
		// Exemplars, which lead from a slow bucket to its trace, exist in this format only.
		HandlerOpts: []func(*promhttp.HandlerOpts){func(o *promhttp.HandlerOpts) { o.EnableOpenMetrics = true }},
	}
	api, client := &rest.Config{}, http.DefaultClient
	if config.MetricsAuth {
		cluster, err := connect("--metrics-auth")
		if err != nil {
			return nil, err
		}
		api = cluster.rest
		if client, err = rest.HTTPClientFor(api); err != nil {
			return nil, fmt.Errorf("make client for --metrics-auth: %w", err)
		}
		options.FilterProvider = filters.WithAuthenticationAndAuthorization
	}
	server, err := metricsserver.NewServer(options, api, client)
	if err != nil {
		return nil, fmt.Errorf("set /metrics up: %w", err)
	}
	return server, nil
}
