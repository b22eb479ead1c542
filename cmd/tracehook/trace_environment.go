package main

// The child's environment. In: the user's. Out: the same with our kubeconfig, our trace context
// and a way past the site's proxy. Pure.

import (
	"context"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/propagation"
)

// environmentCarrier reads the trace context that OpenTelemetry lets a process
// hand to another in TRACEPARENT and TRACESTATE.
func environmentCarrier(env []string) propagation.MapCarrier {
	carrier := propagation.MapCarrier{}
	for _, entry := range env {
		key, value, _ := strings.Cut(entry, "=")
		if key == "TRACEPARENT" || key == "TRACESTATE" {
			carrier[strings.ToLower(key)] = value
		}
	}
	return carrier
}

// childEnvironment is env with set and with ctx's span as the trace context that an
// instrumented command continues.
func childEnvironment(ctx context.Context, env []string, set map[string]string) []string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	drop := map[string]bool{"TRACEPARENT": true, "TRACESTATE": true}
	var out []string
	for key, value := range carrier {
		out = append(out, strings.ToUpper(key)+"="+value)
	}
	for key, value := range set {
		drop[key] = true
		out = append(out, key+"="+value)
	}
	for _, entry := range env {
		if key, _, _ := strings.Cut(entry, "="); !drop[key] {
			out = append(out, entry)
		}
	}
	return out
}

// noProxy keeps requests to the proxy on the loopback interface away from the site's proxy. Go
// never asks a proxy for 127.0.0.1, most others do. Where env names no proxy it changes nothing:
// some take NO_PROXY alone for a reason to forget the system's proxies.
func noProxy(env []string) map[string]string {
	values := map[string]string{}
	for _, entry := range env {
		key, value, _ := strings.Cut(entry, "=")
		values[key] = value
	}
	set := map[string]string{}
	if !slices.ContainsFunc([]string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"},
		func(name string) bool { return values[name] != "" }) {
		return set
	}
	// Programs differ in which of the two they read first. One that is not set becomes
	// what the other is.
	const upper, lower = "NO_PROXY", "no_proxy"
	for name, other := range map[string]string{upper: lower, lower: upper} {
		value := values[name]
		if value == "" {
			value = values[other]
		}
		set[name] = withLoopback(value)
	}
	return set
}

func withLoopback(list string) string {
	for _, host := range strings.Split(list, ",") {
		if host = strings.TrimSpace(host); host == "*" || host == "127.0.0.1" {
			return list
		}
	}
	if strings.TrimSpace(list) == "" {
		return "127.0.0.1"
	}
	return strings.TrimRight(list, ", ") + ",127.0.0.1"
}
