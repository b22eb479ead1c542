package certs

// What API servers say of certificates themselves. In: their metrics and their audit
// log. Out: the four counters, and the hosts they blame. Errors: of reading.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CounterValue is a counter as an API server has it since its start.
type CounterValue struct {
	Name  Counter `json:"name"`
	Value int64   `json:"value"`
}

// ReadCounters picks the four from an API server's metrics. One that is missing is
// an error: it is there from the start, and 0 would be a lie.
func ReadCounters(metrics []byte) ([]CounterValue, error) {
	values := map[Counter]int64{}
	for line := range bytes.Lines(metrics) {
		name, value, found := strings.Cut(strings.TrimSpace(string(line)), " ")
		if !found || !slices.Contains(Counters(), Counter(name)) {
			continue
		}
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("read counter %s: %w", name, err)
		}
		values[Counter(name)] = int64(number)
	}
	var counters []CounterValue
	var missing []error
	for _, name := range Counters() {
		value, found := values[name]
		if !found {
			missing = append(missing, fmt.Errorf("the API server has no metric %s", name))
			continue
		}
		counters = append(counters, CounterValue{name, value})
	}
	return counters, errors.Join(missing...)
}

// Blame is a host that audit events name.
type Blame struct {
	Host string `json:"host"`
	// Code is MissingSAN or InsecureSHA1.
	Code     Code      `json:"code"`
	Requests int       `json:"requests"`
	Last     time.Time `json:"last"`
	// Targets that the API server knows by that host now. None: it was changed or removed since, or the host is an
	// address of before.
	Targets []string `json:"targets,omitempty"`
}

// blames are the audit annotations, which end in the host.
var blames = map[string]Code{
	"missing-san.invalid-cert.kubernetes.io/":   MissingSAN,
	"insecure-sha1.invalid-cert.kubernetes.io/": InsecureSHA1,
}

// ReadBlame reads an audit log, one JSON event a line. An event that is being written at the end is left out.
// The hosts are in the order of their names.
func ReadBlame(log io.Reader) ([]Blame, error) {
	type subject struct {
		host string
		code Code
	}
	found := map[subject]*Blame{}
	reader := bufio.NewReader(log)
	for number := 1; ; number++ {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read audit log: %w", err)
		}
		var event struct {
			Stage       string            `json:"stage"`
			Time        time.Time         `json:"requestReceivedTimestamp"`
			Annotations map[string]string `json:"annotations"`
		}
		if err := json.Unmarshal(line, &event); err != nil {
			return nil, fmt.Errorf("read audit log, line %d: %w", number, err)
		}
		if event.Stage == "RequestReceived" || event.Stage == "ResponseStarted" {
			continue // the same request comes again when it is over
		}
		for key := range event.Annotations {
			for prefix, code := range blames {
				host, ok := strings.CutPrefix(key, prefix)
				if !ok {
					continue
				}
				b := found[subject{host, code}]
				if b == nil {
					b = &Blame{Host: host, Code: code}
					found[subject{host, code}] = b
				}
				b.Requests++
				if event.Time.After(b.Last) {
					b.Last = event.Time
				}
			}
		}
	}
	var list []Blame
	for _, b := range found {
		list = append(list, *b)
	}
	slices.SortFunc(list, func(a, b Blame) int {
		return strings.Compare(a.Host+" "+string(a.Code), b.Host+" "+string(b.Code))
	})
	return list, nil
}

// Blame matches hosts of an audit log with the report's targets.
func (r *AuditReport) Blame(hosts []Blame) {
	r.Blamed = slices.Clone(hosts)
	for i := range r.Blamed {
		b := &r.Blamed[i]
		for _, t := range r.Targets {
			if b.Host == t.ServerName || slices.Contains(t.aliases, b.Host) {
				b.Targets = append(b.Targets, t.String())
			}
		}
	}
}
