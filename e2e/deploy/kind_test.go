package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/version"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// No container engine runs here, so the files for kind are given to the programs that would read them there.
func TestTheAPIServerTakesTheTracingConfigurationsForKind(t *testing.T) {
	for file, since := range map[string]*version.Version{"tracing.yaml": version.MajorMinor(1, 34), "tracing-1.22.yaml": version.MajorMinor(1, 22)} {
		t.Run(file, func(t *testing.T) {
			server, err := shared.StartAPIServerWith(story.Within(t, time.Minute), cluster.APIServerOptions{
				Args: []string{"--tracing-config-file=" + filepath.Join(shared.deploy, "kind", "tracing", file)},
			})
			if shared.Version.LessThan(since) {
				if err == nil || !strings.Contains(err.Error(), "failed to read tracing config") {
					t.Errorf("%s: %v; want it refused, as it is for %s", shared.Version, err, since)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheCollectorTakesTheConfigurationOfTheComponent(t *testing.T) {
	otelcol, err := shared.Binary("otelcol")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"validate"}
	for _, file := range []string{"config.yaml", "health.yaml"} {
		args = append(args, "--config="+filepath.Join(shared.deploy, "components", "collector", file))
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
