package certs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

// writePair writes what `certs issue` writes, and returns the names.
func writePair(t *testing.T, dir string, pair certs.KeyPair) (certificate, key string) {
	t.Helper()
	certificate, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for name, contents := range map[string][]byte{certificate: pemOf(t, pair), key: keyOf(t, pair)} {
		if err := os.WriteFile(name, contents, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

func pemOf(t *testing.T, pair certs.KeyPair) []byte {
	t.Helper()
	out, err := pair.CertificatePEM()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func keyOf(t *testing.T, pair certs.KeyPair) []byte {
	t.Helper()
	out, err := pair.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// syncBuffer may be written to while it is read.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Nothing is watched, so it does not matter that somebody else has used inotify up (fs.inotify.max_user_instances): files are read.
func TestFilesAreReadAgainAndTheLastGoodPairStays(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	first, second := newLeaf(t, ca, certs.LeafOptions{Names: []string{host}}), newLeaf(t, ca, certs.LeafOptions{Names: []string{host}})
	dir := t.TempDir()
	certificate, key := writePair(t, dir, first)
	var log syncBuffer
	source, err := certs.NewFileSource(certs.FileSourceOptions{Certificate: certificate, Key: key, Poll: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- source.Start(ctx) }()
	serves := func(want certs.KeyPair) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			served, err := source.GetCertificate(&tls.ClientHelloInfo{})
			if err != nil {
				t.Fatal(err)
			}
			if served.Leaf.Equal(want.Certificate) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("it serves serial %x", served.Leaf.SerialNumber)
			}
			time.Sleep(time.Millisecond)
		}
	}
	says := func(text string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !strings.Contains(log.String(), text); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("it does not say %q:\n%s", text, log.String())
			}
		}
	}
	serves(first)

	if err := os.WriteFile(certificate, pemOf(t, second), 0o600); err != nil { // the other's key
		t.Fatal(err)
	}
	says("private key does not match public key")
	serves(first)
	if err := os.WriteFile(key, keyOf(t, second), 0o600); err != nil {
		t.Fatal(err)
	}
	serves(second)
	says("serving certificate read")

	for _, name := range []string{certificate, key} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	says("no such file")
	serves(second)
	// As a mounted Secret is replaced: by a link that leads elsewhere.
	mounted := t.TempDir()
	writePair(t, mounted, first)
	for _, name := range []string{certificate, key} {
		if err := os.Symlink(filepath.Join(mounted, filepath.Base(name)), name); err != nil {
			t.Fatal(err)
		}
	}
	serves(first)
	if strings.Count(log.String(), "no such file") > 2 { // one of the two files, then the other
		t.Errorf("the same again and again:\n%s", log.String())
	}
	if strings.Contains(log.String(), "PRIVATE") {
		t.Error("a key is in the log")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v", err)
	}
}

func TestFilesThatHoldNoPairAreRefusedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	certificate, key := writePair(t, dir, newCA(t, certs.CAOptions{}))
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    certs.FileSourceOptions
		says string
	}{
		"missing":         {certs.FileSourceOptions{Certificate: filepath.Join(dir, "none"), Key: key}, "no such file"},
		"no certificate":  {certs.FileSourceOptions{Certificate: key, Key: key}, "tls: "},
		"too big":         {certs.FileSourceOptions{Certificate: big, Key: key}, "more than 1048576 bytes"},
		"without a name":  {certs.FileSourceOptions{Key: key}, "the name of a file is missing"},
		"negative period": {certs.FileSourceOptions{Certificate: certificate, Key: key, Poll: -1}, "too often"},
	} {
		_, err := certs.NewFileSource(c.o)
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "read the serving certificate: ") {
			t.Errorf("%s: %v", name, err)
		}
		if name == "missing" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v is not fs.ErrNotExist", err)
		}
	}
}
