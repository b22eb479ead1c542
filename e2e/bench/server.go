package main

// A variant as a process of its own. In: its settings as a line of JSON on standard
// input, then one line for each question. Out: its readings as a line of JSON for each
// line that came. It ends when standard input does, and so with whoever started it.

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// settings of a server.
type settings struct {
	Variant          string
	Certificate, Key []byte // PEM
	Collector        string // host:port, OTLP over gRPC
	Profile          string // file for a CPU profile; "": none
}

// reading is what a server says of itself: counters since its start.
type reading struct {
	Address   string // that it serves on
	CPU       time.Duration
	Mallocs   uint64
	Bytes     uint64
	Collected uint32 // garbage collections
	Spans     int64  // that came to the batch processor
	Lost      int64  // of these: its queue was full, or they could not be sent
}

func serve(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	runtime.GOMAXPROCS(1)
	in, out := bufio.NewScanner(stdin), json.NewEncoder(stdout)
	in.Buffer(nil, 1<<20)
	var set settings
	if !in.Scan() {
		return errors.New("no settings came")
	}
	if err := json.Unmarshal(in.Bytes(), &set); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	v, err := variantNamed(set.Variant)
	if err != nil {
		return err
	}
	certificate, err := tls.X509KeyPair(set.Certificate, set.Key)
	if err != nil {
		return fmt.Errorf("read serving certificate: %w", err)
	}
	log.SetLogger(logr.Discard()) // controller-runtime's would complain that it was not set
	spans, err := startSpans(ctx, v, set.Collector)
	if err != nil {
		return err
	}
	handler, err := v.handler(spans.tracers(), spans.meters)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/mutate", handler)
	server := http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 32 * time.Second, // as controller-runtime sets it
		IdleTimeout:       90 * time.Second,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		ErrorLog:          stdlog.New(os.Stderr, "", 0),
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ServeTLS(listener, "", "") }()

	if set.Profile != "" {
		file, err := os.Create(set.Profile)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	for in.Scan() {
		select {
		case err := <-failed:
			return err
		default:
		}
		r, err := spans.read(ctx)
		if err != nil {
			return err
		}
		r.Address = listener.Addr().String()
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return server.Close()
}

// spans is the OpenTelemetry SDK, set up as `tracehook serve` does it.
type spans struct {
	provider *sdktrace.TracerProvider // nil where the variant makes none
	meters   *sdkmetric.MeterProvider
	reader   *sdkmetric.ManualReader
}

func startSpans(ctx context.Context, v variant, collector string) (*spans, error) {
	// The SDK counts dropped spans where this is set, as it is in `tracehook serve`.
	if err := os.Setenv("OTEL_GO_X_OBSERVABILITY", "true"); err != nil {
		return nil, err
	}
	s := &spans{reader: sdkmetric.NewManualReader()}
	s.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(s.reader))
	otel.SetMeterProvider(s.meters)
	if v.batch == 0 {
		return s, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(collector), otlptracegrpc.WithInsecure())
	if err != nil {
		return nil, fmt.Errorf("set the exporter up: %w", err)
	}
	s.provider = sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter, sdktrace.WithMaxExportBatchSize(v.batch)),
		sdktrace.WithResource(resource.NewSchemaless(semconv.ServiceName("tracehook"))),
	)
	return s, nil
}

// tracers is nil, and not an interface that holds nil, where no spans are made.
func (s *spans) tracers() trace.TracerProvider {
	if s.provider == nil {
		return nil
	}
	return s.provider
}

// read first sends what spans there are: to send them is a part of what they cost.
func (s *spans) read(ctx context.Context) (reading, error) {
	if s.provider != nil {
		if err := s.provider.ForceFlush(ctx); err != nil {
			return reading{}, fmt.Errorf("flush spans: %w", err)
		}
	}
	var r reading
	var metrics metricdata.ResourceMetrics
	if err := s.reader.Collect(ctx, &metrics); err != nil {
		return reading{}, fmt.Errorf("read metrics: %w", err)
	}
	for _, scope := range metrics.ScopeMetrics {
		for _, m := range scope.Metrics {
			sum, ok := m.Data.(metricdata.Sum[int64])
			if !ok {
				continue
			}
			for _, point := range sum.DataPoints {
				_, failed := point.Attributes.Value(semconv.ErrorTypeKey)
				switch {
				case m.Name == "otel.sdk.processor.span.processed":
					r.Spans += point.Value
				case m.Name != "otel.sdk.exporter.span.exported":
					continue
				}
				if failed {
					r.Lost += point.Value
				}
			}
		}
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	r.Mallocs, r.Bytes, r.Collected = memory.Mallocs, memory.TotalAlloc, memory.NumGC
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return reading{}, fmt.Errorf("read processor time: %w", err)
	}
	r.CPU = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return r, nil
}
