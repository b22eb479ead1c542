// Workload is the program in the Pods of the tests and the demo.
//
//	workload         waits for a signal, as the pause image does
//	workload work    works a moment under the trace context of its environment, and ends
//	workload serve   the same, and waits for a signal
//	workload echo    answers each line of its standard input with "you said" and the line
//	workload web     answers each HTTP request on port 8080 with the request's body, until a signal
//
// In: TRACEPARENT and TRACESTATE, as tracehook injects them, and OTEL_* of the OpenTelemetry SDK. Out: one span, and a
// line of JSON that says what the environment held. Errors: on stderr, with exit code 1.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/contrib/propagators/envcar"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch {
	case len(args) == 0:
	case args[0] == "work":
		return work(ctx, stdout)
	case args[0] == "echo":
		return echo(stdin, stdout)
	case args[0] == "web":
		return web(ctx)
	case args[0] == "serve":
		if err := work(ctx, stdout); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown command %q: there are work, serve, echo and web", args[0])
	}
	<-ctx.Done()
	return nil
}

func echo(stdin io.Reader, stdout io.Writer) error {
	lines := bufio.NewScanner(stdin)
	for lines.Scan() {
		if _, err := fmt.Fprintln(stdout, "you said", lines.Text()); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read a line: %w", err)
	}
	return nil
}

func web(ctx context.Context) error {
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body) // who hangs up has had enough
	})}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// Seen is what a program's environment says of its trace.
type Seen struct {
	Traceparent string `json:"traceparent"`
	Tracestate  string `json:"tracestate"`
}

func work(ctx context.Context, stdout io.Writer) (err error) {
	if err := json.NewEncoder(stdout).Encode(Seen{os.Getenv("TRACEPARENT"), os.Getenv("TRACESTATE")}); err != nil {
		return fmt.Errorf("write what was seen: %w", err)
	}
	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return fmt.Errorf("make exporter: %w", err)
	}
	described, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil {
		return fmt.Errorf("describe this program: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter), sdktrace.WithResource(described))
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, provider.Shutdown(flush))
	}()
	ctx = propagation.TraceContext{}.Extract(ctx, &envcar.Carrier{})
	_, span := provider.Tracer("github.com/tracehook/tracehook/e2e/workload").Start(ctx, "work", trace.WithSpanKind(trace.SpanKindInternal))
	time.Sleep(20 * time.Millisecond)
	span.End()
	return nil
}
