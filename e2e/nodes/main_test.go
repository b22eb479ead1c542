//go:build linux

// Package nodes tests tracehook as its users run it: an image, in Pods, on real nodes. One story a file.
package nodes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/node"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

const namespace = "tracehook-system"

// patience is how long a test waits for what comes by itself: for a busy machine, so nobody waits that long on another.
const patience = 3 * time.Minute

// shared is the cluster of all tests: a control plane with two nodes, and the images on them.
var shared struct {
	*cluster.Cluster
	clients *kubernetes.Clientset
	nodes   []*node.Node
	root    string // of the repository
	dir     string // of the run
	// uninstalled are the Pods of earlier tests. kubelet's last words about them may come late.
	uninstalled []types.UID
}

func TestMain(m *testing.M) {
	var err error
	if shared.root, err = filepath.Abs("../.."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(node.Main(node.Options{
		Prepare: buildImages,
		Run: func(dir string) int {
			shared.dir = dir
			return story.Run(m, cluster.Options{Controllers: true, Dir: filepath.Join(dir, "cluster"), Address: node.HostAddress}, prepare)
		},
	}))
}

// The images, and what they are called on the nodes.
const (
	tracehookImage = "ghcr.io/tracehook/tracehook"
	workloadImage  = "localhost/workload:test"
	floodImage     = "localhost/flood:test"
)

func buildImages(dir string) error {
	if err := noteSysctls(dir); err != nil {
		return err
	}
	release, err := released()
	if err != nil {
		return err
	}
	begin := time.Now()
	previous, err := lastCommit(dir)
	if err != nil {
		return err
	}
	var images errgroup.Group
	for file, image := range map[string]node.Image{
		"tracehook.tar": {Program: "cmd/tracehook", Name: tracehookImage, Tag: release},
		"previous.tar":  {Program: "cmd/tracehook", Name: tracehookImage, Tag: "previous", Source: previous},
		"workload.tar":  {Program: "e2e/workload", Name: "localhost/workload", Tag: "test"},
		"flood.tar":     {Program: "e2e/flood", Name: "localhost/flood", Tag: "test"},
	} {
		image.Root = shared.root
		images.Go(func() error { return image.Build(filepath.Join(dir, file)) })
	}
	if err := images.Wait(); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%-24s ready after %.1fs\n", "images", time.Since(begin).Seconds())
	return nil
}

// released is the tag that the manifests name.
func released() (string, error) {
	path := filepath.Join(shared.root, "deploy", "components", "release", "kustomization.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("find the release: %w", err)
	}
	_, rest, found := strings.Cut(string(text), "newTag: ")
	tag, _, _ := strings.Cut(rest, "\n")
	if !found || tag == "" {
		return "", fmt.Errorf("find the release: no newTag in %s", path)
	}
	return tag, nil
}

// lastCommit is the source as it was committed before what is tested here.
func lastCommit(dir string) (source string, err error) {
	source = filepath.Join(dir, "previous")
	// Of what is not committed, the last commit is HEAD. A commit that was never run as Pods, or none (a shallow clone), is no
	// version to come from: then it is HEAD, too.
	script := `
commit=HEAD
if [ -z "$(git status --porcelain)" ]; then
  previous=$(git rev-list --no-merges --max-count=2 HEAD | tail -n 1)
  if git cat-file -e "$previous:e2e/nodes" 2>/dev/null; then commit=$previous; fi
fi
mkdir -p "$1" && git archive "$commit" | tar -x -C "$1"`
	cmd := exec.Command("bash", "-o", "pipefail", "-c", script, "lastCommit", source)
	cmd.Dir = shared.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("take the last commit's source: %w: %s", err, out)
	}
	return source, nil
}

func prepare(ctx context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.clients, err = kubernetes.NewForConfig(c.RESTConfig); err != nil {
		return err
	}
	if err := node.ServeDNS(c); err != nil {
		return err
	}
	begin := time.Now()
	shared.nodes, err = node.StartAll(ctx, c, 2, node.NodeOptions{
		Dir:     shared.dir,
		Images:  []string{filepath.Join(shared.dir, "workload.tar"), filepath.Join(shared.dir, "tracehook.tar"), filepath.Join(shared.dir, "previous.tar"), filepath.Join(shared.dir, "flood.tar")},
		Pause:   workloadImage,
		Tracing: filepath.Join(shared.root, "deploy", "nodes"),
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%-24s ready after %.1fs\n", "nodes", time.Since(begin).Seconds())
	return nil
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, shared.Cluster, args...)
}

// apply applies manifests.
func apply(t *testing.T, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "-f", file)
}
