package cluster

// Counters. In: the API server's /metrics. Out: those that tell whether webhooks and
// their certificates are well. Errors: of the request, or a counter that is not there
// any more.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// WebhookName is the name of tracehook's webhook in the shipped manifests, and its
// label in the API server's metrics.
const WebhookName = "trace-context.tracehook.dev"

// Counters count calls since the API server started. Read them before and after, and
// look at the difference.
type Counters struct {
	// For all webhooks together; the metrics have no labels.
	MissingSAN   int // apiserver_webhooks_x509_missing_san_total: a certificate was refused for having only a common name
	InsecureSHA1 int // apiserver_webhooks_x509_insecure_sha1_total

	// For tracehook's webhook alone.
	RequestTotal int // apiserver_admission_webhook_request_total: calls, also those that did not get through
	FailOpen     int // apiserver_admission_webhook_fail_open_count: calls that failed and were ignored
	Rejections   int // apiserver_admission_webhook_rejection_count
}

// Sub is what came since before.
func (c Counters) Sub(before Counters) Counters {
	return Counters{
		MissingSAN:   c.MissingSAN - before.MissingSAN,
		InsecureSHA1: c.InsecureSHA1 - before.InsecureSHA1,
		RequestTotal: c.RequestTotal - before.RequestTotal,
		FailOpen:     c.FailOpen - before.FailOpen,
		Rejections:   c.Rejections - before.Rejections,
	}
}

// Counters returns the counters of the first API server. Each API server counts for
// itself.
func (c *Cluster) Counters(ctx context.Context) (Counters, error) {
	return c.first.Counters(ctx)
}

// Counters reads the API server's counters. They are complete: a call is counted before
// the request that it belongs to is answered.
func (s *APIServer) Counters(ctx context.Context) (Counters, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/metrics", nil)
	if err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Counters{}, fmt.Errorf("read counters: %s", resp.Status)
	}
	return parseCounters(resp.Body)
}

func parseCounters(metrics io.Reader) (Counters, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(metrics)
	if err != nil {
		return Counters{}, fmt.Errorf("parse metrics: %w", err)
	}
	var missing []error
	// A metric without labels is there from the start: if it is not, it was renamed,
	// and 0 would be a lie.
	global := func(name string) int {
		if families[name] == nil {
			missing = append(missing, fmt.Errorf("the API server has no metric %s", name))
		}
		return sum(families[name], nil)
	}
	// One with labels is there from its first increment on.
	ours := func(name string) int {
		return sum(families[name], &dto.LabelPair{Name: new("name"), Value: new(WebhookName)})
	}
	return Counters{
		MissingSAN:   global("apiserver_webhooks_x509_missing_san_total"),
		InsecureSHA1: global("apiserver_webhooks_x509_insecure_sha1_total"),
		RequestTotal: ours("apiserver_admission_webhook_request_total"),
		FailOpen:     ours("apiserver_admission_webhook_fail_open_count"),
		Rejections:   ours("apiserver_admission_webhook_rejection_count"),
	}, errors.Join(missing...)
}

// sum adds up the series of a counter that carry the label; nil: all of them.
func sum(family *dto.MetricFamily, label *dto.LabelPair) int {
	total := 0.0
	for _, series := range family.GetMetric() {
		if label == nil || slices.ContainsFunc(series.GetLabel(), func(l *dto.LabelPair) bool {
			return l.GetName() == label.GetName() && l.GetValue() == label.GetValue()
		}) {
			total += series.GetCounter().GetValue()
		}
	}
	return int(total)
}
