//go:build linux

package nodes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/node"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// call is a call of kubelet's to containerd, both ends of it.
func call(name string, below ...tree.Want) tree.Want {
	return tree.Want{Service: "kubelet", Name: name, Kind: tracestore.KindClient, Descendant: true, Children: []tree.Want{
		{Service: "containerd", Name: name, Kind: tracestore.KindServer, Children: below},
	}}
}

func TestWhatKubeletAndContainerdDidForAPodIsFoundByItsUID(t *testing.T) {
	ctx := story.Within(t, patience)
	begin := time.Now()
	t.Cleanup(func() { kubectl(t, "delete", "pod/observed", "--grace-period=1", "--wait=false") })
	apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: observed}, spec: {containers: [{name: main, image: %q}]}}`, workloadImage))
	kubectl(t, "wait", "pod/observed", "--for=condition=Ready", "--timeout=150s")
	pod, err := shared.clients.CoreV1().Pods(metav1.NamespaceDefault).Get(ctx, "observed", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	trace, err := node.WaitStart(ctx, shared.JaegerURL, string(pod.UID))
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Match(trace, tree.Want{
		Service: "kubelet", Name: "syncPod", Attributes: map[string]any{"k8s.pod.uid": string(pod.UID), "k8s.pod.name": "observed", "k8s.namespace.name": "default"},
		Children: []tree.Want{
			call("runtime.v1.RuntimeService/RunPodSandbox"),
			call("runtime.v1.RuntimeService/CreateContainer"),
			call("runtime.v1.RuntimeService/StartContainer", tree.Want{Service: "containerd", Name: "task.Start", Descendant: true}),
		},
	}); err != nil {
		t.Error(err)
	}
	for _, span := range trace.Spans {
		if span.Service == "containerd" && span.Resource["k8s.node.name"] != pod.Spec.NodeName {
			t.Errorf("containerd's span %q is of node %v, want %s", span.Name, span.Resource["k8s.node.name"], pod.Spec.NodeName)
		}
	}

	// What it costs: the figures of deploy/nodes/README.md.
	traces, err := node.PodTraces(ctx, shared.JaegerURL, string(pod.UID))
	if err != nil {
		t.Fatal(err)
	}
	spans := 0
	for _, trace := range traces {
		spans += len(trace.Spans)
	}
	t.Logf("a Pod with one container: %d spans in the trace that starts it; %d in all %d traces of its first %.1f s", len(trace.Spans), spans, len(traces), time.Since(begin).Seconds())
}

// The demo's Job, with tracehook as it is shipped: the trace goes from the command to the program in the container.
func TestAJobIsOneTraceDownToTheProgramInItsContainer(t *testing.T) {
	install(t, "overlays/split")
	job, err := os.ReadFile(filepath.Join(shared.root, "e2e", "demo", "job.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "job.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(job), "localhost/workload:demo", workloadImage)), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kubectl(t, "delete", "job/hello", "--wait=false") })
	id := traced(t, "create", "-f", file)
	kubectl(t, "wait", "job/hello", "--for=condition=Complete", "--timeout=150s")
	client := tracestore.Client{BaseURL: shared.JaegerURL}
	if _, err := client.Wait(story.Within(t, patience), id, func(trace tracestore.Trace) error {
		return tree.Match(trace, tree.Want{
			Service: "kubectl", Kind: tracestore.KindInternal, Children: []tree.Want{
				{Service: "apiserver", Name: "Create", Descendant: true, Children: []tree.Want{
					{Service: "apiserver", Name: "Call mutating webhook", Children: []tree.Want{
						{Service: "tracehook", Name: "POST /mutate", Descendant: true, Children: []tree.Want{
							{Service: "hello", Name: "work"},
						}},
					}},
					{Service: "apiserver", Name: "Create etcd3", Children: []tree.Want{
						{Service: "etcd", Kind: tracestore.KindServer, Descendant: true},
					}},
				}},
			},
		})
	}); err != nil {
		t.Error(err)
	}
}
