// In: a registry in this process. Out: what a release does with it: publish on the newest base, and build the same again when the base
// has moved on. Errors: fail the test.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestAPublishedImageCanBeBuiltAgainFromWhatItSaysOfItsBase(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	base := host + "/base:nonroot"
	source := smallSource(t, base)
	_, made, err := localBase([]string{"linux/amd64", "linux/arm64"})
	if err != nil {
		t.Fatal(err)
	}
	pushIndex(t, base, made)

	sboms := t.TempDir()
	published := runImage(t, "-source", source, "-version", "v1.2.3", "-remote-base", "-push", host+"/tracehook", "-sboms", sboms)
	_, digest, _ := strings.Cut(published, "@")
	if want := host + "/tracehook:v1.2.3@" + digest; published != want {
		t.Errorf("the reference is %s, want %s", published, want)
	}
	index, err := remote.Index(reference(t, published))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 2 {
		t.Errorf("published for %d platforms, want 2", len(manifest.Manifests))
	}
	for _, digest := range []string{digest, manifest.Manifests[0].Digest.String(), manifest.Manifests[1].Digest.String()} {
		if _, err := remote.Head(reference(t, host+"/tracehook:"+strings.Replace(digest, ":", "-", 1)+".sbom")); err != nil {
			t.Errorf("%s has no SBOM in the registry: %v", digest, err)
		}
	}
	if files, err := filepath.Glob(filepath.Join(sboms, "*.spdx.json")); err != nil || len(files) != 3 {
		t.Errorf("SBOMs as files: %v, %v; want 3", files, err)
	}
	if got := manifest.Annotations["org.opencontainers.image.base.name"]; got != base {
		t.Errorf("the image says its base is %s, want %s", got, base)
	}

	// The base's tag moves on; its digest stays.
	pushIndex(t, base, mutate.Annotations(made, map[string]string{"newer": "yes"}).(v1.ImageIndex))
	newest := runImage(t, "-source", source, "-version", "v1.2.3", "-remote-base", "-layout", t.TempDir())
	again := runImage(t, "-source", source, "-version", "v1.2.3", "-layout", t.TempDir(),
		"-base-digest", manifest.Annotations["dev.tracehook.base.digest"])
	if !strings.HasSuffix(again, "@"+digest) {
		t.Errorf("published %s, built again %s", digest, again)
	}
	if strings.HasSuffix(newest, "@"+digest) {
		t.Error("the newest base makes no difference, so the comparison above says nothing")
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	for _, wrong := range []struct {
		args []string
		says string
	}{
		{[]string{"-layout", "x"}, "-version is missing"},
		{[]string{"-version", "v1"}, "one of -layout and -push"},
		{[]string{"-version", "v1", "-layout", "x", "-push", "y"}, "one of -layout and -push"},
		{[]string{"-version", "v1", "-push", "y"}, "-push needs -remote-base"},
		{[]string{"-version", "v1", "-layout", "x"}, "SOURCE_DATE_EPOCH"},
	} {
		if _, err := parse(wrong.args, func(string) string { return "" }); err == nil || !strings.Contains(err.Error(), wrong.says) {
			t.Errorf("%v: error %v, want %q", wrong.args, err, wrong.says)
		}
	}
}

func runImage(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, func(string) string { return "1700000000" }, &out); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

// smallSource is a module of the product's name with a small program, built by the product's .ko.yaml on another base.
func smallSource(t *testing.T, base string) string {
	t.Helper()
	raw, err := os.ReadFile("../../.ko.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(line, "defaultBaseImage:") {
			line = fmt.Sprintf("defaultBaseImage: %s\n", base)
		}
		lines = append(lines, line)
	}
	root := t.TempDir()
	for path, content := range map[string]string{
		".ko.yaml":              strings.Join(lines, ""),
		"go.mod":                "module github.com/tracehook/tracehook\n\ngo 1.26.0\n",
		"cmd/tracehook/main.go": "package main\n\nvar buildVersion string\n\nfunc main() { println(buildVersion) }\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func reference(t *testing.T, text string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func pushIndex(t *testing.T, to string, index v1.ImageIndex) {
	t.Helper()
	if err := remote.WriteIndex(reference(t, to), index); err != nil {
		t.Fatal(err)
	}
}
