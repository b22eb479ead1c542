package cluster

// The receiving end. Out: a running Jaeger, and a Collector that sends to it,
// configured by the file we ship. Errors: *ProcessError.

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
)

// startJaeger starts the trace store with deploy/components/jaeger/config.yaml as it is;
// only addresses are given.
func (c *Cluster) startJaeger(ctx context.Context) error {
	root, err := repository()
	if err != nil {
		return err
	}
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	query, otlp, health := ports[0], ports[1], ports[2]
	_, err = c.launch(ctx, launch{
		program: "jaeger",
		args:    []string{"--config=" + filepath.Join(root, "deploy", "components", "jaeger", "config.yaml")},
		env: []string{
			"JAEGER_OTLP_ENDPOINT=" + loopback(otlp),
			"JAEGER_QUERY_ENDPOINT=" + loopback(query),
			"JAEGER_QUERY_GRPC_ENDPOINT=" + loopback(ports[3]),
			"JAEGER_HEALTH_ENDPOINT=" + loopback(health),
		},
		ready: func(ctx context.Context) error {
			return get(ctx, http.DefaultClient, "http://"+loopback(health)+"/status")
		},
	})
	if err != nil {
		return err
	}
	c.JaegerURL = "http://" + loopback(query)
	c.jaegerOTLP = loopback(otlp)
	return nil
}

// startCollector starts the Collector with deploy/components/collector/config.yaml as
// it is; only addresses are given.
func (c *Cluster) startCollector(ctx context.Context) error {
	root, err := repository()
	if err != nil {
		return err
	}
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	grpc, http, zpages, metrics := loopback(ports[0]), loopback(ports[1]), loopback(ports[2]), ports[3]
	if c.address != "" {
		grpc, http = c.address+":4317", c.address+":4318"
	}
	_, err = c.launch(ctx, launch{
		program: "otelcol",
		args:    []string{"--config=" + filepath.Join(root, "deploy", "components", "collector", "config.yaml")},
		env: []string{
			"COLLECTOR_GRPC_ENDPOINT=" + grpc,
			"COLLECTOR_HTTP_ENDPOINT=" + http,
			"COLLECTOR_ZPAGES_ENDPOINT=" + zpages,
			"COLLECTOR_METRICS_HOST=127.0.0.1",
			"COLLECTOR_METRICS_PORT=" + strconv.Itoa(metrics),
			"COLLECTOR_EXPORT_ENDPOINT=" + c.jaegerOTLP,
		},
		// The Collector opens its receivers last, so an open port means an open
		// pipeline.
		ready: func(ctx context.Context) error {
			for _, address := range []string{grpc, http} {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
				if err != nil {
					return err
				}
				conn.Close()
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	c.CollectorGRPC, c.CollectorHTTP = grpc, http
	c.ZPagesURL = "http://" + zpages + "/debug/servicez"
	return nil
}

// Env is what a program's environment needs so that its spans come to this cluster's
// Collector, and soon: OpenTelemetry's default is to hold them for five seconds. Where
// there is no Collector it makes none.
func (c *Cluster) Env() []string {
	if c.noTraces {
		return []string{"OTEL_TRACES_EXPORTER=none"}
	}
	return []string{
		"OTEL_TRACES_EXPORTER=otlp",
		"OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.CollectorGRPC,
		spansSoon,
	}
}

// spansSoon (milliseconds) shortens the batch span processor of every OpenTelemetry
// SDK, the ones in kube-apiserver and etcd included. The spans are the same, the wait
// is not.
const spansSoon = "OTEL_BSP_SCHEDULE_DELAY=100"

// get asks for a page and wants a 200.
func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}
