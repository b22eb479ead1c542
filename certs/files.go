package certs

// What the TLS server asks, where the pair is in two files. In: their names. Out: the certificate for a handshake. Errors: at the start only:
// files that hold no pair. Later the last good pair stays.
//
// The files are read again and again and nobody is asked to tell of changes: inotify has limits that others on the same
// machine use up, tells nothing on some file systems, and a mounted Secret is late by a minute in any case.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultFilePoll is how often files are read.
	DefaultFilePoll = time.Second

	maxPairFile = 1 << 20 // of a chain: a certificate has 1 or 2 KiB
)

// FileSourceOptions of a FileSource.
type FileSourceOptions struct {
	Certificate, Key string        // PEM files, the leaf first; required
	Poll             time.Duration // Zero: DefaultFilePoll
	Logger           *slog.Logger  // Nil: silence
}

// FileSource keeps the last good pair of two files.
type FileSource struct {
	early
	o      FileSourceOptions
	served atomic.Pointer[tls.Certificate]

	mu               sync.Mutex
	certificate, key []byte // as read last
	said             string // what was wrong with them
}

// NewFileSource reads the files. An error that is fs.ErrNotExist tells that one is missing.
func NewFileSource(o FileSourceOptions) (*FileSource, error) {
	if o.Certificate == "" || o.Key == "" {
		return nil, errors.New("read the serving certificate: the name of a file is missing")
	}
	if o.Poll < 0 {
		return nil, fmt.Errorf("read the serving certificate: every %s is too often", o.Poll)
	}
	if o.Poll == 0 {
		o.Poll = DefaultFilePoll
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &FileSource{o: o}
	if _, err := s.read(); err != nil {
		return nil, fmt.Errorf("read the serving certificate: %w", err)
	}
	return s, nil
}

// Start reads the files again and again until ctx ends. It returns nil then, and no error ever.
func (s *FileSource) Start(ctx context.Context) error {
	for sleep(ctx, s.o.Poll) == nil {
		changed, err := s.read()
		s.tell(ctx, changed, err)
	}
	return nil
}

// GetCertificate is for tls.Config.
func (s *FileSource) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.served.Load(), nil
}

// read takes what the files hold, if that is a pair. Of two files that are being replaced one may be new and one old: no pair.
func (s *FileSource) read() (changed bool, err error) {
	certificate, err := readLimited(s.o.Certificate)
	if err != nil {
		return false, err
	}
	key, err := readLimited(s.o.Key)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.certificate != nil && bytes.Equal(certificate, s.certificate) && bytes.Equal(key, s.key) {
		return false, nil
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return false, err
	}
	s.certificate, s.key = certificate, key
	s.served.Store(&pair)
	return true, nil
}

// tell logs once what is wrong, and when it is well again.
func (s *FileSource) tell(ctx context.Context, changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && err.Error() != s.said:
		s.said = err.Error()
		s.o.Logger.ErrorContext(ctx, "the serving certificate cannot be read, the one before is served",
			"certificate", s.o.Certificate, "key", s.o.Key, "error", err)
	case err == nil:
		if changed || s.said != "" {
			leaf := s.served.Load().Leaf
			s.o.Logger.InfoContext(ctx, "serving certificate read", "subject", leaf.Subject.String(), "until", leaf.NotAfter)
		}
		s.said = ""
	}
}

func readLimited(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	contents, err := io.ReadAll(io.LimitReader(file, maxPairFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(contents) > maxPairFile:
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxPairFile)
	}
	return contents, nil
}
