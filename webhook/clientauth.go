package webhook

// Client certificates: who may ask. In: requests over TLS, a file of CAs that may change. Out: the requests
// of those who are allowed, a counter of the others. Errors: a file that cannot be used at the start; a
// change of it that cannot be used is logged, and the last good one stays.

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/time/rate"
	"k8s.io/client-go/util/cert"

	"github.com/tracehook/tracehook/webhook/limit"
)

// ClientAuthOptions of a ClientAuth. CAFile is needed.
type ClientAuthOptions struct {
	// CAFile holds the CAs whose client certificates are accepted, PEM.
	CAFile string
	// Names are whose certificates are accepted: a common name, or a DNS name or URI of the
	// subject alternative names, compared as a whole. Empty: everybody's that the CAs have signed, so
	// leave it empty only where the CAs sign for API servers and for nobody else.
	Names []string
	// Enforce answers everybody else 403. False: they are counted and logged, and served.
	Enforce bool
	// Interval is how often the file is looked at. Zero: 10 s.
	Interval time.Duration
	// Now says what time it is. Nil: time.Now.
	Now func() time.Time
	// Logger says who was refused and why, once in half a minute for each reason with the count of the others, and what is wrong with
	// the file. Nil: silence.
	Logger *slog.Logger
	// MeterProvider counts the requests. Nil: they are not counted.
	MeterProvider metric.MeterProvider
}

// ClientAuth checks that requests come from an API server, by its client certificate. An
// API server sends one if its AdmissionConfiguration names it (deploy/components/mtls).
//
// The check is made for each request and not in the handshake, so that health probes and other paths need no
// certificate, and so that it can be watched before it is enforced. It works with every
// server that uses net/http; with controller-runtime's:
//
//	auth, err := webhook.NewClientAuth(webhook.ClientAuthOptions{CAFile: …, Names: …})
//	server := ctrlwebhook.NewServer(ctrlwebhook.Options{TLSOpts: []func(*tls.Config){auth.Ask}})
//	server.Register("/mutate", auth.Check(handler))
//	manager.Add(auth) // reads the file again when it changes
//
// A manager starts it on every replica, whether it leads or not, and before its caches, which
// may need a webhook of this process.
type ClientAuth struct {
	early
	options ClientAuthOptions
	file    atomic.Pointer[clientCAs]
	// accepted certificates, by the address at which a connection keeps them: a kept connection is verified once.
	accepted *lru.Cache[*x509.Certificate, acceptance]
	counter  metric.Int64Counter
	results  map[string]*clientResult
}

// clientCAs is what the file held.
type clientCAs struct {
	pem  []byte
	pool *x509.CertPool
}

// acceptance holds as long as the CAs are the same and nothing has expired.
type acceptance struct {
	by    *clientCAs
	until time.Time
}

type clientResult struct {
	counted metric.MeasurementOption
	said    limit.Records
}

// What the counter tells apart.
const (
	clientAccepted      = "accepted"
	clientNoCertificate = "no_certificate"
	clientUntrusted     = "untrusted"
	clientExpired       = "expired" // or not valid yet
	clientWrongUsage    = "wrong_usage"
	clientWrongName     = "wrong_name"
)

const keyClientResult = attribute.Key("tracehook.client.certificate.result")

// NewClientAuth reads the file for the first time.
func NewClientAuth(o ClientAuthOptions) (*ClientAuth, error) {
	if o.Interval == 0 {
		o.Interval = 10 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MeterProvider == nil {
		o.MeterProvider = metricnoop.NewMeterProvider()
	}
	if slices.Contains(o.Names, "") {
		return nil, errors.New("an allowed name of client certificates is empty")
	}
	o.Names = slices.Clone(o.Names) // the caller's
	a := &ClientAuth{options: o, results: map[string]*clientResult{}}
	if _, err := a.read(); err != nil {
		return nil, fmt.Errorf("read the CAs of client certificates: %w", err)
	}
	var err error
	if a.accepted, err = lru.New[*x509.Certificate, acceptance](256); err != nil {
		return nil, fmt.Errorf("make the memory of accepted certificates: %w", err)
	}
	a.counter, err = o.MeterProvider.Meter(scopeName).Int64Counter("tracehook.client.certificates",
		metric.WithUnit("{request}"),
		metric.WithDescription("Requests by what their client certificate was."))
	if err != nil {
		return nil, fmt.Errorf("create the counter of client certificates: %w", err)
	}
	for _, result := range []string{clientAccepted, clientNoCertificate, clientUntrusted, clientExpired, clientWrongUsage, clientWrongName} {
		r := &clientResult{
			counted: metric.WithAttributeSet(attribute.NewSet(keyClientResult.String(result))),
		}
		a.counter.Add(context.Background(), 0, r.counted) // so that the first one is seen to rise
		a.results[result] = r
	}
	return a, nil
}

// Ask makes a TLS server ask for a client certificate, and go on without one. Which CAs are accepted is
// not told: a client with a certificate of another one would send none, and nobody would learn why.
// Certificates of more than 16 KiB end the handshake: a connection keeps them for as long as it lives.
func (a *ClientAuth) Ask(c *tls.Config) {
	c.ClientAuth = tls.RequestClientCert
	before := c.VerifyPeerCertificate
	c.VerifyPeerCertificate = func(certificates [][]byte, chains [][]*x509.Certificate) error {
		n := 0
		for _, der := range certificates {
			n += len(der)
		}
		if n > mostClientCertificates {
			return fmt.Errorf("the client's certificates have %d bytes, %d are the most", n, mostClientCertificates)
		}
		if before != nil {
			return before(certificates, chains)
		}
		return nil
	}
}

const mostClientCertificates = 16 << 10

// Start reads the file again when it has changed, until ctx ends. It returns nil.
func (a *ClientAuth) Start(ctx context.Context) error {
	tick := time.NewTicker(a.options.Interval)
	defer tick.Stop()
	complain := rate.Sometimes{First: 1, Interval: 10 * time.Minute}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		changed, err := a.read()
		switch {
		case err != nil:
			complain.Do(func() {
				a.options.Logger.Error("CAs of client certificates cannot be used; the last good ones stay", "file", a.options.CAFile, "error", err)
			})
		case changed:
			complain = rate.Sometimes{First: 1, Interval: 10 * time.Minute}
			a.options.Logger.Info("CAs of client certificates read again", "file", a.options.CAFile)
		}
	}
}

// read takes the file over if it differs from what was read last and holds certificates.
func (a *ClientAuth) read() (changed bool, err error) {
	pem, err := os.ReadFile(a.options.CAFile)
	if err != nil {
		return false, err
	}
	if last := a.file.Load(); last != nil && bytes.Equal(last.pem, pem) {
		return false, nil
	}
	certificates, err := cert.ParseCertsPEM(pem)
	if err != nil {
		return false, fmt.Errorf("%s: %w", a.options.CAFile, err)
	}
	read := &clientCAs{pem: pem, pool: x509.NewCertPool()}
	for _, c := range certificates {
		read.pool.AddCert(c)
	}
	a.file.Store(read)
	return true, nil
}

// Check lets the requests through that carry an accepted certificate, and where it is not enforced all.
func (a *ClientAuth) Check(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		result, err := a.verify(r.TLS)
		a.counter.Add(r.Context(), 1, a.results[result].counted)
		if err != nil {
			a.results[result].said.Log(r.Context(), a.options.Logger, slog.LevelWarn, "client certificate not accepted", func() []slog.Attr {
				return []slog.Attr{slog.String("error", err.Error()), slog.String("remote", r.RemoteAddr), slog.String("path", clip(r.URL.Path))}
			}, slog.String("result", result), slog.Bool("refused", a.options.Enforce))
			if a.options.Enforce {
				http.Error(w, "client certificate refused: "+result, http.StatusForbidden)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// verify names one of the results, and says what is wrong in an error.
func (a *ClientAuth) verify(state *tls.ConnectionState) (result string, err error) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return clientNoCertificate, errors.New("there is none")
	}
	// The handshake has proven that the client holds the key.
	leaf, by, now := state.PeerCertificates[0], a.file.Load(), a.options.Now()
	if known, ok := a.accepted.Get(leaf); ok && known.by == by && now.Before(known.until) {
		return clientAccepted, nil
	}
	intermediates := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: by.pool, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) {
			switch invalid.Reason {
			case x509.Expired:
				return clientExpired, fmt.Errorf("%q: %w", leaf.Subject, err)
			case x509.IncompatibleUsage:
				return clientWrongUsage, fmt.Errorf("%q: %w", leaf.Subject, err)
			}
		}
		return clientUntrusted, fmt.Errorf("%q: %w", leaf.Subject, err)
	}
	if !a.allowed(leaf) {
		return clientWrongName, fmt.Errorf("%q is none of the allowed names", leaf.Subject)
	}
	until := chains[0][0].NotAfter
	for _, c := range chains[0] {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	a.accepted.Add(leaf, acceptance{by: by, until: until})
	return clientAccepted, nil
}

func (a *ClientAuth) allowed(leaf *x509.Certificate) bool {
	if len(a.options.Names) == 0 || slices.Contains(a.options.Names, leaf.Subject.CommonName) {
		return true
	}
	for _, name := range leaf.DNSNames {
		if slices.Contains(a.options.Names, name) {
			return true
		}
	}
	for _, uri := range leaf.URIs {
		if slices.Contains(a.options.Names, uri.String()) {
			return true
		}
	}
	return false
}
