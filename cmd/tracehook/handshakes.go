package main

// TLS handshakes that failed. In: with whom, and why. Out: a counter by reason, and log records. Errors: none.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/tracehook/tracehook/webhook/limit"
)

// startPatience is how long a first start may take: an API server learns of a new caBundle a moment after us.
const startPatience = 10 * time.Second

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

// Why a handshake failed.
const (
	handshakeUnknownAuthority = "unknown_authority"
	handshakeBadCertificate   = "bad_certificate"
	handshakeNoCertificate    = "no_certificate"
	handshakeTimeout          = "timeout"
	handshakeProtocol         = "protocol"
	handshakeEOF              = "eof"
	handshakeOther            = "other"
)

// handshakeReasons are all of them, with what to do.
var handshakeReasons = []struct{ reason, hint string }{
	{handshakeUnknownAuthority, "the caller does not trust the CA of our certificate: `tracehook certs audit` says why"},
	{handshakeBadCertificate, "an API server refuses our certificate: `tracehook certs audit` says why"},
	{handshakeNoCertificate, "/readyz says what is missing"},
	{handshakeTimeout, ""}, {handshakeProtocol, ""}, {handshakeEOF, ""}, {handshakeOther, ""},
}

// handshakes counts and logs those that failed.
type handshakes struct {
	log     *slog.Logger
	counter metric.Int64Counter
	begun   time.Time
	said    []limit.Records // by index of handshakeReasons
}

func newHandshakes(log *slog.Logger, provider metric.MeterProvider) (*handshakes, error) {
	counter, err := provider.Meter(meterName).Int64Counter("tracehook.tls.handshake.failures",
		metric.WithUnit("{handshake}"),
		metric.WithDescription("TLS handshakes with this server that failed, by reason."))
	if err != nil {
		return nil, fmt.Errorf("create the counter of failed handshakes: %w", err)
	}
	for _, r := range handshakeReasons {
		counter.Add(context.Background(), 0, failedFor(r.reason)) // so that the first one is seen to rise
	}
	return &handshakes{log: log, counter: counter, begun: time.Now(), said: make([]limit.Records, len(handshakeReasons))}, nil
}

func failedFor(reason string) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(semconv.ErrorTypeKey.String(reason)))
}

// failed counts one. It is logged once in half a minute for each reason, with the count of the
// others: anybody who reaches the port can make them fail.
func (h *handshakes) failed(remote net.Addr, err error) {
	reason := handshakeReason(err)
	h.counter.Add(context.Background(), 1, failedFor(reason))
	for i, r := range handshakeReasons {
		if r.reason != reason {
			continue
		}
		level := slog.LevelWarn
		if time.Since(h.begun) < startPatience && (reason == handshakeUnknownAuthority || reason == handshakeBadCertificate) {
			level = slog.LevelInfo
		}
		h.said[i].Log(context.Background(), h.log, level, "TLS handshake failed", func() []slog.Attr {
			attrs := []slog.Attr{slog.String("remote", remote.String()), slog.Any("error", err)}
			if r.hint != "" {
				attrs = append(attrs, slog.String("hint", r.hint))
			}
			return attrs
		}, slog.String("reason", reason))
	}
}

// handshakeReason is why a server's handshake failed. A Go client, an API server that is, says "bad certificate" whatever it
// has against ours.
func handshakeReason(err error) string {
	var remote *net.OpError
	var timeout net.Error
	switch {
	case errors.Is(err, errNoCertificate):
		return handshakeNoCertificate
	case errors.As(err, &remote) && remote.Op == "remote error": // an alert, whose type crypto/tls does not export
		switch alert := remote.Err.Error(); {
		case strings.HasSuffix(alert, "unknown certificate authority"):
			return handshakeUnknownAuthority
		case strings.HasSuffix(alert, "certificate"): // bad, expired, unknown, unsupported, revoked
			return handshakeBadCertificate
		}
		return handshakeProtocol
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return handshakeTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return handshakeEOF
	case strings.HasPrefix(err.Error(), "tls: "):
		return handshakeProtocol
	}
	return handshakeOther
}
