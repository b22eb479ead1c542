package certs

// Who can be called, and what each of them serves. In: a Service. Out: that all of its endpoints serve a leaf. Errors: who does
// not, and what is served there instead.

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
)

// EndpointChecker says whether everybody who can be called under a name serves a certificate. An error says who does not.
type EndpointChecker interface {
	Serve(ctx context.Context, leaf *x509.Certificate) (Certainty, error)
}

// sampledHandshakes are made where nobody knows how many servers there are.
const sampledHandshakes = 16

// ServiceEndpoints checks the endpoints of a Service, each by a handshake under its server name. One that is not ready and does not
// answer is passed over; one that answers counts, as it may be ready the next moment. Behind an ExternalName nobody
// knows how many there are: it shakes hands several times and says Sampled.
type ServiceEndpoints struct {
	Clients            kubernetes.Interface
	Namespace, Service string
	Port               int32 // of the Service. Zero: 443
	// Dial makes connections. Nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// DialTimeout is for one endpoint, connection and handshake. Zero: 10 s.
	DialTimeout time.Duration
}

// Serve implements EndpointChecker. It looks once. A Service without any endpoint is an error: nobody could be asked.
func (s ServiceEndpoints) Serve(ctx context.Context, leaf *x509.Certificate) (Certainty, error) {
	way := resolveService(ctx, s.Clients, s.Namespace, s.Service, cmp.Or(s.Port, defaultPort))
	var errs []error
	for _, f := range way.findings {
		errs = append(errs, errors.New(f.Message))
	}
	certainty, times := Proven, 1
	if way.external {
		certainty, times = Sampled, sampledHandshakes
	}
	failures := make([]error, len(way.endpoints)*times)
	var group errgroup.Group
	group.SetLimit(defaultParallel)
	for i := range failures {
		group.Go(func() error {
			e := way.endpoints[i/times]
			chain, err := handshake(ctx, s.Dial, cmp.Or(s.DialTimeout, defaultDialTimeout), door{address: e.address, serverName: ServerName(s.Namespace, s.Service)}, http1)
			switch {
			case len(chain) > 0 && chain[0].Equal(leaf):
			case len(chain) > 0:
				failures[i] = fmt.Errorf("%s serves %s", e.address, describe(chain[0]))
			case e.notReady && errors.Is(err, errDial):
			case err != nil:
				failures[i] = fmt.Errorf("%s: %w", e.address, err)
			default:
				failures[i] = fmt.Errorf("%s serves no certificate", e.address)
			}
			return nil
		})
	}
	_ = group.Wait() // every error is in failures
	for i, failure := range failures {
		if failure != nil && (i%times == 0 || failures[i-1] == nil) { // the same words once
			errs = append(errs, failure)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return "", fmt.Errorf("not everybody behind Service %s/%s serves %s: %w", s.Namespace, s.Service, describe(leaf), err)
	}
	return certainty, nil
}
