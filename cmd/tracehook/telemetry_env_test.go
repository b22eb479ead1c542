package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// everySet is what readTelemetryEnvironment decides for the default.
func everySet() map[string]string {
	return map[string]string{"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "true"}
}

// environmentCases are variables as people have them: each what is wrong with it, and what is used.
// The right values among them have no complaint.
var environmentCases = []struct {
	name      string
	env       map[string]string
	set       map[string]string // beyond everySet
	complaint string            // its beginning; "" for none
	instead   string
	spans     string // exporters; "" stands for otlp
	needs     environmentNeeds
}{
	{name: "nothing"},

	// General.
	{name: "a service name", env: map[string]string{"OTEL_SERVICE_NAME": "shop, and = more"}},
	{name: "a service name that is not UTF-8", env: map[string]string{"OTEL_SERVICE_NAME": "sh\xffop"},
		set: map[string]string{"OTEL_SERVICE_NAME": "shop"}, complaint: "OTEL_SERVICE_NAME: it is not UTF-8", instead: "the rest of it is used"},
	{name: "resource attributes", env: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "team=a,place=M%C3%BCnchen,empty="}},
	{name: "a trailing comma", env: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "team=a,"},
		set: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "team=a"}, complaint: "OTEL_RESOURCE_ATTRIBUTES: entry 2 is empty", instead: "the rest of it is used"},
	{name: "an attribute without a value", env: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "hunter2, team = a"},
		set: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "team=a"}, complaint: "OTEL_RESOURCE_ATTRIBUTES: entry 1 has no ="},
	{name: "no attribute at all", env: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": ","},
		set: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": ""}, complaint: "OTEL_RESOURCE_ATTRIBUTES: entry 1 is empty, entry 2 is empty"},
	{name: "an attribute without a key", env: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "=a,b=c"},
		set: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "b=c"}, complaint: "OTEL_RESOURCE_ATTRIBUTES: entry 1 has no key"},
	{name: "a percent sign", env: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "load=50%,b=c"},
		set: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "load=50%25,b=c"}, complaint: "OTEL_RESOURCE_ATTRIBUTES: entry 1 has a %"},
	{name: "an attribute that is not UTF-8", env: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "a=%ff,b=c"},
		set: map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "b=c"}, complaint: "OTEL_RESOURCE_ATTRIBUTES: entry 1 is not UTF-8"},
	{name: "propagators", env: map[string]string{"OTEL_PROPAGATORS": "tracecontext,baggage"}},
	{name: "other propagators", env: map[string]string{"OTEL_PROPAGATORS": "b3"},
		complaint: "OTEL_PROPAGATORS: the API server speaks W3C Trace Context", instead: "tracecontext is used"},
	{name: "a configuration file", env: map[string]string{"OTEL_CONFIG_FILE": "otel.yaml"},
		complaint: "OTEL_CONFIG_FILE: tracehook reads no configuration file", instead: "the other OTEL_* variables are used"},
	{name: "the SDK neither disabled nor not", env: map[string]string{"OTEL_SDK_DISABLED": "1"}, complaint: `OTEL_SDK_DISABLED: "1" is neither true nor false`, instead: "false is used"},
	{name: "the SDK not disabled", env: map[string]string{"OTEL_SDK_DISABLED": "False"}},
	{name: "what concerns no signal of ours", env: map[string]string{"OTEL_LOG_LEVEL": "loud", "OTEL_LOGS_EXPORTER": "pigeon", "OTEL_BLRP_MAX_QUEUE_SIZE": "x",
		"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "x", "OTEL_EXPORTER_ZIPKIN_ENDPOINT": "x", "OTEL_METRICS_EXPORTER": "pigeon", "OTEL_METRIC_EXPORT_INTERVAL": "x"}},

	// The sampler.
	{name: "a sampler", env: map[string]string{"OTEL_TRACES_SAMPLER": "ParentBased_TraceIDRatio", "OTEL_TRACES_SAMPLER_ARG": "0.5"},
		set: map[string]string{"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}},
	{name: "an unknown sampler", env: map[string]string{"OTEL_TRACES_SAMPLER": "sometimes"},
		set: map[string]string{"OTEL_TRACES_SAMPLER": ""}, complaint: `OTEL_TRACES_SAMPLER: "sometimes" is not one of always_on, always_off, `, instead: "parentbased_always_on is used"},
	{name: "a sampler that Go does not have", env: map[string]string{"OTEL_TRACES_SAMPLER": "jaeger_remote", "OTEL_TRACES_SAMPLER_ARG": "endpoint=http://localhost:14250"},
		set: map[string]string{"OTEL_TRACES_SAMPLER": ""}, complaint: `OTEL_TRACES_SAMPLER: "jaeger_remote" is not one of`},
	{name: "a ratio over 1", env: map[string]string{"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "10"},
		set: map[string]string{"OTEL_TRACES_SAMPLER_ARG": ""}, complaint: `OTEL_TRACES_SAMPLER_ARG: "10" is no number from 0 to 1`, instead: "1 is used"},
	{name: "a ratio with a comma", env: map[string]string{"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0,1"},
		set: map[string]string{"OTEL_TRACES_SAMPLER_ARG": ""}, complaint: `OTEL_TRACES_SAMPLER_ARG: "0,1" is no number`},
	{name: "a ratio that is no number", env: map[string]string{"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "NaN"},
		set: map[string]string{"OTEL_TRACES_SAMPLER_ARG": ""}, complaint: `OTEL_TRACES_SAMPLER_ARG: "NaN" is no number`},
	{name: "an argument that nobody reads", env: map[string]string{"OTEL_TRACES_SAMPLER": "always_on", "OTEL_TRACES_SAMPLER_ARG": "x"}},
	{name: "a sampler beside --max-sampled-rate", env: map[string]string{"OTEL_TRACES_SAMPLER": "always_on"}, needs: environmentNeeds{OwnSampler: true},
		set:       map[string]string{"OTEL_TRACES_SAMPLER": "", "OTEL_TRACES_SAMPLER_ARG": ""},
		complaint: "OTEL_TRACES_SAMPLER: --max-sampled-rate brings the only sampler", instead: "the variable is not heeded"},

	// The batch span processor and the limits.
	{name: "a batch processor", env: map[string]string{"OTEL_BSP_SCHEDULE_DELAY": "1000", "OTEL_BSP_EXPORT_TIMEOUT": "0", "OTEL_BSP_MAX_QUEUE_SIZE": "4096", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4096"}},
	{name: "a delay with a unit", env: map[string]string{"OTEL_BSP_SCHEDULE_DELAY": "5s"},
		set: map[string]string{"OTEL_BSP_SCHEDULE_DELAY": ""}, complaint: `OTEL_BSP_SCHEDULE_DELAY: "5s" is no whole number of milliseconds from 1`, instead: "the default is used"},
	{name: "no delay", env: map[string]string{"OTEL_BSP_SCHEDULE_DELAY": "0"},
		set: map[string]string{"OTEL_BSP_SCHEDULE_DELAY": ""}, complaint: `OTEL_BSP_SCHEDULE_DELAY: "0" is no whole number`},
	{name: "a timeout below 0", env: map[string]string{"OTEL_BSP_EXPORT_TIMEOUT": "-1"},
		set: map[string]string{"OTEL_BSP_EXPORT_TIMEOUT": ""}, complaint: `OTEL_BSP_EXPORT_TIMEOUT: "-1" is no whole number`},
	{name: "a queue below 0, with which the SDK panics", env: map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
		set: map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": ""}, complaint: `OTEL_BSP_MAX_QUEUE_SIZE: "-1" is no whole number`},
	{name: "a queue larger than the memory", env: map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": "1000000000000"},
		set: map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": ""}, complaint: `OTEL_BSP_MAX_QUEUE_SIZE: "1000000000000" is no whole number`},
	{name: "a batch of nothing", env: map[string]string{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "0"},
		set: map[string]string{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": ""}, complaint: `OTEL_BSP_MAX_EXPORT_BATCH_SIZE: "0" is no whole number`},
	{name: "a batch larger than the queue", env: map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "512"},
		set: map[string]string{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64"}, complaint: "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: 512 is more than the queue of 64 holds", instead: "64 is used"},
	{name: "a queue smaller than our batch", env: map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": "64"}, set: map[string]string{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64"}},
	{name: "a limit of values", env: map[string]string{"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "4k"},
		set: map[string]string{"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": ""}, complaint: `OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: "4k" is no whole number from 0`},
	{name: "a limit of attributes", env: map[string]string{"OTEL_ATTRIBUTE_COUNT_LIMIT": "many"},
		set: map[string]string{"OTEL_ATTRIBUTE_COUNT_LIMIT": ""}, complaint: `OTEL_ATTRIBUTE_COUNT_LIMIT: "many"`},
	{name: "a limit of a span's values", env: map[string]string{"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "-1"},
		set: map[string]string{"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": ""}, complaint: `OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT: "-1"`},
	{name: "a limit of a span's attributes", env: map[string]string{"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1.5"},
		set: map[string]string{"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": ""}, complaint: `OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: "1.5"`},
	{name: "a limit of events", env: map[string]string{"OTEL_SPAN_EVENT_COUNT_LIMIT": "x"},
		set: map[string]string{"OTEL_SPAN_EVENT_COUNT_LIMIT": ""}, complaint: `OTEL_SPAN_EVENT_COUNT_LIMIT: "x"`},
	{name: "a limit of links", env: map[string]string{"OTEL_SPAN_LINK_COUNT_LIMIT": "x"},
		set: map[string]string{"OTEL_SPAN_LINK_COUNT_LIMIT": ""}, complaint: `OTEL_SPAN_LINK_COUNT_LIMIT: "x"`},
	{name: "a limit of an event's attributes", env: map[string]string{"OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "x"},
		set: map[string]string{"OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": ""}, complaint: `OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT: "x"`},
	{name: "a limit of a link's attributes", env: map[string]string{"OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "x"},
		set: map[string]string{"OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": ""}, complaint: `OTEL_LINK_ATTRIBUTE_COUNT_LIMIT: "x"`},

	// The exporters.
	{name: "the console", env: map[string]string{"OTEL_TRACES_EXPORTER": "Console"}, set: map[string]string{"OTEL_TRACES_EXPORTER": "Console"}, spans: "console"},
	{name: "both", env: map[string]string{"OTEL_TRACES_EXPORTER": "otlp, console,otlp"}, spans: "otlp,console"},
	{name: "none", env: map[string]string{"OTEL_TRACES_EXPORTER": "none"}, set: map[string]string{"OTEL_TRACES_EXPORTER": "none"}, spans: "-"},
	{name: "none beside another", env: map[string]string{"OTEL_TRACES_EXPORTER": "none,otlp"}, complaint: "OTEL_TRACES_EXPORTER: none stands beside others", instead: "otlp is used"},
	{name: "an exporter that is gone", env: map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, complaint: `OTEL_TRACES_EXPORTER: "zipkin" is not one of otlp, console, none`, instead: "otlp is used"},
	{name: "a metric exporter that is not known", env: map[string]string{"OTEL_METRICS_EXPORTER": "statsd"}, needs: environmentNeeds{Metrics: true},
		set:       map[string]string{"OTEL_METRICS_EXPORTER": ""},
		complaint: `OTEL_METRICS_EXPORTER: "statsd" is not one of otlp, console, prometheus, none`, instead: "no exporter is used"},
	{name: "an interval with a unit", env: map[string]string{"OTEL_METRICS_EXPORTER": "console", "OTEL_METRIC_EXPORT_INTERVAL": "1m"}, needs: environmentNeeds{Metrics: true},
		set:       map[string]string{"OTEL_METRIC_EXPORT_INTERVAL": "", "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "true"},
		complaint: `OTEL_METRIC_EXPORT_INTERVAL: "1m" is no whole number of milliseconds`},
	{name: "a metric timeout of nothing", env: map[string]string{"OTEL_METRICS_EXPORTER": "console", "OTEL_METRIC_EXPORT_TIMEOUT": "0"}, needs: environmentNeeds{Metrics: true},
		set:       map[string]string{"OTEL_METRIC_EXPORT_TIMEOUT": "", "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "true"},
		complaint: `OTEL_METRIC_EXPORT_TIMEOUT: "0" is no whole number of milliseconds`},
	{name: "an exemplar filter", env: map[string]string{"OTEL_METRICS_EXPORTER": "console", "OTEL_METRICS_EXEMPLAR_FILTER": "with_sampled_trace"}, needs: environmentNeeds{Metrics: true},
		set:       map[string]string{"OTEL_METRICS_EXEMPLAR_FILTER": "", "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "true"},
		complaint: `OTEL_METRICS_EXEMPLAR_FILTER: "with_sampled_trace" is not one of`, instead: "trace_based is used"},
	{name: "a temporality", env: map[string]string{"OTEL_METRICS_EXPORTER": "console", "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "deltas"}, needs: environmentNeeds{Metrics: true},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "", "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "true"},
		complaint: `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: "deltas" is not one of`, instead: "cumulative is used"},
	{name: "an aggregation", env: map[string]string{"OTEL_METRICS_EXPORTER": "console", "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "x"}, needs: environmentNeeds{Metrics: true},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "", "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "true"},
		complaint: `OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION: "x" is not one of`},
	{name: "a port of Prometheus", env: map[string]string{"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "94640"}, needs: environmentNeeds{Metrics: true},
		set:       map[string]string{"OTEL_EXPORTER_PROMETHEUS_PORT": "", "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "true"},
		complaint: `OTEL_EXPORTER_PROMETHEUS_PORT: "94640" is no whole number`},
	{name: "a producer of metrics", env: map[string]string{"OTEL_METRICS_EXPORTER": "console", "OTEL_METRICS_PRODUCERS": "x"}, needs: environmentNeeds{Metrics: true},
		set:       map[string]string{"OTEL_METRICS_PRODUCERS": "", "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "true"},
		complaint: `OTEL_METRICS_PRODUCERS: "x" is not one of prometheus, none`},

	// OTLP.
	{name: "an endpoint", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}},
	{name: "an endpoint with TLS", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "HTTPS://collector:4318/otlp"}, set: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false"}},
	{name: "an endpoint of its own for traces", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://tempo:4318/v1/traces"}},
	{name: "a scheme that is against INSECURE", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_EXPORTER_OTLP_INSECURE": "false"}},
	{name: "INSECURE without an endpoint", env: map[string]string{"OTEL_EXPORTER_OTLP_INSECURE": "FALSE"},
		set: map[string]string{"OTEL_EXPORTER_OTLP_INSECURE": "false", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": ""}},
	{name: "no scheme, a name", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front", instead: "http://localhost:4318 is used"},
	{name: "no scheme, an address", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4318"}, set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front", instead: "http://127.0.0.1:4318 is used"},
	{name: "no scheme, IPv6", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "[::1]:4318"}, set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:4318"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front", instead: "http://[::1]:4318 is used"},
	{name: "no scheme, a name alone", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front"},
	{name: "no scheme, for traces", env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector:4318/v1/traces"}, set: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"},
		complaint: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: no http:// or https:// is in front", instead: "http://collector:4318/v1/traces is used"},
	{name: "no scheme, for gRPC", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
		set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front"},
	{name: "no scheme, for gRPC with TLS", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_INSECURE": "false"},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4317", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front", instead: "https://collector:4317 is used"},
	{name: "no scheme, the port of HTTPS", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "api.example.com:443"},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://api.example.com:443", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front"},
	{name: "no scheme, and a key that must not go in the clear", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "api.example.com:4318", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=hunter2"},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://api.example.com:4318", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front", instead: "https://api.example.com:4318 is used"},
	{name: "no scheme, and a key of one signal", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "api.example.com:4318", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "api-key=hunter2"},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://api.example.com:4318", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front", instead: "https://api.example.com:4318 is used"},
	{name: "another scheme", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "grpc://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
		set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: the scheme is neither http nor https"},
	{name: "a socket for gRPC", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "unix:///run/otel.sock", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}},
	{name: "quotes", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": `"http://collector:4318"`}, set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: the quotes are a part of the value", instead: "http://collector:4318 is used"},
	{name: "blanks", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": " http://collector:4318\n", "OTEL_TRACES_SAMPLER": " always_on ", "OTEL_EXPORTER_OTLP_TIMEOUT": "  "},
		set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_SAMPLER": "always_on", "OTEL_EXPORTER_OTLP_TIMEOUT": ""}},
	{name: "the path twice", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/v1/traces"}, set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: the exporter adds /v1/traces by itself", instead: "http://collector:4318 is used"},
	{name: "a port that is none", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:hunter2@collector:43180000"}, set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: it is no URL with a host", instead: "http://localhost:4318 is used"},
	{name: "no host", env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, set: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ""},
		complaint: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: it is no URL with a host", instead: "http://localhost:4317 is used"},
	{name: "a password", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "user:hunter2@collector:4318?key=hunter2"}, set: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:hunter2@collector:4318?key=hunter2"},
		complaint: "OTEL_EXPORTER_OTLP_ENDPOINT: no http:// or https:// is in front", instead: "http://collector:4318 is used"},
	{name: "an unknown protocol", env: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "http"}, set: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": ""},
		complaint: `OTEL_EXPORTER_OTLP_PROTOCOL: "http" is not one of http/protobuf, grpc`, instead: "http/protobuf is used"},
	{name: "a protocol that Go does not have", env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, set: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": ""},
		complaint: `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "http/json" is not one of`},
	{name: "a protocol in capitals", env: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "GRPC"}, set: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}},
	{name: "a compression", env: map[string]string{"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, set: map[string]string{"OTEL_EXPORTER_OTLP_COMPRESSION": ""},
		complaint: `OTEL_EXPORTER_OTLP_COMPRESSION: "zstd" is not one of gzip, none`, instead: "none is used"},
	{name: "INSECURE that is neither", env: map[string]string{"OTEL_EXPORTER_OTLP_INSECURE": "yes"}, set: map[string]string{"OTEL_EXPORTER_OTLP_INSECURE": ""},
		complaint: `OTEL_EXPORTER_OTLP_INSECURE: "yes" is not one of true, false`},
	{name: "a timeout with a unit", env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "10s"}, set: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": ""},
		complaint: `OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: "10s" is no whole number of milliseconds`},
	{name: "headers", env: map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b,x=y"}},
	{name: "a header as curl has it", env: map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "Authorization: Bearer hunter2"}, set: map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": ""},
		complaint: "OTEL_EXPORTER_OTLP_HEADERS: entry 1 has no ="},
	{name: "headers that cannot be", env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "api-key=a,bad key=hunter2,b=%0ahunter2,c=%zz,"}, set: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "api-key=a"},
		complaint: "OTEL_EXPORTER_OTLP_TRACES_HEADERS: entry 2 has no name of a header, entry 3 has a value that no header can have, entry 4 has a % that is no percent-encoding, entry 5 is empty"},
	{name: "a certificate that is not there", env: map[string]string{"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere.pem"}, set: map[string]string{"OTEL_EXPORTER_OTLP_CERTIFICATE": ""},
		complaint: "OTEL_EXPORTER_OTLP_CERTIFICATE: /nowhere.pem: no such file or directory", instead: "the system's certificate authorities are used"},
	{name: "a certificate that is none", env: map[string]string{"OTEL_EXPORTER_OTLP_CERTIFICATE": "text.pem"}, set: map[string]string{"OTEL_EXPORTER_OTLP_CERTIFICATE": ""},
		complaint: "OTEL_EXPORTER_OTLP_CERTIFICATE: the file holds no certificate in PEM"},
	{name: "a certificate without a key", env: map[string]string{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "client.pem"},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "", "OTEL_EXPORTER_OTLP_CLIENT_KEY": ""},
		complaint: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: OTEL_EXPORTER_OTLP_CLIENT_KEY is not set", instead: "no client certificate is used"},
	{name: "a key without a certificate", env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "client.key"},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE": "", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": ""},
		complaint: "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY: OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE is not set"},
	{name: "a key that is not there", env: map[string]string{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "client.pem", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/nowhere.key"},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "", "OTEL_EXPORTER_OTLP_CLIENT_KEY": ""},
		complaint: "OTEL_EXPORTER_OTLP_CLIENT_KEY: /nowhere.key: no such file or directory"},
	{name: "no pair", env: map[string]string{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "client.pem", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "text.pem"},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "", "OTEL_EXPORTER_OTLP_CLIENT_KEY": ""},
		complaint: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: it and OTEL_EXPORTER_OTLP_CLIENT_KEY are no pair"},
	{name: "a pair", env: map[string]string{"OTEL_EXPORTER_OTLP_CERTIFICATE": "client.pem", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "client.pem", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "client.key"}},
	{name: "no scheme, for metrics", env: map[string]string{"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "localhost:4318"}, needs: environmentNeeds{Metrics: true},
		set:       map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://localhost:4318", "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "true"},
		complaint: "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: no http:// or https:// is in front"},
}

func TestEachVariableThatCannotBeUsedIsNamedOnceAndReplaced(t *testing.T) {
	certificate, key := newClientCertificate(t, "collector's client")
	files := map[string][]byte{"client.pem": certificate, "client.key": key, "text.pem": []byte("no PEM")}
	readFile := func(name string) ([]byte, error) {
		if content, ok := files[name]; ok {
			return content, nil
		}
		return nil, &os.PathError{Op: "open", Path: name, Err: errors.New("no such file or directory")}
	}
	for _, c := range environmentCases {
		t.Run(c.name, func(t *testing.T) {
			got := readTelemetryEnvironment(c.needs, func(name string) string { return c.env[name] }, readFile)

			want := everySet()
			if c.needs.Metrics {
				want["OTEL_EXPORTER_OTLP_METRICS_INSECURE"] = "true"
			}
			maps.Copy(want, c.set)
			for name, value := range want {
				// What is what it was need not be set.
				if now, set := got.Set[name]; set && now != value || !set && c.env[name] != value {
					t.Errorf("%s becomes %q, want %q", name, now, value)
				}
			}
			for name, value := range got.Set {
				if _, ok := want[name]; !ok && c.env[name] != value {
					t.Errorf("%s becomes %q, want it as it is", name, value)
				}
			}

			switch {
			case c.complaint == "" && len(got.Complaints) > 0:
				t.Errorf("got the complaints %v, want none", got.Complaints)
			case c.complaint != "" && len(got.Complaints) != 1:
				t.Errorf("got the complaints %v, want one", got.Complaints)
			case c.complaint != "":
				if one := got.Complaints[0]; !strings.HasPrefix(one.String(), c.complaint) || c.instead != "" && one.Instead != c.instead || one.Instead == "" {
					t.Errorf("got  %s\nwant %s…; %s", one, c.complaint, c.instead)
				}
				if strings.Contains(got.Complaints[0].String(), "hunter2") {
					t.Errorf("the complaint tells a secret: %s", got.Complaints[0])
				}
			}
			spans := strings.Join(got.Spans, ",")
			if c.spans == "" && spans != "otlp" || c.spans == "-" && spans != "" || c.spans != "" && c.spans != "-" && spans != c.spans {
				t.Errorf("got the exporters %q, want %q", spans, c.spans)
			}
		})
	}
}

// Whatever the variables hold, the SDK starts, takes a span and ends, with nothing printed beside
// the complaints.
func TestNoVariableKeepsTheSDKFromStarting(t *testing.T) {
	for _, c := range environmentCases {
		t.Run(c.name, func(t *testing.T) {
			for _, entry := range os.Environ() {
				if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "OTEL_") {
					t.Setenv(name, "")
				}
			}
			// So that they are put back.
			for _, name := range []string{"OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_INSECURE", "OTEL_EXPORTER_OTLP_METRICS_INSECURE"} {
				t.Setenv(name, "")
			}
			for name, value := range c.set {
				t.Setenv(name, value)
			}
			for name, value := range c.env {
				t.Setenv(name, value)
			}
			t.Setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "127.0.0.1")
			o := telemetryOptions{ServiceName: "test", Console: new(bytes.Buffer), OnError: func(err error) {
				if !strings.Contains(err.Error(), "export") && !strings.Contains(err.Error(), "deadline") && !strings.Contains(err.Error(), "binding address") {
					t.Errorf("the SDK complains beside us: %v", err)
				}
			}}
			if c.needs.Metrics {
				o.Registry = prometheus.NewRegistry()
			}
			if c.needs.OwnSampler {
				o.MaxSampledRate = 1
			}
			telemetry, err := startTelemetry(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			_, span := telemetry.tracerProvider.Tracer("").Start(t.Context(), "span")
			span.End()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_ = telemetry.shutdown(ctx) // nobody listens
		})
	}
}

func TestADisabledSDKRecordsNothing(t *testing.T) {
	t.Setenv("OTEL_SDK_DISABLED", "TRUE")
	t.Setenv("OTEL_TRACES_EXPORTER", "pigeon")
	registry := prometheus.NewRegistry()
	telemetry, err := startTelemetry(t.Context(), telemetryOptions{ServiceName: "test", Registry: registry, OnError: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	if !telemetry.environment.Disabled || len(telemetry.environment.Complaints) > 0 {
		t.Errorf("got %+v", telemetry.environment)
	}
	_, span := telemetry.tracerProvider.Tracer("").Start(remote(1), "span")
	if span.IsRecording() || !span.SpanContext().IsSampled() {
		t.Errorf("got a span that records: %t, with the context %v; want the caller's", span.IsRecording(), span.SpanContext())
	}
	counter, err := telemetry.meterProvider.Meter("").Int64Counter("calls")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 1)
	if families, err := registry.Gather(); err != nil || len(families) > 0 {
		t.Errorf("got the metrics %v, %v", families, err)
	}
}

func TestSpansForTheConsoleDoNotGoToStandardOutput(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "console")
	var console bytes.Buffer
	telemetry, err := startTelemetry(t.Context(), telemetryOptions{ServiceName: "test", Console: &console, OnError: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	_, span := telemetry.tracerProvider.Tracer("").Start(t.Context(), "kubectl get")
	span.End()
	if err := telemetry.shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(console.String(), `"Name":"kubectl get"`) {
		t.Errorf("got %q", &console)
	}
}

// The endpoint that is used is the one that the complaint names.
func TestSpansArriveThoughTheSchemeWasForgotten(t *testing.T) {
	arrived := make(chan string, 1)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { arrived <- r.URL.Path }))
	defer collector.Close()
	t.Setenv("OTEL_TRACES_EXPORTER", "")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", strings.TrimPrefix(collector.URL, "http://"))
	telemetry, err := startTelemetry(t.Context(), telemetryOptions{ServiceName: "test", OnError: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	_, span := telemetry.tracerProvider.Tracer("").Start(t.Context(), "span")
	span.End()
	if err := telemetry.shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if path := <-arrived; path != "/v1/traces" {
		t.Errorf("the spans arrived at %s", path)
	}
}

// No stamps in a cluster because of a comma: that is what `serve` must not do.
func TestServeServesWhateverTheVariablesHold(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_RESOURCE_ATTRIBUTES":                     "team=a,",
		"OTEL_TRACES_SAMPLER":                          "sometimes",
		"OTEL_TRACES_EXPORTER":                         "",
		"OTEL_METRICS_EXPORTER":                        "statsd",
		"OTEL_EXPORTER_OTLP_PROTOCOL":                  "carrier-pigeon",
		"OTEL_EXPORTER_OTLP_TRACES_INSECURE":           "",
		"OTEL_EXPORTER_OTLP_METRICS_INSECURE":          "",
		"OTEL_BSP_MAX_QUEUE_SIZE":                      "-1",
		"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT":          "127.0.0.1:1",
		"OTEL_EXPORTER_OTLP_CERTIFICATE":               "/nowhere.pem",
		"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT":              "",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS":            "Authorization: Bearer hunter2",
		"OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY":         "/nowhere.key",
		"OTEL_METRICS_EXEMPLAR_FILTER":                 "",
		"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT":            "10s",
		"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT":           "",
		"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE":        "",
		"OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE":       "",
		"OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE": "",
	} {
		t.Setenv(name, value)
	}
	dir := t.TempDir()
	pool := issuePair(t, dir)
	s := startServe(t, dir)
	if answer, err := s.admit(pool); err != nil || !strings.Contains(answer, `"allowed":true`) || !strings.Contains(answer, `"patch"`) {
		t.Errorf("the answer is %s, %v", answer, err)
	}
	log := s.log.String()
	for _, name := range []string{"OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_BSP_MAX_QUEUE_SIZE"} {
		if strings.Count(log, `"variable":"`+name+`"`) != 1 {
			t.Errorf("the log does not name %s once:\n%s", name, log)
		}
	}
	if strings.Contains(log, "hunter2") {
		t.Errorf("the log tells a secret:\n%s", log)
	}
}

// FuzzAnyVariable puts anything into any variable. What is decided about it must be something that
// needs no further decision, is UTF-8, and tells nothing of the value where that may be a secret.
func FuzzAnyVariable(f *testing.F) {
	var names []string
	for _, c := range environmentCases {
		for name, value := range c.env {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			f.Add(uint(slices.Index(names, name)), value)
		}
	}
	slices.Sort(names)
	noFile := func(string) ([]byte, error) { return nil, errors.New("there is no file") }
	f.Fuzz(func(t *testing.T, which uint, value string) {
		name := names[which%uint(len(names))]
		env := map[string]string{"OTEL_METRICS_EXPORTER": "otlp", name: value}
		needs := environmentNeeds{Metrics: true}
		first := readTelemetryEnvironment(needs, func(name string) string { return env[name] }, noFile)
		maps.Copy(env, first.Set)
		second := readTelemetryEnvironment(needs, func(name string) string { return env[name] }, noFile)
		for _, c := range second.Complaints {
			// These are not changed, only not heeded.
			if c.Variable != "OTEL_PROPAGATORS" && c.Variable != "OTEL_CONFIG_FILE" && c.Variable != "OTEL_SDK_DISABLED" && c.Variable != "OTEL_METRICS_EXPORTER" && c.Variable != "OTEL_TRACES_EXPORTER" {
				t.Errorf("%s=%q becomes %q, and then: %s", name, value, env[name], c)
			}
		}
		secret := strings.HasSuffix(name, "HEADERS") || name == "OTEL_RESOURCE_ATTRIBUTES"
		for _, c := range first.Complaints {
			if secret && len(value) > 8 && strings.Contains(c.String(), value) {
				t.Errorf("the complaint about %s tells its value: %s", name, c)
			}
		}
		for _, endpoint := range []string{env["OTEL_EXPORTER_OTLP_ENDPOINT"], env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]} {
			if endpoint == "" || strings.HasPrefix(endpoint, "unix://") {
				continue
			}
			if u, err := url.Parse(endpoint); err != nil || u.Host == "" {
				t.Errorf("%s=%q becomes the endpoint %q", name, value, endpoint)
			}
		}
	})
}

// Without an SDK the webhook stores the request's own context: objects still lead to their cause.
func TestServeStampsWithTheSDKDisabled(t *testing.T) {
	t.Setenv("OTEL_SDK_DISABLED", "true")
	dir := t.TempDir()
	pool := issuePair(t, dir)
	s := startServe(t, dir)
	const own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+s.config.WebhookAddress+"/mutate?timeout=5s", strings.NewReader(review))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Traceparent", own)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "tracehook.tracehook-system.svc"}}}
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct{ Response struct{ Patch []byte } }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(answer.Response.Patch), own) {
		t.Errorf("the patch is %s, want %s in it", answer.Response.Patch, own)
	}
	if !strings.Contains(s.log.String(), "OTEL_SDK_DISABLED is true") {
		t.Errorf("the log does not say why there are no spans:\n%s", s.log)
	}
}
