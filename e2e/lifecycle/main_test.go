// Package lifecycle tests `tracehook lifecycle` on a control plane that does not trace, as managed ones: real API server,
// controllers and scheduler. There are no nodes: what a kubelet writes is written by the test.
package lifecycle

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

var shared struct {
	*cluster.Cluster
	clients   *kubernetes.Clientset
	tracehook string // path of the binary
}

func TestMain(m *testing.M) {
	o := cluster.Options{Controllers: true, Untraced: true}
	if many() {
		o = cluster.Options{NoTraces: true} // the machine is for what is measured
	}
	os.Exit(story.Run(m, o, install))
}

func install(ctx context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.tracehook, err = c.Binary("tracehook"); err != nil {
		return err
	}
	config := rest.CopyConfig(c.RESTConfig)
	config.QPS = -1
	config.ContentType = "application/vnd.kubernetes.protobuf"
	if shared.clients, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	certs := filepath.Join(c.Dir, "serving-certs")
	bundle, err := certificates.Issue(ctx, shared.tracehook, certificates.Service, certs)
	if err != nil {
		return err
	}
	webhook, err := c.StartWebhook(ctx, cluster.WebhookOptions{CertDir: certs})
	if err != nil {
		return err
	}
	if err := c.InstallWebhookWith(ctx, cluster.InstallOptions{Port: webhook.Port, CABundle: bundle, Components: []string{"lifecycle"}}); err != nil {
		return err
	}
	// The process stands in for the pods.
	_, err = c.Kubectl(ctx, "-n", "tracehook-system", "delete", "deployment/tracehook-lifecycle")
	return err
}

// teller is a running `tracehook lifecycle`, with the rights that the manifests give.
type teller struct {
	*cluster.Program
	health, metrics string // URLs
}

// start starts one and waits until it leads and has read everything. To a sink that is nil it says what the cluster's Collector gets.
func start(t *testing.T, name string, to *sink, args ...string) *teller {
	t.Helper()
	ports := make([]string, 2)
	for i := range ports {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = listener.Addr().String()
		listener.Close()
	}
	env := []string{"POD_NAME=" + name, "GOMEMLIMIT=220MiB"} // as shipped
	if to != nil {
		env = append(env, "OTEL_SDK_DISABLED=false", "OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+to.address, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
	}
	l := &teller{health: "http://" + ports[0], metrics: "http://" + ports[1] + "/metrics"}
	var err error
	l.Program, err = shared.StartTracehook(story.Within(t, limit), cluster.TracehookOptions{
		Args: append([]string{"lifecycle", "--health-probe-bind-address=" + ports[0], "--metrics-bind-address=" + ports[1]}, args...),
		Env:  env, Name: name, ServiceAccount: "tracehook-lifecycle",
		Ready: func(ctx context.Context) error { return leads(ctx, l.health, l.metrics) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.Stop() }) // a test may have killed it
	return l
}

// leads asks until everything that was there has been told.
func leads(ctx context.Context, health, metrics string) error {
	for _, url := range []string{health + "/readyz", metrics} {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s", url, response.Status)
		}
		if url == metrics && !says(response.Body, "\ntracehook_lifecycle_told_timestamp_seconds ") {
			return fmt.Errorf("nothing has been told yet")
		}
	}
	return nil
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, shared.Cluster, args...)
}
