package certs

// Handshakes. In: an address and the name under which to ask. Out: the certificates that are served there.
// Errors: nobody there (errDial), or no TLS; the certificates may be there beside an error.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

const defaultDialTimeout = 5 * time.Second

// dialFunc makes connections, as net.Dialer does.
type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// door is what one handshake is made for. Targets that share it share the handshake.
type door struct{ address, serverName string }

// errDial marks that there was nobody to shake hands with.
var errDial = errors.New("no connection")

// handshake takes the certificates as they are: judging them is Verify's, which does not
// stop at the first fault. It speaks HTTP/1.1, as API servers do to webhooks. The chain may be there beside an error.
func handshake(ctx context.Context, dial dialFunc, timeout time.Duration, d door) (chain []*x509.Certificate, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := dial(ctx, "tcp", d.address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDial, err)
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{
		ServerName:         d.serverName,
		NextProtos:         []string{"http/1.1"},
		InsecureSkipVerify: true, // nothing is sent; Verify judges
		VerifyPeerCertificate: func(certificates [][]byte, _ [][]*x509.Certificate) error {
			for _, der := range certificates {
				certificate, err := x509.ParseCertificate(der)
				if err != nil {
					return err
				}
				chain = append(chain, certificate)
			}
			return nil
		},
	})
	err = c.HandshakeContext(ctx)
	return chain, err
}
