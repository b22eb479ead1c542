// In: an OCI layout on disk. Out: its indexes, manifests, configurations and files. Errors: fail the test.
//
// Read by hand instead of by the library that wrote it: https://github.com/opencontainers/image-spec.
package image_test

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type descriptor struct {
	MediaType   string
	Digest      string
	Size        int64
	Annotations map[string]string
	Platform    struct{ OS, Architecture string }
}

type index struct {
	Manifests   []descriptor
	Annotations map[string]string
}

type manifest struct {
	Config      descriptor
	Layers      []descriptor
	Annotations map[string]string
}

type imageConfig struct {
	OS, Architecture string
	Created          time.Time
	Config           struct {
		User            string
		Entrypoint, Cmd []string
		Env             []string
		Labels          map[string]string
	}
}

type layout string

// sbomDir is where the test has the SBOMs written.
func (l layout) sbomDir() string { return string(l) + "-sboms" }

// sboms are the texts by file name.
func (l layout) sboms(t *testing.T) map[string]string {
	t.Helper()
	files, err := os.ReadDir(l.sbomDir())
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, file := range files {
		raw, err := os.ReadFile(filepath.Join(l.sbomDir(), file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		texts[file.Name()] = string(raw)
	}
	return texts
}

// root is what a tool that opens the layout sees first.
func (l layout) root(t *testing.T) index {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(string(l), "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	return decode[index](t, raw)
}

// tagged finds what the root names by this tag.
func (l layout) tagged(t *testing.T, tag string) descriptor {
	t.Helper()
	var found []string
	for _, d := range l.root(t).Manifests {
		name := d.Annotations["org.opencontainers.image.ref.name"]
		if name == tag {
			return d
		}
		found = append(found, name)
	}
	t.Fatalf("nothing in the layout is called %s; there is %s", tag, strings.Join(found, ", "))
	return descriptor{}
}

// blob reads what the descriptor names, and holds it to its digest and size.
func (l layout) blob(t *testing.T, d descriptor) []byte {
	t.Helper()
	algorithm, sum, _ := strings.Cut(d.Digest, ":")
	raw, err := os.ReadFile(filepath.Join(string(l), "blobs", algorithm, sum))
	if err != nil {
		t.Fatal(err)
	}
	if got := sha256.Sum256(raw); hex.EncodeToString(got[:]) != sum || int64(len(raw)) != d.Size {
		t.Fatalf("blob %s has %d bytes with sum %x, want %d", d.Digest, len(raw), got, d.Size)
	}
	return raw
}

func decode[T any](t *testing.T, raw []byte) T {
	t.Helper()
	var value T
	if err := json.Unmarshal(raw, &value); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	return value
}

// unpack lays the layers over each other below root, as a container engine does, and returns every entry's header by its absolute path.
func (l layout) unpack(t *testing.T, layers []descriptor, root string) map[string]*tar.Header {
	t.Helper()
	entries := map[string]*tar.Header{}
	for _, layer := range layers {
		if layer.MediaType != "application/vnd.oci.image.layer.v1.tar+gzip" {
			t.Errorf("layer %s is %s", layer.Digest, layer.MediaType)
		}
		l.blob(t, layer) // for the check of its digest
		file, err := os.Open(filepath.Join(string(l), "blobs", filepath.FromSlash(strings.Replace(layer.Digest, ":", "/", 1))))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		plain, err := gzip.NewReader(file)
		if err != nil {
			t.Fatal(err)
		}
		for archive := tar.NewReader(plain); ; {
			header, err := archive.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := strings.Trim(header.Name, "/")
			if !filepath.IsLocal(name) {
				t.Fatalf("the layer has an entry outside the image: %q", header.Name)
			}
			entries["/"+name] = header
			path := filepath.Join(root, name)
			switch header.Typeflag {
			case tar.TypeDir:
				err = os.MkdirAll(path, 0o755)
			case tar.TypeReg:
				err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), writeFile(path, archive, header.FileInfo().Mode()))
			default:
				t.Fatalf("the layer has %s of type %q: neither a file nor a directory", header.Name, header.Typeflag)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return entries
}

func writeFile(path string, content io.Reader, mode fs.FileMode) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode.Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}
