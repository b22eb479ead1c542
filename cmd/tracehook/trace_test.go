package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// asKubectl makes this program a small kubectl: it finds its cluster as kubectl does,
// gets the paths in its arguments, prints what it got and the kubeconfig's directory.
const asKubectl = "TRACEHOOK_TEST_AS_KUBECTL"

func init() { //nolint:gochecknoinits // before TestMain reads the arguments, which are the command's here
	if os.Getenv(asKubectl) == "" {
		return
	}
	if err := actAsKubectl(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(3) // a code of its own, to see it passed through
}

func actAsKubectl(paths []string) error {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil)
	config, err := loader.ClientConfig()
	if err != nil {
		return err
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	seen := kubectlSaw{Arg0: os.Args[0], Namespace: namespace, Kubeconfig: os.Getenv("KUBECONFIG"), Cache: os.Getenv("KUBECACHEDIR"),
		Traceparent: os.Getenv("TRACEPARENT"), Other: os.Getenv("OTHER")}
	for _, path := range paths {
		response, err := client.Get(config.Host + path)
		if err != nil {
			return err
		}
		response.Body.Close()
		seen.Statuses = append(seen.Statuses, response.StatusCode)
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}

type kubectlSaw struct {
	Arg0, Namespace, Kubeconfig, Cache, Traceparent, Other string
	Statuses                                               []int
}

func waitForLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != want {
		t.Fatalf("got the line %q, %v, want %q", line, err, want)
	}
}

// runAsKubectl runs one command through everything but the flags.
func runAsKubectl(t *testing.T, provider trace.TracerProvider, kubeconfig *userKubeconfig, env []string, command ...string) (traceOutcome, kubectlSaw) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	answers := 0
	outcome, err := tracedRun{
		Command:        command,
		Executable:     self,
		Env:            append(env, asKubectl+"=1", "KUBECONFIG=/nowhere"),
		Stdout:         &stdout,
		Stderr:         &stderr,
		Kubeconfig:     kubeconfig,
		TracerProvider: provider,
		FirstAnswer:    func(*rest.Config) { answers++ },
		Random:         rand.Reader,
		Now:            time.Now,
	}.do(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if answers != 1 {
		t.Errorf("FirstAnswer ran %d times", answers)
	}
	var saw kubectlSaw
	if err := json.Unmarshal(stdout.Bytes(), &saw); err != nil {
		t.Fatalf("%v; the command wrote %q and %q", err, &stdout, &stderr)
	}
	return outcome, saw
}

func TestACommandIsOneSpanWithItsCallsBelow(t *testing.T) {
	_, config := startAPIServer(t, func(http.ResponseWriter, *http.Request) {})
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	outcome, saw := runAsKubectl(t, provider, oneCluster(config, "shop"), []string{"OTHER=kept"}, "/usr/bin/kubectl", "/api", "/api/v1/namespaces/shop/pods?labelSelector=hunter2")

	if outcome.ExitCode != 3 || outcome.Calls != 2 || outcome.Refused != 0 || !outcome.Sampled {
		t.Errorf("got %+v, want the exit code 3, two calls and a sampled trace", outcome)
	}
	if saw.Arg0 != "/usr/bin/kubectl" || saw.Namespace != "shop" || saw.Other != "kept" || !slices.Equal(saw.Statuses, []int{200, 200}) {
		t.Errorf("the command saw %+v", saw)
	}
	if directory := filepath.Dir(saw.Kubeconfig); filepath.Dir(saw.Cache) != directory {
		t.Errorf("the cache %s is not beside the kubeconfig %s", saw.Cache, saw.Kubeconfig)
	} else if _, err := os.Stat(directory); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", directory, err)
	}

	spans := recorder.Ended()
	slices.SortFunc(spans[:len(spans)-1], func(a, b sdktrace.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	if want := []string{"GET /api", "GET /api/v1/namespaces/{namespace}/pods", "kubectl"}; !slices.Equal(spanNames(spans), want) {
		t.Fatalf("got the spans %q, want %q", spanNames(spans), want)
	}
	root := spans[2]
	for _, call := range spans[:2] {
		if call.Parent().SpanID() != root.SpanContext().SpanID() || call.SpanKind() != trace.SpanKindClient {
			t.Errorf("%s is %s below %v, want client below %v", call.Name(), call.SpanKind(), call.Parent(), root.SpanContext())
		}
		if call.EndTime().After(root.EndTime()) || call.StartTime().Before(root.StartTime()) {
			t.Errorf("%s is not within the command's span", call.Name())
		}
	}
	if root.Parent().IsValid() || root.SpanKind() != trace.SpanKindInternal {
		t.Errorf("the root is %s below %v", root.SpanKind(), root.Parent())
	}
	if got := root.Status(); got.Code != codes.Error || got.Description != "exit code 3" {
		t.Errorf("the root's status is %v", got)
	}
	want := []attribute.KeyValue{attribute.String("process.executable.name", "kubectl"), attribute.Int("process.exit.code", 3)}
	if !slices.Equal(root.Attributes(), want) {
		t.Errorf("got the attributes %v\nwant %v", root.Attributes(), want)
	}
	if outcome.TraceID != root.SpanContext().TraceID() {
		t.Errorf("reported the trace %s, recorded %s", outcome.TraceID, root.SpanContext().TraceID())
	}
	if want := fmt.Sprintf("00-%s-%s-01", root.SpanContext().TraceID(), root.SpanContext().SpanID()); saw.Traceparent != want {
		t.Errorf("the command was given TRACEPARENT=%s, want %s", saw.Traceparent, want)
	}
}

func TestACommandContinuesTheTraceOfItsEnvironment(t *testing.T) {
	_, config := startAPIServer(t, func(http.ResponseWriter, *http.Request) {})
	for flags, sampled := range map[string]bool{"01": true, "00": false} {
		t.Run("flags "+flags, func(t *testing.T) {
			recorder := tracetest.NewSpanRecorder()
			provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
			env := []string{"TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-" + flags, "TRACESTATE=a=b"}
			outcome, saw := runAsKubectl(t, provider, oneCluster(config, "default"), env, "kubectl", "/api")
			if outcome.TraceID.String() != "0af7651916cd43dd8448eb211c80319c" || outcome.Sampled != sampled {
				t.Errorf("got the trace %s, sampled: %t", outcome.TraceID, outcome.Sampled)
			}
			if !strings.HasPrefix(saw.Traceparent, "00-0af7651916cd43dd8448eb211c80319c-") || strings.Contains(saw.Traceparent, "b7ad6b7169203331") || !strings.HasSuffix(saw.Traceparent, flags) {
				t.Errorf("the command was given TRACEPARENT=%s", saw.Traceparent)
			}
			spans := recorder.Ended()
			if !sampled {
				if len(spans) > 0 {
					t.Errorf("recorded %v of a trace that is not sampled", spanNames(spans))
				}
				return
			}
			if len(spans) != 2 || spans[1].Parent().SpanID().String() != "b7ad6b7169203331" || !spans[1].Parent().IsRemote() {
				t.Errorf("got the spans %v, the last below %v", spanNames(spans), spans[len(spans)-1].Parent())
			}
		})
	}
}
