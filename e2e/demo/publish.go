package main

// The end. In: the report. Out: trace.html, trace.json and report.md, and with KEEP=1 how
// to go on by hand. Errors: files that cannot be written.

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
)

// services in the order of their colours, the same in terminal and page.
var services = []string{"kubectl", "apiserver", "tracehook", "etcd", "tracehook-lifecycle", "hello", "kubelet", "containerd"}

func publish(s *stage, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("make the directory of the report: %w", err)
	}
	s.heading("The report")
	for _, file := range []struct {
		name  string
		write func(io.Writer, report.Report) error
		what  string
	}{
		{"trace.html", report.HTML, "open it in a browser: every span, its attributes and events"},
		{"trace.json", report.JSON, "the same as data"},
		{"report.md", report.Markdown, "the same to read and to share"},
	} {
		path := filepath.Join(out, file.name)
		if err := write(path, s.report, file.write); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		s.say("%-24s %s", path, file.what)
	}
	return nil
}

func write(path string, r report.Report, content func(io.Writer, report.Report) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := content(file, r); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

func (s *stage) explainHowToGoOn() {
	s.heading("Everything is left running until Ctrl-C")
	s.say(`
  export KUBECONFIG=%s
  export PATH=%s:$PATH
  export OTEL_EXPORTER_OTLP_ENDPOINT=http://%s OTEL_EXPORTER_OTLP_PROTOCOL=grpc
  tracehook trace --trace-url '%s/api/traces/{traceID}' -- kubectl create configmap mine

  Jaeger             %[4]s   (its query API; a Jaeger built from source has no web interface)
  Collector zpages   %[5]s
  tracehook metrics  %[6]s
  logs               %[7]s`,
		s.cluster.Kubeconfig, filepath.Dir(s.tracehook), s.cluster.CollectorGRPC, s.cluster.JaegerURL,
		s.cluster.ZPagesURL, s.webhook.MetricsURL, s.cluster.Logs)
}
