// In: the source. Out: the image as .ci/image builds it, twice, opened and started without a container engine.
// Errors: fail the test.
package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

const (
	version  = "v0.0.0-image-test"
	revision = "0123456789abcdef0123456789abcdef01234567"
	user     = "65532:65532"
	program  = "/ko-app/tracehook"
)

// sourceDate stands for the time of the commit.
var sourceDate = time.Unix(1_700_000_000, 0).UTC()

func TestTheImageIsBuiltTheSameFromAnywhere(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	buildImage(t, repository(t), first)
	elsewhere := t.TempDir()
	copySource(t, repository(t), elsewhere)
	buildImage(t, elsewhere, second)

	// The index names everything else by its digest.
	one, other := layout(first).tagged(t, version), layout(second).tagged(t, version)
	if one.Digest != other.Digest {
		t.Errorf("the image has digest %s, and built again from a copy %s", one.Digest, other.Digest)
	}
	if a, b := layout(first).root(t), layout(second).root(t); fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("the layouts differ:\n%v\n%v", a, b)
	}
	if a, b := layout(first).sboms(t), layout(second).sboms(t); !maps.Equal(a, b) {
		t.Errorf("the SBOMs differ: %v and %v", slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b)))
	}
	checkImage(t, layout(first))
}

func checkImage(t *testing.T, l layout) {
	// `ctr images import`, `docker load` and kind take every manifest of a layout for an image, and the name from this annotation.
	if root := l.root(t); len(root.Manifests) != 1 {
		t.Errorf("the layout holds %d images, want one and nothing else", len(root.Manifests))
	} else if got, want := root.Manifests[0].Annotations["io.containerd.image.name"], "ghcr.io/tracehook/tracehook:"+version; got != want {
		t.Errorf("containerd would call the image %q, want %q", got, want)
	}
	top := l.tagged(t, version)
	images := decode[index](t, l.blob(t, top))
	var platforms []string
	for _, image := range images.Manifests {
		platforms = append(platforms, image.Platform.OS+"/"+image.Platform.Architecture)
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
		t.Fatalf("the image is for %v, want %v", platforms, want)
	}
	checkLabels(t, "the index's annotations", images.Annotations)
	sbom := checkSBOM(t, l, top)
	for _, image := range images.Manifests {
		if !strings.Contains(sbom, image.Digest) {
			t.Errorf("the SBOM of the index does not name the image for %s", image.Platform.Architecture)
		}
	}

	for _, image := range images.Manifests {
		t.Run(image.Platform.Architecture, func(t *testing.T) {
			content := decode[manifest](t, l.blob(t, image))
			config := decode[imageConfig](t, l.blob(t, content.Config))
			checkLabels(t, "the manifest's annotations", content.Annotations)
			checkLabels(t, "the labels", config.Config.Labels)
			if config.OS != "linux" || config.Architecture != image.Platform.Architecture {
				t.Errorf("the image is for %s/%s, and the index says %v", config.OS, config.Architecture, image.Platform)
			}
			if !config.Created.Equal(sourceDate) {
				t.Errorf("the image is of %s, want the source's time %s", config.Created, sourceDate)
			}
			if got := config.Config.User; got != user {
				t.Errorf("the image runs as %q, want %s: the kubelet checks runAsNonRoot by number", got, user)
			}
			if got := config.Config.Entrypoint; !slices.Equal(got, []string{program}) || len(config.Config.Cmd) != 0 {
				t.Errorf("the image starts %q with %q, want %s and nothing", got, config.Config.Cmd, program)
			}

			root := t.TempDir()
			entries := l.unpack(t, content.Layers, root)
			checkFiles(t, entries)
			checkBase(t, root)
			checkBinary(t, filepath.Join(root, program), image.Platform.Architecture, checkSBOM(t, l, image))
			if image.Platform.Architecture == runtime.GOARCH {
				start(t, root)
			}
		})
	}
}

func checkLabels(t *testing.T, what string, got map[string]string) {
	t.Helper()
	for key, want := range map[string]string{
		"title":    "tracehook",
		"version":  version,
		"revision": revision,
		"created":  sourceDate.Format(time.RFC3339),
		"source":   "https://github.com/tracehook/tracehook",
		"licenses": "Apache-2.0",
	} {
		if got["org.opencontainers.image."+key] != want {
			t.Errorf("%s say %s is %q, want %q", what, key, got["org.opencontainers.image."+key], want)
		}
	}
	if got["org.opencontainers.image.description"] == "" {
		t.Errorf("%s have no description", what)
	}
}

// checkFiles allows one program and nothing else that can be run: no shell, nothing that gives rights away.
func checkFiles(t *testing.T, entries map[string]*tar.Header) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(entries)) {
		entry := entries[path]
		mode := entry.FileInfo().Mode()
		switch {
		case entry.Typeflag == tar.TypeReg && mode&0o111 != 0 && path != program:
			t.Errorf("%s can be run; only %s should be", path, program)
		case mode&(fs.ModeSetuid|fs.ModeSetgid) != 0:
			t.Errorf("%s gives its owner's rights away: %s", path, mode)
		case mode&0o002 != 0 && path != "/tmp":
			t.Errorf("anybody may write to %s: %s", path, mode)
		}
	}
	if _, ok := entries[program]; !ok {
		t.Errorf("%s is not in the image; there is %v", program, slices.Sorted(maps.Keys(entries)))
	}
}

// checkBase is about the base image: made here in the test, distroless in a release.
func checkBase(t *testing.T, root string) {
	t.Helper()
	users, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(users), "nonroot:x:65532:65532:") {
		t.Errorf("user 65532 has no name in the image:\n%s", users)
	}
	cas, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(cas) {
		t.Error("the image has no certificates of public CAs: a Collector behind one could not be reached")
	}
}

func checkBinary(t *testing.T, path, arch, sbom string) {
	t.Helper()
	file, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]; file.Machine != want {
		t.Errorf("the program is for %s, want %s", file.Machine, want)
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("the program wants a dynamic loader, and the image has none")
		}
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, setting := range info.Settings {
		if strings.HasPrefix(setting.Key, "vcs") {
			t.Errorf("the program says %s=%s: its bytes would follow from the checkout", setting.Key, setting.Value)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte(repository(t)+"/")) {
		t.Errorf("the program names the directory that it was built in, %s", repository(t))
	}
	if len(info.Deps) == 0 {
		t.Error("the program says nothing of what it is built from")
	}
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		if want := "pkg:golang/" + module.Path + "@" + module.Version; !strings.Contains(sbom, want) {
			t.Errorf("the SBOM does not name %s", want)
		}
	}
}

// checkSBOM finds the SBOM of one part of the image and returns its text.
func checkSBOM(t *testing.T, l layout, part descriptor) string {
	t.Helper()
	for name, text := range l.sboms(t) {
		document := decode[struct {
			SPDXVersion  string
			CreationInfo struct{ Created time.Time }
			Packages     []struct{ Name string }
		}](t, []byte(text))
		if document.SPDXVersion != "SPDX-2.3" || len(document.Packages) < 2 || !document.CreationInfo.Created.Equal(sourceDate) {
			t.Errorf("%s is %s of %s with %d packages", name, document.SPDXVersion, document.CreationInfo.Created, len(document.Packages))
		}
		if len(document.Packages) > 0 && document.Packages[0].Name == part.Digest {
			return text
		}
	}
	t.Fatalf("none of the SBOMs is about %s; there is %v", part.Digest, slices.Sorted(maps.Keys(l.sboms(t))))
	return ""
}

// start runs the image's program in the image's files as the image's user; without root's rights, as whoever runs the test.
func start(t *testing.T, root string) {
	t.Helper()
	run := func(args ...string) string {
		cmd := exec.Command(filepath.Join(root, program), args...)
		cmd.Env = []string{}
		if os.Geteuid() == 0 {
			cmd.Path, cmd.Args[0] = program, program
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
		return string(out)
	}
	if got := run("version"); got != version+"\n" {
		t.Errorf("version says %q, want %s", got, version)
	}
	if got := run("serve", "--help"); !strings.Contains(got, "--shutdown-delay") {
		t.Errorf("serve --help says %s", got)
	}
}

func TestTheDeploymentFitsTheImage(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(repository(t), "deploy/base/deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var deployment appsv1.Deployment
	if err := yaml.UnmarshalStrict(raw, &deployment); err != nil {
		t.Fatal(err)
	}
	pod := deployment.Spec.Template.Spec
	// The kubelet takes the image's user for non-root only if it is a number; OpenShift gives Pods one of its own.
	if c := pod.SecurityContext; c == nil || c.RunAsNonRoot == nil || !*c.RunAsNonRoot || c.RunAsUser != nil || c.RunAsGroup != nil {
		t.Errorf("the Deployment should run as the image's user, which is not root, whatever its number: %+v", c)
	}
	if number, _, _ := strings.Cut(user, ":"); strings.Trim(number, "0123456789") != "" || number == "0" {
		t.Errorf("the image's user %s is no number other than root's", user)
	}
	if c := pod.Containers[0]; len(c.Command) != 0 || len(c.Args) == 0 || c.Args[0] != "serve" {
		t.Errorf("the image starts the program; the Deployment should only say serve, not %q %q", c.Command, c.Args)
	}
}

// repository is the root of the source.
func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// buildImage does what `make image` does.
func buildImage(t *testing.T, source, directory string) {
	t.Helper()
	began := time.Now()
	cmd := exec.Command("go", "-C", filepath.Join(repository(t), ".ci/image"), "run", ".",
		"-source", source, "-version", version, "-revision", revision, "-layout", directory, "-sboms", layout(directory).sbomDir())
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", sourceDate.Unix()))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the image: %v\n%s", err, out)
	}
	t.Logf("built in %s", time.Since(began).Round(time.Second))
}

// copySource copies what is or could be committed, without its history.
func copySource(t *testing.T, from, to string) {
	t.Helper()
	names, err := exec.Command("git", "-C", from, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatalf("listing the source: %v", err)
	}
	for name := range strings.SplitSeq(strings.Trim(string(names), "\x00"), "\x00") {
		file, err := os.Open(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(to, name)
		err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), writeFile(path, file, 0o644), file.Close())
		if err != nil {
			t.Fatal(err)
		}
	}
}
