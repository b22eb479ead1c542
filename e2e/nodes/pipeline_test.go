//go:build linux

package nodes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/node"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// What overlays/kind installs for a first look: Collector and Jaeger are Pods too, and the spans of tracehook get there.
func TestSpansGetThroughTheShippedCollectorToTheShippedJaeger(t *testing.T) {
	importPipeline(t)
	text := render(t, "overlays/kind")
	begin := time.Now()
	apply(t, text)
	firstStamp(t)
	soon(t, begin)
	rolledOut(t, "otel-collector", "jaeger", "tracehook")
	quiet(t)
	stored(t)
}

// stored wants a span of tracehook's in the shipped Jaeger, from a Pod that it names.
func stored(t *testing.T) {
	t.Helper()
	made, err := shared.clients.CoreV1().Pods(metav1.NamespaceDefault).Create(story.Within(t, patience),
		examplePod(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	context := regexp.MustCompile("^00-([0-9a-f]{32})-").FindStringSubmatch(made.Annotations[stamp])
	if context == nil {
		t.Fatalf("the Pod is stamped %q", made.Annotations[stamp])
	}
	jaeger := pods(t, "app.kubernetes.io/name=jaeger")
	client := tracestore.Client{BaseURL: "http://" + jaeger[0].Status.PodIP + ":16686"}
	trace, err := client.Wait(story.Within(t, patience), context[1], func(trace tracestore.Trace) error {
		for _, span := range trace.Spans {
			if span.Service == "tracehook" {
				return nil
			}
		}
		return errors.New("no span of tracehook's has arrived")
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, span := range trace.Spans {
		if pod := fmt.Sprint(span.Resource["k8s.pod.name"]); span.Service == "tracehook" && pod == "<nil>" {
			t.Errorf("span %q does not say which Pod made it: %v", span.Name, span.Resource)
		}
	}
}

// importPipeline has all nodes know the Collector and Jaeger as the manifests name them.
func importPipeline(t *testing.T) {
	t.Helper()
	importProgram(t, "otelcol", filepath.Join(shared.root, "deploy", "components", "collector", "collector.yaml"))
	importProgram(t, "jaeger", filepath.Join(shared.root, "deploy", "components", "jaeger", "jaeger.yaml"))
}

// importProgram has all nodes know a program that the tests built as the image that a manifest names.
func importProgram(t *testing.T, program, manifest string) {
	t.Helper()
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	reference := regexp.MustCompile(`(?m)^ +image: (\S+)$`).FindSubmatch(text)
	if reference == nil {
		t.Fatalf("%s names no image", manifest)
	}
	path, err := shared.Binary(program)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), program+".tar")
	if err := node.PackBinary(file, path, string(reference[1])); err != nil {
		t.Fatal(err)
	}
	for _, n := range shared.nodes {
		if err := n.Import(story.Within(t, patience), file); err != nil {
			t.Fatal(err)
		}
	}
}
