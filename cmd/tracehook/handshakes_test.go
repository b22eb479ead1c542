package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/tracehook/tracehook/webhook/limit"
)

// What crypto/tls says is no promise of its, so it is the real one here: every failure really happens.
func TestFailedHandshakesAreCountedByReason(t *testing.T) {
	var out lockedBuffer
	reader := sdkmetric.NewManualReader()
	handshakes, err := newHandshakes(slog.New(slog.NewJSONHandler(&out, nil)), sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	if err != nil {
		t.Fatal(err)
	}
	var missing error
	pair := httptest.NewTLSServer(nil)
	pair.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connections := limit.NewConnections(limit.ConnectionsOptions{HeaderTimeout: 5 * time.Second, HandshakeFailed: handshakes.failed})
	server := &http.Server{Handler: http.NotFoundHandler()}
	connections.Guard(server)
	go func() {
		_ = server.Serve(connections.Listen(listener, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: withReason(func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &pair.TLS.Certificates[0], missing
		})}))
	}()
	defer server.Close()
	address := listener.Addr().String()

	counts := func() map[string]int64 {
		var data metricdata.ResourceMetrics
		if err := reader.Collect(context.Background(), &data); err != nil {
			t.Fatal(err)
		}
		counts := map[string]int64{}
		for _, p := range data.ScopeMetrics[0].Metrics[0].Data.(metricdata.Sum[int64]).DataPoints {
			reason, _ := p.Attributes.Value(semconv.ErrorTypeKey)
			counts[reason.AsString()] = p.Value
		}
		return counts
	}
	shake := func(c *tls.Config) error {
		conn, err := tls.Dial("tcp", address, c)
		if err == nil {
			conn.Close()
		}
		return err
	}
	raw := func(text string, wait bool) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write([]byte(text))
		if wait {
			_, _ = conn.Read(make([]byte, 1))
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(pair.Certificate())
	want := counts()
	for _, test := range []struct {
		reason string
		fail   func()
	}{
		{"bad_certificate", func() { _ = shake(&tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}) }},
		{"bad_certificate", func() { _ = shake(&tls.Config{RootCAs: pool, ServerName: "another.name"}) }},
		{"bad_certificate", func() {
			_ = shake(&tls.Config{RootCAs: pool, ServerName: "example.com", MaxVersion: tls.VersionTLS12, Time: func() time.Time { return time.Now().AddDate(500, 0, 0) }})
		}},
		{"no_certificate", func() {
			missing = errors.New("the Secret is not there yet")
			_ = shake(&tls.Config{InsecureSkipVerify: true})
			missing = nil
		}},
		{"timeout", func() { raw("", true) }},
		{"eof", func() { raw("", false) }},
		{"protocol", func() { raw("no handshake at all, that is for sure", true) }},
		{"protocol", func() { raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n", true) }},
		{"protocol", func() {
			_ = shake(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		}},
	} {
		want[test.reason]++
		test.fail()
		for deadline := time.Now().Add(5 * time.Second); !maps.Equal(counts(), want); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: counted %v, want %v; log:\n%s", test.reason, counts(), want, &out)
			}
		}
	}
	if err := shake(&tls.Config{RootCAs: pool, ServerName: "example.com"}); err != nil {
		t.Fatal(err)
	}
	if got := counts(); !maps.Equal(got, want) {
		t.Errorf("a handshake that works counts: %v, want %v", got, want)
	}
	if text := out.String(); strings.Count(text, `"reason":"bad_certificate"`) != 1 || !strings.Contains(text, "certs audit") || !strings.Contains(text, "the Secret is not there yet") {
		t.Errorf("log:\n%s", text)
	}

	// OpenSSL's and others' words for it, which no Go client says.
	for _, test := range []struct {
		problem error
		reason  string
	}{
		{alert("tls: unknown certificate authority"), handshakeUnknownAuthority},
		{alert("tls: expired certificate"), handshakeBadCertificate},
		{alert("tls: unknown certificate"), handshakeBadCertificate},
		{alert("tls: internal error"), handshakeProtocol},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, handshakeEOF},
		{errors.New("something new"), handshakeOther},
	} {
		if got := handshakeReason(test.problem); got != test.reason {
			t.Errorf("%v: %s, want %s", test.problem, got, test.reason)
		}
	}
}

func alert(text string) error { return &net.OpError{Op: "remote error", Err: errors.New(text)} }

func TestLinesOfTheStandardLoggerAreKeptOneInAWhileOfEachKind(t *testing.T) {
	var out lockedBuffer
	lines := log.New(newStandardLog(slog.New(slog.NewJSONHandler(&out, nil))), "", 0)
	for range 3 {
		lines.Print("http: superfluous response.WriteHeader call")
	}
	lines.Print("another line")
	if text := out.String(); strings.Count(text, "superfluous") != 1 || strings.Count(text, "another line") != 1 {
		t.Errorf("log:\n%s", text)
	}
}

func TestHandshakesThatAFirstStartPassesThroughAreNoWarning(t *testing.T) {
	alert := &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}
	for _, test := range []struct {
		err   error
		age   time.Duration
		level string
	}{
		{alert, 0, "INFO"},
		{alert, startPatience, "WARN"},
		{errors.New("tls: client offered only unsupported versions"), 0, "WARN"},
	} {
		var out lockedBuffer
		h, err := newHandshakes(slog.New(slog.NewTextHandler(&out, nil)), sdkmetric.NewMeterProvider())
		if err != nil {
			t.Fatal(err)
		}
		h.begun = h.begun.Add(-test.age)
		h.failed(&net.TCPAddr{}, test.err)
		if !strings.Contains(out.String(), "level="+test.level) {
			t.Errorf("%v after %s: %s, want level %s", test.err, test.age, out.String(), test.level)
		}
	}
}
