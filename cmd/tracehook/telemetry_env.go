package main

// The OTEL_* variables, before the SDK reads them. In: the environment. Out: an environment that
// the SDK's parsers accept, and one complaint for each variable that had to be changed. Pure:
// applyTelemetryEnvironment is the only function that writes.
//
// The SDK ignores some bad values, logs others by itself, hangs or panics on a few, and refuses to
// start on the rest. None of that may keep a command or a webhook from running.
// Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
// https://opentelemetry.io/docs/specs/otel/protocol/exporter/.

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
)

// telemetryComplaint says what is wrong with one variable. It holds no value of a variable that
// may be a secret.
type telemetryComplaint struct {
	Variable string
	Problem  string
	Instead  string // what is used
}

func (c telemetryComplaint) String() string {
	return fmt.Sprintf("%s: %s; %s", c.Variable, c.Problem, c.Instead)
}

// telemetryEnvironment is what was decided about the environment.
type telemetryEnvironment struct {
	Disabled   bool              // OTEL_SDK_DISABLED: no span, no metric
	Spans      []string          // span exporters: "otlp", "console"; none: nothing is exported
	Metrics    []string          // the same for metrics that are pushed, and "prometheus"
	Set        map[string]string // variables to change; "" stands for "not set"
	Complaints []telemetryComplaint
}

// environmentNeeds is what the program asks of the environment.
type environmentNeeds struct {
	Metrics    bool // false: the variables of metrics are of no interest
	OwnSampler bool // true: OTEL_TRACES_SAMPLER is not heeded, --max-sampled-rate brings a sampler
}

// readTelemetryEnvironment goes through the variables. get is os.Getenv: by the specification an
// empty variable is one that is not set. readFile is os.ReadFile.
func readTelemetryEnvironment(needs environmentNeeds, get func(string) string, readFile func(string) ([]byte, error)) telemetryEnvironment {
	r := environmentReader{get: get, readFile: readFile, set: map[string]string{}}
	out := telemetryEnvironment{Set: r.set}
	switch disabled := strings.ToLower(strings.TrimSpace(get("OTEL_SDK_DISABLED"))); disabled {
	case "true":
		out.Disabled = true
		return out
	case "", "false":
	default:
		r.complain("OTEL_SDK_DISABLED", fmt.Sprintf("%q is neither true nor false", disabled), "false is used")
	}
	for _, name := range []string{"OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE"} {
		if get(name) != "" {
			r.complain(name, "tracehook reads no configuration file", "the other OTEL_* variables are used")
		}
	}
	if names := splitList(get("OTEL_PROPAGATORS")); len(names) > 0 && !slices.Contains(names, "tracecontext") {
		r.complain("OTEL_PROPAGATORS", "the API server speaks W3C Trace Context", "tracecontext is used")
	}

	r.resource()
	r.sampler(needs.OwnSampler)
	r.processor()
	for _, name := range []string{
		"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT",
		"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
		"OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT",
		"OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
	} {
		r.number(name, 0, maxInt32, "")
	}

	out.Spans = r.exporters("OTEL_TRACES_EXPORTER", []string{"otlp", "console"}, "otlp")
	if slices.Contains(out.Spans, "otlp") {
		r.set["OTEL_TRACES_EXPORTER"] = "otlp" // autoexport takes one name, and is asked for this one only
	}
	signals := []string{"", "TRACES_"}
	if needs.Metrics && get("OTEL_METRICS_EXPORTER") != "" {
		out.Metrics = r.exporters("OTEL_METRICS_EXPORTER", []string{"otlp", "console", "prometheus"}, "")
		signals = append(signals, "METRICS_")
		r.metrics()
	}
	r.otlp(signals)
	out.Complaints = r.complaints
	return out
}

// applyTelemetryEnvironment changes this process's environment, which the SDK reads.
func applyTelemetryEnvironment(set map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if err := os.Setenv(name, set[name]); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

const (
	maxInt32 = 1<<31 - 1
	// maxQueuedSpans bounds the queue and the batch: the SDK allocates both at once.
	maxQueuedSpans = 1 << 20

	defaultUsed = "the default is used"
)

type environmentReader struct {
	get        func(string) string
	readFile   func(string) ([]byte, error)
	set        map[string]string
	complaints []telemetryComplaint
}

func (r *environmentReader) complain(name, problem, instead string) {
	r.complaints = append(r.complaints, telemetryComplaint{Variable: name, Problem: problem, Instead: instead})
}

// now is the variable's value with what was decided so far.
func (r *environmentReader) now(name string) string {
	if value, changed := r.set[name]; changed {
		return value
	}
	return r.get(name)
}

// value gives the variable to parse, which returns what the SDK is to read. Blanks around it go
// without a word; quotes around it, which some env files keep, with one. Where parse finds a
// problem the variable is cleared. An empty instead means defaultUsed.
func (r *environmentReader) value(name, instead string, parse func(string) (use, problem string)) {
	raw := r.now(name)
	trimmed := strings.TrimSpace(raw)
	if trimmed == "" {
		if raw != "" {
			r.set[name] = ""
		}
		return
	}
	use, problem := parse(trimmed)
	if problem != "" {
		if unquoted := strings.TrimSpace(strings.Trim(trimmed, `"'`)); unquoted != trimmed && unquoted != "" {
			if unquotedUse, still := parse(unquoted); still == "" {
				r.set[name] = unquotedUse
				r.complain(name, "the quotes are a part of the value", "it is used without them")
				return
			}
		}
		if instead == "" {
			instead = defaultUsed
		}
		r.complain(name, problem, instead)
	}
	if use != raw {
		r.set[name] = use
	}
}

// oneOf is a parser for words, in any case, of which the SDK knows the lower one.
func oneOf(words ...string) func(string) (use, problem string) {
	return func(value string) (use, problem string) {
		if lower := strings.ToLower(value); slices.Contains(words, lower) {
			return lower, ""
		}
		return "", fmt.Sprintf("%q is not one of %s", value, strings.Join(words, ", "))
	}
}

// number is a variable with a whole number from lowest to highest. unit may be "".
func (r *environmentReader) number(name string, lowest, highest int, unit string) {
	r.value(name, "", func(value string) (use, problem string) {
		n, err := strconv.Atoi(value)
		if err != nil || n < lowest || n > highest {
			return "", fmt.Sprintf("%q is no whole number%s from %d to %d", value, unit, lowest, highest)
		}
		return strconv.Itoa(n), ""
	})
}

const milliseconds = " of milliseconds"

// resource keeps the entries of OTEL_RESOURCE_ATTRIBUTES that can be read.
func (r *environmentReader) resource() {
	name := "OTEL_RESOURCE_ATTRIBUTES"
	r.list(name, func(key, value string) (use, problem string) {
		if key == "" {
			return "", "has no key"
		}
		text, err := url.PathUnescape(value)
		if err != nil {
			return key + "=" + url.PathEscape(strings.ToValidUTF8(value, "")), "has a % that is no percent-encoding and is taken as it is"
		}
		if !utf8.ValidString(key) || !utf8.ValidString(text) {
			return "", "is not UTF-8" // it would cost every batch of spans
		}
		return key + "=" + value, ""
	})
	if service := r.get("OTEL_SERVICE_NAME"); !utf8.ValidString(service) {
		r.set["OTEL_SERVICE_NAME"] = strings.ToValidUTF8(service, "")
		r.complain("OTEL_SERVICE_NAME", "it is not UTF-8", "the rest of it is used")
	}
}

// list goes through KEY=VALUE,KEY=VALUE. check returns the entry to keep, "" for none. The complaint
// names entries by number: a value may be a secret.
func (r *environmentReader) list(name string, check func(key, value string) (use, problem string)) {
	raw := r.now(name)
	if strings.TrimSpace(raw) == "" {
		return
	}
	var kept, problems []string
	changed := false
	for i, entry := range strings.Split(raw, ",") {
		key, value, found := strings.Cut(entry, "=")
		var use, problem string
		switch {
		case strings.TrimSpace(entry) == "":
			problem = "is empty"
		case !found:
			problem = "has no ="
		default:
			use, problem = check(strings.TrimSpace(key), strings.TrimSpace(value))
		}
		if problem != "" {
			changed = true
			problems = append(problems, fmt.Sprintf("entry %d %s", i+1, problem))
		}
		if use != "" {
			kept = append(kept, use)
		}
	}
	if !changed {
		return
	}
	r.set[name] = strings.Join(kept, ",")
	r.complain(name, strings.Join(problems, ", "), "the rest of it is used")
}

func (r *environmentReader) sampler(own bool) {
	const name, argument = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
	if own && strings.TrimSpace(r.get(name)) != "" {
		r.complain(name, "--max-sampled-rate brings the only sampler", "the variable is not heeded")
		r.set[name], r.set[argument] = "", ""
		return
	}
	r.value(name, "parentbased_always_on is used", oneOf("always_on", "always_off", "traceidratio",
		"parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"))
	if !strings.HasSuffix(r.now(name), "traceidratio") {
		return // no other sampler has an argument
	}
	r.value(argument, "1 is used", func(value string) (use, problem string) {
		if ratio, err := strconv.ParseFloat(value, 64); err != nil || !(ratio >= 0 && ratio <= 1) { // NaN is neither
			return "", fmt.Sprintf("%q is no number from 0 to 1", value)
		}
		return value, ""
	})
}

// processor reads what belongs to the batch span processor.
func (r *environmentReader) processor() {
	r.number("OTEL_BSP_SCHEDULE_DELAY", 1, maxInt32, milliseconds) // 0 would keep a processor busy
	r.number("OTEL_BSP_EXPORT_TIMEOUT", 0, maxInt32, milliseconds)
	const queue, batch = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
	r.number(queue, 1, maxQueuedSpans, "")
	r.number(batch, 1, maxQueuedSpans, "")
	size := 2048
	if n, err := strconv.Atoi(r.now(queue)); err == nil {
		size = n
	}
	switch n, err := strconv.Atoi(r.now(batch)); {
	case err == nil && n > size:
		r.set[batch] = strconv.Itoa(size)
		r.complain(batch, fmt.Sprintf("%d is more than the queue of %d holds (%s)", n, size, queue), fmt.Sprintf("%d is used", size))
	case err != nil && size < maxExportBatchSize:
		r.set[batch] = strconv.Itoa(size) // our own default would not fit
	}
}

// exporters reads a list of exporters. fallback is what the default is; "" is none.
func (r *environmentReader) exporters(name string, known []string, fallback string) []string {
	var chosen []string
	if fallback != "" {
		chosen = []string{fallback}
	}
	instead := "no exporter is used"
	if fallback != "" {
		instead = fallback + " is used"
	}
	r.value(name, instead, func(value string) (use, problem string) {
		names := splitList(value)
		var list []string
		for _, n := range names {
			switch {
			case n == "none":
			case !slices.Contains(known, n):
				return "", fmt.Sprintf("%q is not one of %s, none", n, strings.Join(known, ", "))
			case !slices.Contains(list, n):
				list = append(list, n)
			}
		}
		if len(names) > 1 && slices.Contains(names, "none") && len(list) > 0 {
			return "", "none stands beside others"
		}
		chosen = list
		return value, ""
	})
	return chosen
}

func splitList(value string) []string {
	var out []string
	for _, word := range strings.Split(value, ",") {
		if word = strings.ToLower(strings.TrimSpace(word)); word != "" {
			out = append(out, word)
		}
	}
	return out
}

func (r *environmentReader) metrics() {
	r.number("OTEL_METRIC_EXPORT_INTERVAL", 1, maxInt32, milliseconds)
	r.number("OTEL_METRIC_EXPORT_TIMEOUT", 1, maxInt32, milliseconds)
	r.value("OTEL_METRICS_EXEMPLAR_FILTER", "trace_based is used", oneOf("always_on", "always_off", "trace_based"))
	r.value("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "cumulative is used", oneOf("cumulative", "delta", "lowmemory"))
	r.value("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram is used",
		oneOf("explicit_bucket_histogram", "base2_exponential_bucket_histogram"))
	r.number("OTEL_EXPORTER_PROMETHEUS_PORT", 0, 1<<16-1, "")
	for _, producer := range splitList(r.get("OTEL_METRICS_PRODUCERS")) {
		if producer != "prometheus" && producer != "none" {
			r.complain("OTEL_METRICS_PRODUCERS", fmt.Sprintf("%q is not one of prometheus, none", producer), "the variable is not heeded")
			r.set["OTEL_METRICS_PRODUCERS"] = ""
			break
		}
	}
}

// otlp reads the exporter's variables, each for all signals ("") and for one.
func (r *environmentReader) otlp(signals []string) {
	variable := func(signal, name string) string { return "OTEL_EXPORTER_OTLP_" + signal + name }
	for _, signal := range signals {
		r.value(variable(signal, "PROTOCOL"), "http/protobuf is used", oneOf("http/protobuf", "grpc"))
		r.value(variable(signal, "COMPRESSION"), "none is used", oneOf("gzip", "none"))
		r.value(variable(signal, "INSECURE"), "", oneOf("true", "false"))
		r.number(variable(signal, "TIMEOUT"), 0, maxInt32, milliseconds)
		r.list(variable(signal, "HEADERS"), checkHeader)
		r.certificates(variable(signal, "CERTIFICATE"), variable(signal, "CLIENT_CERTIFICATE"), variable(signal, "CLIENT_KEY"))
	}
	of := func(signal, name string) string { // the signal's own variable, or that of all
		if own := r.now(variable(signal, name)); own != "" {
			return own
		}
		return r.now(variable("", name))
	}
	for _, signal := range signals {
		facts := endpointFacts{
			grpc:     of(signal, "PROTOCOL") == "grpc",
			secrets:  of(signal, "HEADERS") != "",
			insecure: of(signal, "INSECURE"),
			all:      signal == "",
		}
		if facts.all { // to this endpoint go the headers of each signal
			for _, s := range signals {
				facts.secrets = facts.secrets || r.now(variable(s, "HEADERS")) != ""
				if r.now(variable(s, "INSECURE")) == "false" {
					facts.insecure = "false"
				}
			}
		}
		instead := "http://localhost:4318 is used"
		if facts.grpc {
			instead = "http://localhost:4317 is used"
		}
		name := variable(signal, "ENDPOINT")
		raw := strings.TrimSpace(r.get(name))
		r.value(name, instead, func(value string) (use, problem string) { return checkEndpoint(value, facts) })
		// A complaint with a remedy: the address as it is used now.
		if last := len(r.complaints) - 1; last >= 0 && r.complaints[last].Variable == name && raw != "" && r.now(name) != "" {
			r.complaints[last].Instead = withoutSecrets(r.now(name)) + " is used"
		}
	}
	// The scheme decides about TLS, and the default is a Collector on localhost without it. Go's
	// exporters would speak TLS to that one, and let INSECURE overrule a scheme.
	for _, signal := range signals {
		if signal == "" {
			continue
		}
		insecure := variable(signal, "INSECURE")
		switch endpoint := of(signal, "ENDPOINT"); {
		case endpoint != "":
			r.set[insecure] = strconv.FormatBool(!strings.HasPrefix(strings.ToLower(endpoint), "https://"))
		case of(signal, "INSECURE") == "":
			r.set[insecure] = "true"
		}
	}
}

func checkHeader(name, value string) (use, problem string) {
	if !httpguts.ValidHeaderFieldName(name) {
		return "", "has no name of a header"
	}
	text, err := url.PathUnescape(value)
	if err != nil {
		return "", "has a % that is no percent-encoding"
	}
	if !httpguts.ValidHeaderFieldValue(text) {
		return "", "has a value that no header can have"
	}
	return name + "=" + value, ""
}

// certificates checks that the files can be used. What cannot is left out: the connection then
// fails where it has to.
func (r *environmentReader) certificates(ca, certificate, key string) {
	r.value(ca, "the system's certificate authorities are used", func(file string) (use, problem string) {
		content, err := r.readFile(file)
		if err != nil {
			return "", fileProblem(err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(content) {
			return "", "the file holds no certificate in PEM"
		}
		return file, ""
	})
	certificateFile, keyFile := strings.TrimSpace(r.get(certificate)), strings.TrimSpace(r.get(key))
	if certificateFile == "" && keyFile == "" {
		return
	}
	drop := func(name, problem string) {
		r.set[certificate], r.set[key] = "", ""
		r.complain(name, problem, "no client certificate is used")
	}
	switch {
	case certificateFile == "":
		drop(key, certificate+" is not set")
		return
	case keyFile == "":
		drop(certificate, key+" is not set")
		return
	}
	certificatePEM, err := r.readFile(certificateFile)
	if err != nil {
		drop(certificate, fileProblem(err))
		return
	}
	keyPEM, err := r.readFile(keyFile)
	if err != nil {
		drop(key, fileProblem(err))
		return
	}
	if _, err := tls.X509KeyPair(certificatePEM, keyPEM); err != nil {
		drop(certificate, fmt.Sprintf("it and %s are no pair: %v", key, err))
		return
	}
	r.set[certificate], r.set[key] = certificateFile, keyFile // without the blanks
}

// fileProblem is an error of reading a file, without the operation.
func fileProblem(err error) string {
	var path *os.PathError
	if errors.As(err, &path) {
		return fmt.Sprintf("%s: %v", path.Path, path.Err)
	}
	return err.Error()
}

type endpointFacts struct {
	grpc     bool
	secrets  bool   // headers go along
	insecure string // "true", "false" or ""
	all      bool   // the endpoint of all signals, below which the exporter adds a path for each
}

// checkEndpoint returns the URL to use: as it is, with the scheme that was forgotten, without the
// path that the exporter adds; "" where there is no host in it.
func checkEndpoint(value string, f endpointFacts) (use, problem string) {
	scheme, rest, found := strings.Cut(value, "://")
	switch lower := strings.ToLower(scheme); {
	case !found:
		problem, rest = "no http:// or https:// is in front", value
	case lower == "http" || lower == "https":
		scheme = lower
	case lower == "unix" && f.grpc:
		return value, ""
	default:
		problem, found = "the scheme is neither http nor https", false
	}
	if !found {
		scheme = f.scheme(rest)
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil || u.Host == "" || !validPort(u.Port()) {
		return "", "it is no URL with a host" // not err: it holds the value, and that may hold a password
	}
	if f.all && !f.grpc {
		for _, path := range []string{"/v1/traces", "/v1/metrics", "/v1/logs"} {
			if shorter, ends := strings.CutSuffix(strings.TrimSuffix(u.Path, "/"), path); ends {
				u.Path, u.RawPath = shorter, ""
				if problem == "" {
					problem = "the exporter adds " + path + " by itself"
				}
			}
		}
	}
	if problem == "" {
		return value, ""
	}
	return u.String(), problem
}

// scheme is the one that was forgotten. Who has nothing to hide from the network gets what a
// Collector speaks as it is shipped.
func (f endpointFacts) scheme(address string) string {
	u, err := url.Parse("http://" + address)
	if err != nil {
		return "http"
	}
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	switch {
	case f.insecure == "false", u.Port() == "443", f.insecure == "" && f.secrets && !loopback:
		return "https"
	}
	return "http"
}

func validPort(port string) bool {
	if port == "" {
		return true
	}
	n, err := strconv.Atoi(port)
	return err == nil && n > 0 && n < 1<<16
}

// withoutSecrets is the part of a URL that can be shown.
func withoutSecrets(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return "another address"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
