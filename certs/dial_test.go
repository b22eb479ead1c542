package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

func TestAnAddressIsTheAskersOwn(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.0.0.53": true, "127.255.255.254": true, "::1": true, "::ffff:127.0.0.1": true, "0.0.0.0": true, "0.1.2.3": true, "::": true,
		"localhost": true, "LOCALHOST": true, "localhost.": true, "webhook.localhost": true, "Foo.LocalHost.": true,
		"localhost.localdomain": true, "ip6-localhost": true, "169.254.10.1": true, "fe80::1": true, "fe80::1%eth0": true,
		"10.0.0.1": false, "192.0.2.1": false, "128.0.0.1": false, "fd00::1": false, "::ffff:10.0.0.1": false,
		"localhost.example.org": false, "notlocalhost": false, "hook.team-a.svc": false, "": false,
	} {
		if got := ownAddress(host); got != want {
			t.Errorf("%q: %t, want %t", host, got, want)
		}
	}
}

// A name may lead to loopback on this machine and elsewhere on the API server's: what was dialled would be a stranger.
func TestANameThatLeadsToLoopbackIsNotDialledFromADistance(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan struct{}, 8)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- struct{}{}
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	d := door{address: net.JoinHostPort("localhost", port), serverName: "hooks.example.org"} // a name that the machine leads to loopback
	d.distant = true
	if _, err := handshake(t.Context(), nil, 5*time.Second, d, http1); !errors.Is(err, errElsewhere) {
		t.Errorf("got %v", err)
	}
	select {
	case <-accepted:
		t.Error("it was dialled")
	case <-time.After(50 * time.Millisecond):
	}
	d.distant = false
	if _, err := handshake(t.Context(), nil, 5*time.Second, d, http1); err == nil || errors.Is(err, errElsewhere) {
		t.Errorf("got %v", err)
	}
	<-accepted
}

func TestWhatAServerSaysAfterTheHandshakeIsHeard(t *testing.T) {
	now := time.Now()
	ca, err := NewCA(CAOptions{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := Issue(ca, LeafOptions{Now: now, Names: []string{"hook"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		config  *tls.Config
		hangsUp bool
		offer   []string
		says    string // "": nothing
		demands bool
	}{
		"silence":                                  {},
		"TLS 1.2":                                  {config: &tls.Config{MaxVersion: tls.VersionTLS12}},
		"it demands a certificate, TLS 1.3":        {config: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}, says: "certificate required", demands: true},
		"it demands a certificate, TLS 1.2":        {config: &tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}, says: "remote error", demands: true},
		"it asks for a certificate, TLS 1.3":       {config: &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}},
		"it takes a certificate if there is one":   {config: &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, MaxVersion: tls.VersionTLS12}},
		"it hangs up":                              {hangsUp: true, says: "hangs up after the handshake"},
		"it speaks something else":                 {config: &tls.Config{NextProtos: []string{"smtp"}}, says: "no application protocol"},
		"it speaks HTTP/2 only, to an APIService":  {config: &tls.Config{NextProtos: []string{"h2"}}, offer: http2},
		"it speaks TLS 1.1 only, which is too old": {config: &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, says: "protocol version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.config == nil {
				c.config = &tls.Config{}
			}
			c.config.Certificates = []tls.Certificate{{Certificate: [][]byte{leaf.Certificate.Raw}, PrivateKey: leaf.Key}}
			c.config.ClientCAs = x509.NewCertPool()
			client, server := net.Pipe()
			go func() {
				tlsServer := tls.Server(server, c.config)
				err := tlsServer.Handshake()
				if c.hangsUp && err == nil {
					tlsServer.Close()
				}
			}()
			dial := func(context.Context, string, string) (net.Conn, error) { return client, nil }
			if c.offer == nil {
				c.offer = http1
			}
			chain, err := handshake(t.Context(), dial, 20*time.Second, door{address: "x:1", serverName: "hook"}, c.offer)
			switch {
			case c.says == "" && err != nil, c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
				t.Errorf("got %v, want %q", err, c.says)
			case errors.Is(err, errClientCertificate) != c.demands:
				t.Errorf("got %v", err)
			case (c.says == "" || c.demands) && len(chain) != 1:
				t.Errorf("%d certificates were seen", len(chain))
			}
		})
	}
}
