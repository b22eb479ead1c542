// In: the source. Out: what a release attaches, for this machine's platform, unpacked and started. Errors: fail the test.
package image_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestWhatAReleaseAttachesIsWhole(t *testing.T) {
	const image = "ghcr.io/tracehook/tracehook:" + version + "@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	platform := runtime.GOOS + "_" + runtime.GOARCH
	first, second := t.TempDir(), t.TempDir()
	for _, out := range []string{first, second} {
		cmd := exec.Command(filepath.Join(repository(t), ".ci/dist"))
		cmd.Env = append(os.Environ(), "VERSION="+version, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", sourceDate.Unix()), "IMAGE="+image,
			"PLATFORMS="+runtime.GOOS+"/"+runtime.GOARCH, "OUT="+out)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	}

	sums := checksums(t, first)
	if again := checksums(t, second); fmt.Sprint(sums) != fmt.Sprint(again) {
		t.Errorf("made again, the files differ:\n%v\n%v", sums, again)
	}
	for _, name := range []string{"tracehook", "kubectl-tracehook"} {
		archive := name + "_" + version + "_" + platform + ".tar.gz"
		directory := t.TempDir()
		if out, err := exec.Command("tar", "-xzf", filepath.Join(first, archive), "-C", directory).CombinedOutput(); err != nil {
			t.Fatalf("unpacking %s: %v\n%s", archive, err, out)
		}
		out, err := exec.Command(filepath.Join(directory, name), "version").CombinedOutput()
		if err != nil || string(out) != version+"\n" {
			t.Errorf("%s of %s says %q (%v), want %s", name, archive, out, err, version)
		}
		if _, err := os.Stat(filepath.Join(directory, "LICENSE")); err != nil {
			t.Errorf("%s comes without its licence: %v", archive, err)
		}
		page, err := os.ReadFile(filepath.Join(directory, "man/man1/tracehook-certs-audit.1"))
		if want := `.TH "TRACEHOOK-CERTS-AUDIT" "1" "November 2023" "tracehook ` + version + `" "tracehook"`; err != nil || !strings.Contains(string(page), want+"\n") {
			t.Errorf("%s: the manual (%v) begins\n%.200s\nwant %s in it", archive, err, page, want)
		}
		// As kubectl's completion calls it; what it calls kubectl is the plugin here.
		complete := filepath.Join(directory, "kubectl_complete-tracehook")
		if name != "kubectl-tracehook" {
			continue
		}
		stub := filepath.Join(t.TempDir(), "kubectl")
		if err := os.WriteFile(stub, []byte("#!/bin/sh\n[ \"$1\" = tracehook ] && shift && exec '"+filepath.Join(directory, name)+"' \"$@\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(complete, "certs", "rot")
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(stub)+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "rotate\t") {
			t.Errorf("completing `kubectl tracehook certs rot` gives %q (%v), want rotate", out, err)
		}
	}
	krewTakes(t, filepath.Join(first, "krew.yaml"), filepath.Join(first, "kubectl-tracehook_"+version+"_"+platform+".tar.gz"))

	charts, err := filepath.Glob(filepath.Join(first, "tracehook-*.tgz"))
	if err != nil || len(charts) != 1 {
		t.Fatalf("the charts are %q (%v), want one", charts, err)
	}
	content, err := exec.Command("tar", "-tzf", charts[0]).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, content)
	}
	for _, name := range []string{"Chart.yaml", "values.yaml", "values.schema.json", "README.md", "values-eks.yaml", "templates/webhook.yaml", "manifests/base/deployment.yaml"} {
		if !strings.Contains(string(content), "tracehook/"+name+"\n") {
			t.Errorf("%s is not in the chart:\n%s", name, content)
		}
	}

	raw, err := os.ReadFile(filepath.Join(first, "krew.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var plugin struct {
		Kind string
		Spec struct {
			Version   string
			Platforms []struct{ URI, SHA256, Bin string }
		}
	}
	if err := yaml.Unmarshal(raw, &plugin); err != nil {
		t.Fatal(err)
	}
	if plugin.Kind != "Plugin" || plugin.Spec.Version != version || len(plugin.Spec.Platforms) != 1 {
		t.Fatalf("krew.yaml is\n%s", raw)
	}
	offered := plugin.Spec.Platforms[0]
	file := offered.URI[strings.LastIndex(offered.URI, "/")+1:]
	if offered.Bin != "kubectl-tracehook" || sums[file] == "" || offered.SHA256 != sums[file] {
		t.Errorf("krew.yaml offers %+v; the sums are %v", offered, sums)
	}

	manifest, err := os.ReadFile(filepath.Join(first, "install.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	images := 0
	for line := range strings.Lines(string(manifest)) {
		if named := strings.TrimSpace(line); strings.HasPrefix(named, "image: ghcr.io/tracehook/") {
			images++
			if named != "image: "+image {
				t.Errorf("install.yaml has %q, want the image by its digest", named)
			}
		}
	}
	if images == 0 {
		t.Error("install.yaml names no image of ours")
	}
	if strings.Contains(string(manifest), "No image is published") {
		t.Error("the release's install.yaml says that there is no image")
	}
}

// Who applies the repository's install.yaml before there is a release builds the image that it names.
func TestInstallYAMLSaysHowToGetTheImageThatItNames(t *testing.T) {
	manifest, err := os.ReadFile(filepath.Join(repository(t), "deploy/install.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(manifest), "apiVersion:")
	_, tag, _ := strings.Cut(rest, "image: ghcr.io/tracehook/tracehook:")
	tag, _, _ = strings.Cut(tag, "\n")
	for _, command := range []string{"#   make image VERSION=" + tag + "\n", "#   tar -C out/image -c . | ctr -n k8s.io images import -\n"} {
		if tag == "" || !strings.Contains(head, command) {
			t.Errorf("install.yaml begins\n%s\nwant in it %q", head, command)
		}
	}
}

// krewTakes lets krew itself judge the plugin's manifest, and install the plugin from it.
func krewTakes(t *testing.T, krewManifest, archive string) {
	t.Helper()
	root := t.TempDir()
	content, err := os.ReadFile(krewManifest)
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(root, "tracehook.yaml") // in krew's index the file has the plugin's name
	if err := os.WriteFile(manifest, content, 0o644); err != nil {
		t.Fatal(err)
	}
	krew := func(args ...string) {
		cmd := exec.Command("go", append([]string{"-C", filepath.Join(repository(t), ".ci/krew"), "tool"}, args...)...)
		cmd.Env = append(os.Environ(), "KREW_ROOT="+root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	krew("validate-krew-manifest", "-manifest", manifest, "-skip-install") // that would download it
	krew("krew", "install", "--manifest", manifest, "--archive", archive)
	out, err := exec.Command(filepath.Join(root, "bin/kubectl-tracehook"), "version").CombinedOutput()
	if err != nil || string(out) != version+"\n" {
		t.Errorf("what krew installed says %q (%v), want %s", out, err, version)
	}
}

// checksums reads checksums.txt, holds every file to it, and returns the sums by file name.
func checksums(t *testing.T, directory string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(directory, "checksums.txt"))
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		content, err := os.ReadFile(filepath.Join(directory, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(content); hex.EncodeToString(got[:]) != sum {
			t.Errorf("%s has sum %x, and checksums.txt says %s", name, got, sum)
		}
		sums[name] = sum
	}
	files, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(sums)+1 {
		t.Errorf("checksums.txt is about %d files, and there are %d beside it", len(sums), len(files)-1)
	}
	return sums
}
