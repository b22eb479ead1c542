package cluster

import (
	"strings"
	"testing"
)

const someMetrics = `# TYPE apiserver_webhooks_x509_missing_san_total counter
apiserver_webhooks_x509_missing_san_total 4
# TYPE apiserver_webhooks_x509_insecure_sha1_total counter
apiserver_webhooks_x509_insecure_sha1_total 1
# TYPE apiserver_admission_webhook_request_total counter
apiserver_admission_webhook_request_total{code="200",name="trace-context.tracehook.dev",operation="CREATE",rejected="false",type="admit"} 5
apiserver_admission_webhook_request_total{code="503",name="trace-context.tracehook.dev",operation="CREATE",rejected="false",type="admit"} 2
apiserver_admission_webhook_request_total{code="200",name="somebody-elses.example.com",operation="CREATE",rejected="false",type="admit"} 100
# TYPE apiserver_admission_webhook_fail_open_count counter
apiserver_admission_webhook_fail_open_count{name="trace-context.tracehook.dev",type="admit"} 2
`

func TestCountersAddUpTheSeriesOfOurWebhookAlone(t *testing.T) {
	got, err := parseCounters(strings.NewReader(someMetrics))
	if err != nil {
		t.Fatal(err)
	}
	// The API server makes the rejection count with the first rejection.
	want := Counters{MissingSAN: 4, InsecureSHA1: 1, RequestTotal: 7, FailOpen: 2, Rejections: 0}
	if got != want {
		t.Errorf("counters are %+v, want %+v", got, want)
	}
}

func TestACounterThatWasRenamedIsNotZero(t *testing.T) {
	renamed := strings.ReplaceAll(someMetrics, "x509_missing_san_total", "x509_no_san_total")
	_, err := parseCounters(strings.NewReader(renamed))
	if err == nil || !strings.Contains(err.Error(), "no metric apiserver_webhooks_x509_missing_san_total") {
		t.Errorf("error is %v, want the missing metric's name", err)
	}
}
