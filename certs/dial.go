package certs

// Handshakes. In: an address and the name under which to ask. Out: the certificates that are served there.
// Errors: nobody there (errDial), no TLS, a client certificate that is demanded (errClientCertificate), an address that means
// another machine here than to the API server (errElsewhere); the certificates may be there beside an error.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

const (
	// defaultDialTimeout is what an API server gives a handshake, too.
	defaultDialTimeout = 10 * time.Second

	// After a handshake of TLS 1.3 the server may still refuse: for want of a client certificate, if it has asked for one, or by
	// hanging up. A server that does not refuse is silent until it is asked something, so this is also what each handshake takes.
	afterHandshake, afterRequest = 100 * time.Millisecond, 2 * time.Second
)

// dialFunc makes connections, as net.Dialer does.
type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// door is what one handshake is made for. Targets that share it share the handshake.
type door struct {
	address, serverName string
	// distant: this is not the API server's network, and a loopback address that a name leads to is another's.
	distant bool
}

var (
	// errDial marks that there was nobody to shake hands with.
	errDial = errors.New("no connection")
	// errClientCertificate marks that the server demands a client certificate.
	errClientCertificate = errors.New("the server demands a client certificate")
	// errElsewhere marks an address that is each machine's own.
	errElsewhere = errors.New("it is an address of whichever machine asks")
)

// http1 is what API servers speak to webhooks. To APIServices they speak HTTP/2 as well.
var http1, http2 = []string{"http/1.1"}, []string{"h2", "http/1.1"}

// handshake takes the certificates as they are: judging them is Verify's, which does not
// stop at the first fault. It sends nothing but the handshake. The chain may be there beside an error. A nil dial is a net.Dialer.
func handshake(ctx context.Context, dial dialFunc, timeout time.Duration, d door, protocols []string) (chain []*x509.Certificate, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if dial == nil {
		dialer := &net.Dialer{}
		if d.distant {
			dialer.ControlContext = refuseOwn
		}
		dial = dialer.DialContext
	}
	raw, err := dial(ctx, "tcp", d.address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDial, err)
	}
	defer raw.Close()
	asked := false
	c := tls.Client(raw, &tls.Config{
		ServerName:         d.serverName,
		NextProtos:         protocols,
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
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			return &tls.Certificate{}, nil // none
		},
	})
	if err = c.HandshakeContext(ctx); err == nil {
		err = refusedAfter(ctx, c, asked)
	}
	if err != nil && asked && ctx.Err() == nil { // until then all was well
		err = fmt.Errorf("%w: %w", errClientCertificate, err)
	}
	return chain, err
}

// otherProtocol: the server speaks none of those that it was offered.
func otherProtocol(err error) bool {
	return err != nil && strings.Contains(err.Error(), "tls: no application protocol")
}

// refusedAfter says why the server ends the connection after the handshake. nil: it does not.
func refusedAfter(ctx context.Context, c *tls.Conn, asked bool) error {
	wait := afterHandshake
	if asked {
		wait = afterRequest
	}
	until := time.Now().Add(wait)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	if err := c.SetReadDeadline(until); err != nil {
		return err
	}
	var timeout net.Error
	switch n, err := c.Read(make([]byte, 1)); {
	case n > 0: // a server that speaks first
		return nil
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil
	case errors.Is(err, io.EOF):
		return errors.New("the server hangs up after the handshake")
	default:
		return err
	}
}

// refuseOwn is for a net.Dialer: whatever name led there, this machine is not the one that is meant.
func refuseOwn(_ context.Context, _, address string, _ syscall.RawConn) error {
	if host, _, err := net.SplitHostPort(address); err == nil && ownAddress(host) {
		return errElsewhere
	}
	return nil
}

// ownAddress: the host means another machine to each who dials it. An API server's loopback is its own, and so is a link.
func ownAddress(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		return ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.Is4() && ip.As4()[0] == 0
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || name == "localhost.localdomain" ||
		name == "localhost6" || name == "localhost6.localdomain6" || name == "ip6-localhost" || name == "ip6-loopback"
}
