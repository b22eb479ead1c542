package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

// No container engine runs here, so the files for kind are given to the programs that would read them there.
func TestTheAPIServerTakesTheTracingConfigurationsForKind(t *testing.T) {
	for _, file := range []string{"tracing.yaml", "tracing-1.22.yaml"} {
		t.Run(file, func(t *testing.T) {
			server, err := shared.StartAPIServerWith(within(t, time.Minute), cluster.APIServerOptions{
				Args: []string{"--tracing-config-file=" + filepath.Join(shared.deploy, "kind", "tracing", file)},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// The image that the manifests name has the extension health_check; the Collector that is built here may not.
func TestTheCollectorTakesTheConfigurationOfTheComponent(t *testing.T) {
	otelcol, err := shared.Binary("otelcol")
	if err != nil {
		t.Fatal(err)
	}
	components, err := exec.CommandContext(t.Context(), otelcol, "components").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, components)
	}
	args := []string{"validate", "--config=" + filepath.Join(shared.deploy, "components", "collector", "config.yaml")}
	if strings.Contains(string(components), "health_check") {
		args = append(args, "--config="+filepath.Join(shared.deploy, "components", "collector", "health.yaml"))
	} else {
		t.Log("health.yaml is left out: this Collector has no extension health_check")
	}
	if out, err := exec.CommandContext(t.Context(), otelcol, args...).CombinedOutput(); err != nil {
		t.Errorf("otelcol %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	pinned, err := os.ReadFile("../controlplane/collector/builder.yaml")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile(filepath.Join(shared.deploy, "components", "collector", "collector.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(string(pinned), "\n  version: ")
	version, _, _ = strings.Cut(version, "\n")
	if !strings.Contains(string(manifest), "image: otel/opentelemetry-collector:"+version+"\n") {
		t.Errorf("the manifest's image is not of the version %s that the tests run", version)
	}
}
