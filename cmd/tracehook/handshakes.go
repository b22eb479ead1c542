package main

// Handshakes that failed. In: what net/http writes to the standard logger, the only place where it tells of
// them. Out: a counter by reason, and structured log records. Errors: none.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/tracehook/tracehook/webhook/limit"
)

// errNoCertificate stands before what keeps a server from having one.
var errNoCertificate = errors.New("no certificate to serve")

// withReason marks the errors of get, so that a failed handshake tells that it was for want of a certificate.
func withReason(get getCertificate) getCertificate {
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		certificate, err := get(hello)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoCertificate, err)
		}
		return certificate, nil
	}
}

// handshakeReasons are tried in this order: the reason, and the words that net/http or crypto/tls have for it.
// A Go client, an API server that is, says "bad certificate" whatever it has against ours.
var handshakeReasons = []struct {
	reason string
	words  []string
	hint   string
}{
	{"unknown_authority", []string{"remote error: tls: unknown certificate authority"},
		"the caller does not trust the CA of our certificate: `tracehook certs audit` says why"},
	{"bad_certificate", []string{"remote error: tls: bad certificate", "remote error: tls: expired certificate", "remote error: tls: unknown certificate", "remote error: tls: unsupported certificate", "remote error: tls: revoked certificate"},
		"an API server refuses our certificate: `tracehook certs audit` says why"},
	{"no_certificate", []string{errNoCertificate.Error()}, "/readyz says what is missing"},
	{"timeout", []string{"i/o timeout", "deadline exceeded"}, ""},
	{"protocol", []string{"tls: ", "HTTP request to an HTTPS server"}, ""},
	{"eof", []string{"EOF", "connection reset by peer", "broken pipe", "use of closed"}, ""},
	{"other", []string{""}, ""},
}

// standardLog receives the lines of the standard logger.
type standardLog struct {
	log     *slog.Logger
	counter metric.Int64Counter
	said    []limit.Records // by index of handshakeReasons
	others  []limit.Records // by index of messageKinds
}

// messageKinds are how the other lines begin that callers can cause, so that many of one kind do not hide another.
var messageKinds = []string{"http: panic serving", "http: Accept error", "http2: ", "http: ", ""}

// takeStandardLog makes the standard logger of this process write to log, and counts failed handshakes. It is the
// process's one such logger, so this is for main programs.
func takeStandardLog(to *slog.Logger, provider metric.MeterProvider) error {
	s, err := newStandardLog(to, provider)
	if err != nil {
		return err
	}
	log.SetFlags(0)
	log.SetOutput(s)
	return nil
}

func newStandardLog(to *slog.Logger, provider metric.MeterProvider) (*standardLog, error) {
	counter, err := provider.Meter(meterName).Int64Counter("tracehook.tls.handshake.failures",
		metric.WithUnit("{handshake}"),
		metric.WithDescription("TLS handshakes with this server that failed, by reason."))
	if err != nil {
		return nil, fmt.Errorf("create the counter of failed handshakes: %w", err)
	}
	s := &standardLog{log: to, counter: counter, said: make([]limit.Records, len(handshakeReasons)), others: make([]limit.Records, len(messageKinds))}
	for _, r := range handshakeReasons {
		counter.Add(context.Background(), 0, failedFor(r.reason)) // so that the first one is seen to rise
	}
	return s, nil
}

func failedFor(reason string) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(semconv.ErrorTypeKey.String(reason)))
}

// Write takes one line. A failed handshake is logged once in half a minute for each reason, with the count of the
// others: anybody who reaches the port can make them fail.
func (s *standardLog) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	rest, ok := strings.CutPrefix(text, "http: TLS handshake error from ")
	if !ok {
		kind := slices.IndexFunc(messageKinds, func(begin string) bool { return strings.HasPrefix(text, begin) })
		s.others[kind].Log(context.Background(), s.log, slog.LevelWarn, "message of the standard library", func() []slog.Attr {
			return []slog.Attr{slog.String("text", text)}
		})
		return len(line), nil
	}
	remote, problem, _ := strings.Cut(rest, ": ")
	i := handshakeReason(problem)
	r := handshakeReasons[i]
	s.counter.Add(context.Background(), 1, failedFor(r.reason))
	s.said[i].Log(context.Background(), s.log, slog.LevelWarn, "TLS handshake failed", func() []slog.Attr {
		attrs := []slog.Attr{slog.String("remote", remote), slog.String("error", problem)}
		if r.hint != "" {
			attrs = append(attrs, slog.String("hint", r.hint))
		}
		return attrs
	}, slog.String("reason", r.reason))
	return len(line), nil
}

// handshakeReason is the index of the first reason whose words are in problem.
func handshakeReason(problem string) int {
	for i, r := range handshakeReasons {
		for _, words := range r.words {
			if strings.Contains(problem, words) {
				return i
			}
		}
	}
	return len(handshakeReasons) - 1
}
