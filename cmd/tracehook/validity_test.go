package main

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
)

// issuePairAt writes a pair whose making was at that time.
func issuePairAt(t *testing.T, dir string, at time.Time) {
	t.Helper()
	ca, err := certs.NewCA(certs.CAOptions{Now: at})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: at, Names: []string{"tracehook.tracehook-system.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := leaf.CertificatePEM()
	if err != nil {
		t.Fatal(err)
	}
	key, err := leaf.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"tls.crt": certificate, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFilesWhosePairIsNotValidNowAreNotReadyAndSayWhy(t *testing.T) {
	dir := t.TempDir()
	issuePairAt(t, dir, time.Now())
	s := startServe(t, dir)
	metric := func() string {
		for line := range strings.Lines(s.get(t, s.config.MetricsAddress, "/metrics")) {
			if value, ok := strings.CutPrefix(line, "tracehook_certificate_valid "); ok {
				return strings.TrimSpace(value)
			}
		}
		return "none"
	}
	for _, c := range []struct {
		name, says string
		at         time.Time
	}{
		{"expired", "503 not ready: certificate: the serving certificate expired on ", time.Now().AddDate(0, 0, -30)},
		{"new, and our clock an hour behind", "200 ok", time.Now().Add(2 * time.Hour)}, // from an hour before its making
		{"not yet valid", "503 not ready: certificate: the serving certificate is not valid before ", time.Now().AddDate(0, 0, 3)},
		{"well", "200 ok", time.Now()},
	} {
		issuePairAt(t, dir, c.at)
		s.eventually(t, c.name, func() bool { return strings.HasPrefix(s.get(t, s.config.HealthAddress, "/readyz"), c.says) })
		want := "1"
		if strings.HasPrefix(c.says, "503") {
			want = "0"
			s.eventually(t, "logged", func() bool {
				return strings.Contains(s.log.String(), strings.TrimPrefix(c.says, "503 not ready: certificate: "))
			})
		}
		if got := metric(); got != want {
			t.Errorf("%s: tracehook_certificate_valid is %s, want %s", c.name, got, want)
		}
	}
	s.stop()
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
}

// The clock of this machine is an hour behind, or ahead, and an API server says so.
func TestCertificatesAreJudgedByTheAPIServersClock(t *testing.T) {
	for _, behind := range []time.Duration{-time.Hour, 0, time.Hour} {
		var log lockedBuffer
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(behind).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusUnauthorized) // no right is needed
		}))
		defer server.Close()
		clock, err := newAPIClock(&rest.Config{Host: server.URL}, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = clock.run(ctx) }()
		for deadline := time.Now().Add(10 * time.Second); clock.known.Load() == nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("nobody was asked")
			}
		}
		stop()
		if off := (time.Until(clock.now()) - behind).Abs(); off > 5*time.Second {
			t.Errorf("behind %s: the clock is off by %s", behind, off)
		}
		if said := strings.Contains(log.String(), "clock of this machine"); said != (behind != 0) {
			t.Errorf("behind %s: log %q", behind, log.String())
		}

		theirs := time.Now().Add(behind)
		pair := func(from, to time.Duration) []*x509.Certificate {
			return []*x509.Certificate{{NotBefore: theirs.Add(from), NotAfter: theirs.Add(to)}}
		}
		if err := checkValidity(pair(-time.Minute, time.Hour), clock.now(), clock.skew()); err != nil {
			t.Errorf("behind %s: a new pair: %v", behind, err)
		}
		if checkValidity(pair(-time.Hour, -time.Minute), clock.now(), clock.skew()) == nil {
			t.Errorf("behind %s: a dead pair will do", behind)
		}
		if checkValidity(pair(time.Minute, time.Hour), clock.now(), clock.skew()) == nil {
			t.Errorf("behind %s: a pair that API servers do not accept yet will do", behind)
		}
	}
}

func TestAClockThatNobodyTellsIsThisMachines(t *testing.T) {
	clock, err := newAPIClock(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := clock.run(t.Context()); err != nil {
		t.Error(err)
	}
	if off := time.Until(clock.now()).Abs(); off > time.Minute {
		t.Errorf("off by %s", off)
	}
	new := []*x509.Certificate{{NotBefore: time.Now().Add(time.Hour), NotAfter: time.Now().Add(2 * time.Hour)}}
	if err := checkValidity(new, clock.now(), clock.skew()); err != nil {
		t.Errorf("a new pair, seen by a clock that is an hour behind: %v", err)
	}
	chain := append(new[:0:0], &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{NotAfter: time.Now().Add(-time.Hour)})
	if checkValidity(chain, clock.now(), clock.skew()) == nil {
		t.Error("a chain whose second certificate has expired will do")
	}
}
