//go:build linux

package node

// An image. In: a program's source. Out: what containerd imports. Errors: of the build, with what it said.

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Image is a program of this module as an image.
type Image struct {
	// Root is the repository that builds. Source is the one that is built. "": the same.
	Root, Source string
	// Program is its directory in Source.
	Program string
	// Name and Tag are what the image is called on the nodes.
	Name, Tag string
}

// Build does what `make image` does, for this machine's processor alone, and packs the layout into a tar.
func (i Image) Build(file string) error {
	if i.Source == "" {
		i.Source = i.Root
	}
	layout := file + ".layout"
	cmd := exec.Command("go", "-C", filepath.Join(i.Root, ".ci", "image"), "run", ".", "-source", i.Source, "-version", i.Tag,
		"-program", i.Program, "-name", i.Name, "-platforms", "linux/"+runtime.GOARCH, "-layout", layout)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=0", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build image %s: %w: %s", i.Name, err, out)
	}
	if err := pack(file, layout); err != nil {
		return fmt.Errorf("pack image %s: %w", i.Name, err)
	}
	return nil
}

func pack(file, dir string) error {
	archive, err := os.Create(file)
	if err != nil {
		return err
	}
	defer archive.Close()
	w := tar.NewWriter(archive)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return err
	}
	return w.Close()
}
