//go:build linux

package node

// An image of a program that is built already. In: an executable. Out: an OCI layout in a tar
// (https://github.com/opencontainers/image-spec/blob/main/image-layout.md). Errors: of the file system.

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// blob is what a manifest says of its parts.
type blob struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// PackBinary makes an image that holds a static program and nothing else. reference is what manifests call it.
func PackBinary(file, program, reference string) error {
	text, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("pack %s: %w", reference, err)
	}
	if first, _, _ := strings.Cut(reference, "/"); !strings.Contains(first, ".") && first != "localhost" {
		reference = "docker.io/" + reference // as kubelet and containerd complete it
	}
	name := filepath.Base(program)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, step := range []func() error{
		func() error { return w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}) },
		func() error { _, err := w.Write(text); return err },
		w.Close,
	} {
		if err := step(); err != nil {
			return fmt.Errorf("pack %s: %w", reference, err)
		}
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion": "1.0.0"}`)}
	add := func(mediaType string, content []byte) blob {
		sum := fmt.Sprintf("%x", sha256.Sum256(content))
		files["blobs/sha256/"+sum] = content
		return blob{MediaType: "application/vnd.oci.image." + mediaType, Digest: "sha256:" + sum, Size: len(content)}
	}
	encode := func(value any) []byte {
		content, _ := json.Marshal(value) // maps, strings and numbers
		return content
	}
	packed := add("layer.v1.tar", layer.Bytes())
	config := add("config.v1+json", encode(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config": map[string]any{"Entrypoint": []string{"/" + name}, "User": "65532:65532"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{packed.Digest}},
	}))
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest := add("manifest.v1+json", encode(map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": []blob{packed}}))
	manifest.Annotations = map[string]string{"io.containerd.image.name": reference}
	files["index.json"] = encode(map[string]any{"schemaVersion": 2, "manifests": []blob{manifest}})

	archive, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("pack %s: %w", reference, err)
	}
	defer archive.Close()
	w = tar.NewWriter(archive)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return fmt.Errorf("pack %s: %w", reference, err)
		}
		if _, err := w.Write(content); err != nil {
			return fmt.Errorf("pack %s: %w", reference, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("pack %s: %w", reference, err)
	}
	return nil
}

// Import has the node know an image.
func (n *Node) Import(ctx context.Context, file string) error {
	ctr, err := n.cluster.Binary("ctr")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, ctr, "--address="+filepath.Join(filepath.Dir(n.Manifests), "containerd.sock"), "--namespace=k8s.io", "images", "import", file)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import image into %s: %w: %s", n.Name, err, out)
	}
	return nil
}
