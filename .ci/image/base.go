// In: the certificates of public CAs on this machine. Out: a base image for every platform, the same bytes every time.
// Errors: no certificates on this machine.
package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// certificateFile is where Debian and Alpine keep the CAs, and where Go looks for them in the image.
const certificateFile = "/etc/ssl/certs/ca-certificates.crt"

// localBase is what stands in for the base image of .ko.yaml where no registry can be reached: the same user, the CAs
// of this machine, /tmp, nothing that can be run. The name says so; it cannot be pulled.
func localBase(platforms []string) (name.Reference, v1.ImageIndex, error) {
	ref, err := name.ParseReference("tracehook.invalid/local-base:nonroot")
	if err != nil {
		return nil, nil, fmt.Errorf("name the local base: %w", err)
	}
	layer, err := baseLayer()
	if err != nil {
		return nil, nil, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, text := range platforms {
		platform, err := v1.ParsePlatform(text)
		if err != nil {
			return nil, nil, fmt.Errorf("parse platform %q: %w", text, err)
		}
		image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
		if image, err = mutate.ConfigFile(image, &v1.ConfigFile{
			OS:           platform.OS,
			Architecture: platform.Architecture,
			Variant:      platform.Variant,
			RootFS:       v1.RootFS{Type: "layers"},
			Config: v1.Config{
				Env:        []string{"PATH=/usr/bin", "SSL_CERT_FILE=" + certificateFile},
				WorkingDir: "/home/nonroot",
			},
		}); err != nil {
			return nil, nil, fmt.Errorf("configure the local base for %s: %w", platform, err)
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			return nil, nil, fmt.Errorf("fill the local base for %s: %w", platform, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return ref, index, nil
}

func baseLayer() (v1.Layer, error) {
	certificates, err := os.ReadFile(certificateFile)
	if err != nil {
		return nil, fmt.Errorf("read the public CAs (Debian's package ca-certificates): %w", err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, entry := range []struct {
		name    string // a directory if it ends in a slash
		mode    int64
		owner   int
		content string
	}{
		{name: "etc/", mode: 0o755},
		{name: "etc/group", mode: 0o644, content: "root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n"},
		{name: "etc/passwd", mode: 0o644, content: "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n" +
			"nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"},
		{name: "etc/ssl/", mode: 0o755},
		{name: "etc/ssl/certs/", mode: 0o755},
		{name: certificateFile[1:], mode: 0o644, content: string(certificates)},
		{name: "home/", mode: 0o755},
		{name: "home/nonroot/", mode: 0o700, owner: 65532},
		{name: "tmp/", mode: 0o1777},
	} {
		header := &tar.Header{
			Name: entry.name, Mode: entry.mode, Uid: entry.owner, Gid: entry.owner,
			Size: int64(len(entry.content)), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg,
		}
		if entry.name[len(entry.name)-1] == '/' {
			header.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("pack %s: %w", entry.name, err)
		}
		if _, err := io.WriteString(w, entry.content); err != nil {
			return nil, fmt.Errorf("pack %s: %w", entry.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack the local base: %w", err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("compress the local base: %w", err)
	}
	return layer, nil
}
