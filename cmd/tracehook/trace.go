package main

// `trace`, from flags to exit code. In: a command line, the user's kubeconfig and
// the OTEL_* variables. Out: the command's own output and exit code, one trace, and
// on stderr that trace's id. Errors: exit 2 for flags that cannot be used, 127 and 126
// for a command that cannot be found or run. Whatever else fails, the command runs, past
// the proxy if need be, and is told why.

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/client-go/rest"
)

// Exit codes as a shell gives them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // plus the signal's number
)

const traceIDPlaceholder = "{traceID}"

type traceOptions struct {
	Kubeconfig   string        // "": KUBECONFIG, else ~/.kube/config, else the Pod's service account
	Context      string        // "": the kubeconfig's current context
	TraceURL     string        // "": no link; otherwise holds {traceID}
	FlushTimeout time.Duration // more than 0

	Store        storeFlags
	StoreTimeout time.Duration // more than 0
	Output       string        // "": tree on a terminal, none elsewhere
	Filters      bool          // draw each of the API server's filters
	Open         bool          // the page in the browser

	Follow        bool          // until what the command wrote is ready
	FollowTimeout time.Duration // more than 0
	WaitReady     bool          // exit code 1 where it does not become so
}

func (o traceOptions) validate() error {
	if o.TraceURL != "" && !strings.Contains(o.TraceURL, traceIDPlaceholder) {
		return fmt.Errorf("--trace-url %q: want %s in it", o.TraceURL, traceIDPlaceholder)
	}
	if o.FlushTimeout <= 0 {
		return fmt.Errorf("--flush-timeout %s: want more than 0", o.FlushTimeout)
	}
	if o.StoreTimeout <= 0 {
		return fmt.Errorf("--store-timeout %s: want more than 0", o.StoreTimeout)
	}
	if o.FollowTimeout <= 0 {
		return fmt.Errorf("--follow-timeout %s: want more than 0", o.FollowTimeout)
	}
	return nil
}

// output is what is to be shown on stderr.
func (o traceOptions) output(stderr io.Writer) (outputFormat, error) {
	switch {
	case o.Output != "":
		return parseOutput(o.Output)
	case isTerminal(stderr):
		return outputFormat{Form: "tree"}, nil
	}
	return outputFormat{Form: "none"}, nil
}

func newTraceCommand() *cobra.Command {
	var options traceOptions
	cmd := &cobra.Command{
		Use:   "trace [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command and make all it asks of the cluster one trace",
		Long: `Run any command that talks to the cluster (kubectl, helm, ...) and make all it asks
of the API server one trace.

The command gets a temporary kubeconfig with the contexts of yours. It points at a
proxy on the loopback interface that knows the real credentials, opens a span for
each API call and passes its trace context on. The command sees none of the real
credentials, the proxy serves nobody but the command, and both are gone when it
ends. A command that brings its own kubeconfig, server or credentials, or that
changes the kubeconfig, runs as it would alone and is not traced.

Spans hold the executable's name, its verb and the paths of the API calls, which
name objects; they never hold arguments, headers, queries or bodies. They go where
the OTEL_* environment variables say, by default to http://localhost:4318. A
TRACEPARENT variable makes the command part of the trace that it names.

When the command has ended, a terminal on stderr gets the trace as a tree. With
--store it is all of the trace, from the client to etcd; without, the command's own
calls. What the command prints, its exit code and the signals it gets stay as they are.

--follow then goes on until the Pods, Deployments, StatefulSets, DaemonSets and Jobs that
the command wrote are ready, have failed, or --follow-timeout is over: a line for each, and
for each Pod, with what it does and why it does not go on. --wait-ready makes a roll-out
that does not become ready exit code 1.`,
		Example: `  tracehook trace -- kubectl create -f pod.yaml
  tracehook trace --store jaeger=http://localhost:16686 -- helm install web ./chart
  tracehook trace --wait-ready --follow-timeout 2m -- kubectl rollout restart deployment/web
  tracehook trace -o html=trace.html -- kubectl apply -f shop.yaml`,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() != 0 {
				return usageError(errors.New("the command to run goes behind `--`: tracehook trace [flags] -- COMMAND [ARGUMENT...]"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			options.Follow = options.Follow || options.WaitReady
			if err := options.validate(); err != nil {
				return usageError(err)
			}
			return runTrace(cmd.Context(), options, args, os.Environ(), cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&options.Kubeconfig, "kubeconfig", "", "kubeconfig to take the credentials from (default: KUBECONFIG, else ~/.kube/config, else the Pod's service account)")
	f.StringVar(&options.Context, "context", "", "context of it (default: its current context)")
	f.StringVar(&options.TraceURL, "trace-url", "", "print a link to the trace; "+traceIDPlaceholder+" stands for its id")
	options.Store.bind(f)
	f.DurationVar(&options.StoreTimeout, "store-timeout", 3*time.Second, "how long to wait for the trace to arrive in the store")
	f.StringVarP(&options.Output, "output", "o", "", "`FORMAT` in which the trace is shown on stderr: tree, json, none or html=FILE (default: tree on a terminal, else none)")
	f.BoolVar(&options.Filters, "filters", false, "draw each filter of the API server, not all of them as one line")
	f.BoolVar(&options.Open, "open", false, "then show the trace in your browser (BROWSER), on a page served on the loopback interface until it is closed")
	f.BoolVar(&options.Follow, "follow", false, "go on until the Pods, Deployments, StatefulSets, DaemonSets and Jobs that the command wrote are ready or have failed")
	f.DurationVar(&options.FollowTimeout, "follow-timeout", 5*time.Minute, "how long to follow them")
	f.BoolVar(&options.WaitReady, "wait-ready", false, "follow them, and exit with 1 when the command succeeded and they do not become ready")
	f.DurationVar(&options.FlushTimeout, "flush-timeout", 5*time.Second, "how long the spans may take to be exported once the command has ended")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if isClusterFlag(err) {
			err = fmt.Errorf("%w: it is for the command, behind `--`", err)
		}
		return cmd.Parent().FlagErrorFunc()(cmd, err)
	})
	return cmd
}

// runTrace runs command and reports on stderr once it has ended: while it runs, the
// terminal is its own.
func runTrace(ctx context.Context, o traceOptions, command, env []string, stdin io.Reader, stdout, stderr io.Writer) error {
	output, err := o.output(stderr)
	if err != nil {
		return usageError(err)
	}
	store, err := o.Store.open(os.Getenv)
	if err != nil {
		return usageError(err)
	}
	executable, err := exec.LookPath(command[0])
	if err != nil {
		code := exitNotFound
		if errors.Is(err, fs.ErrPermission) {
			code = exitNotExecutable
		}
		return &exitError{code: code, err: fmt.Errorf("find the command: %w", err)}
	}
	chosen := pastProxy(command, env)
	past := chosen
	if o.Context != "" {
		past = "" // which can be had through the proxy only
	}
	var kubeconfig *userKubeconfig
	if past == "" {
		kubeconfig, err = loadKubeconfig(o.Kubeconfig, o.Context)
		if err != nil && (o.Kubeconfig != "" || o.Context != "") {
			return usageError(err)
		}
		if err != nil {
			past = err.Error()
		}
	}
	childEnv := env
	if past != "" && o.Kubeconfig != "" {
		childEnv = append(slices.Clone(env), "KUBECONFIG="+o.Kubeconfig)
	}

	var exportErrors firstError
	var own ownSpans
	telemetry, err := startTelemetry(ctx, telemetryOptions{
		ServiceName: executableName(command),
		Console:     stderr,
		OnError:     exportErrors.add,
		Processor:   &own,
	})
	if err != nil {
		return err
	}

	// From here on no signal ends this process before everything is put away.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, caughtSignals()...)
	defer signal.Stop(signals)

	var review parentageReview
	run := tracedRun{
		Command:        command,
		Executable:     executable,
		Env:            childEnv,
		Stdin:          stdin,
		Stdout:         stdout,
		Stderr:         stderr,
		Kubeconfig:     kubeconfig,
		Past:           past,
		TracerProvider: telemetry.tracerProvider,
		Signals:        signals,
		FirstAnswer:    func(config *rest.Config) { review.start(ctx, config) },
		Random:         rand.Reader,
		Now:            time.Now,
	}
	outcome, runErr := run.do(ctx)
	ending, stop := untilSignal(ctx, signals)
	defer stop()
	exportErrors.add(flush(ending, telemetry, o.FlushTimeout))
	if runErr != nil {
		return fmt.Errorf("trace %s: %w", executableName(command), runErr)
	}

	outcome.Past = cmp.Or(outcome.Past, chosen)
	outcome.Parentage = review.result()
	outcome.Environment = telemetry.environment
	outcome.ExportError = exportErrors.get()
	after := afterCommand{traceOptions: o, Output: output, Store: store, Own: &own, Stderr: stderr, Browser: os.Getenv("BROWSER"), Now: time.Now}
	notReady := after.tell(ending, outcome)
	if outcome.ExitCode != exitOK {
		return &exitError{code: outcome.ExitCode} // the command has said why
	}
	if o.WaitReady && (notReady || outcome.unseen()) {
		return &exitError{code: exitFailed}
	}
	return nil
}

// untilSignal is ctx until the next signal. It outlives the end of ctx: what is done after
// the command has limits of its own.
func untilSignal(ctx context.Context, signals <-chan os.Signal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// flush waits for the spans to be exported, and no longer than timeout.
func flush(ctx context.Context, t *telemetry, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return t.shutdown(ctx)
}

// tracedRun is one command run under one span.
type tracedRun struct {
	Command    []string // as the user wrote it, at least one element
	Executable string   // path of Command[0]
	Env        []string // the user's environment, KEY=VALUE
	Stdin      io.Reader
	Stdout     io.Writer
	Stderr     io.Writer

	Kubeconfig     *userKubeconfig // nil where Past says why
	Past           string          // why the command goes past the proxy; "": it does not
	TracerProvider trace.TracerProvider
	Signals        <-chan os.Signal
	FirstAnswer    func(*rest.Config) // runs once, when an API server has answered for the first time
	Random         io.Reader
	Now            func() time.Time
}

// do runs the command to its end, with everything it needs put up before and away
// after. An error is one of ours; the command's own failure is outcome.ExitCode.
func (run tracedRun) do(ctx context.Context) (outcome traceOutcome, err error) {
	ctx = propagation.TraceContext{}.Extract(ctx, environmentCarrier(run.Env))
	ctx, span := run.TracerProvider.Tracer(tracerName).Start(ctx, spanName(run.Command),
		trace.WithSpanKind(trace.SpanKindInternal),
		trace.WithAttributes(semconv.ProcessExecutableName(executableName(run.Command))),
	)
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, "tracehook could not run the command to its end")
		}
		span.End()
	}()
	outcome.Command = run.Command
	outcome.TraceID = span.SpanContext().TraceID()
	outcome.Sampled = span.SpanContext().IsSampled()

	outcome.Past = run.Past
	var way *proxyWay
	if outcome.Past == "" {
		if way, err = run.openWay(ctx); err != nil {
			// The command can do without us.
			outcome.Past = err.Error()
		} else {
			defer func() {
				way.close() // ends the spans of calls that are still open, before this one ends
				outcome.Wrote, outcome.WroteMore = way.proxy.seen.Roots()
			}()
		}
	}
	child := exec.CommandContext(ctx, run.Executable, run.Command[1:]...)
	child.Args[0] = run.Command[0]
	child.Stdin, child.Stdout, child.Stderr = run.Stdin, run.Stdout, run.Stderr
	child.Env = childEnvironment(ctx, run.Env, way.environment(run.Env))
	outcome.ExitCode, err = runChild(child, run.Signals)
	if err != nil {
		return outcome, fmt.Errorf("run the command: %w", err)
	}

	if way != nil {
		way.observe(&outcome)
	}
	span.SetAttributes(semconv.ProcessExitCode(outcome.ExitCode))
	if outcome.ExitCode != exitOK {
		span.SetStatus(codes.Error, fmt.Sprintf("exit code %d", outcome.ExitCode))
	}
	return outcome, nil
}

// firstError keeps the first of the errors that several goroutines meet: those that
// follow tend to repeat it. The zero value is ready.
type firstError struct {
	mu  sync.Mutex
	err error
}

func (f *firstError) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

func (f *firstError) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
