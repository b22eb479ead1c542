package webhook

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// testCertificate borrows the certificate that net/http/httptest carries.
func testCertificate(t *testing.T) *tls.Certificate {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	return &s.TLS.Certificates[0]
}

func startServer(t *testing.T, o ServerOptions) (s *Server, stop context.CancelFunc, ended chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Address = l.Addr().String()
	l.Close()
	certificate := testCertificate(t)
	o.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil }
	s, err = NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	for deadline := time.Now().Add(10 * time.Second); s.Ready(nil) != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not ready after 10s: %v", s.Ready(nil))
		}
	}
	return s, cancel, ended
}

func dial(t *testing.T, s *Server, protocols ...string) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", s.address, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDrainingAnswersWhatIsUnderWayAndSendsKeptConnectionsAway(t *testing.T) {
	entered, release := make(chan bool), make(chan bool)
	s, stop, ended := startServer(t, ServerOptions{
		ShutdownDelay: 300 * time.Millisecond,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "slow" {
				entered <- true
				<-release
			}
			_, _ = io.WriteString(w, "answer")
		}),
	})

	kept := dial(t, s)
	if got := roundTrip(t, kept, "/mutate"); !strings.HasPrefix(got, "200") || strings.Contains(got, "close") {
		t.Fatalf("before the drain: %s", got)
	}
	slow := dial(t, s)
	answered := make(chan string, 1)
	go func() { answered <- roundTrip(t, slow, "/mutate?slow") }()
	<-entered

	stop()
	for s.Ready(nil) == nil {
		time.Sleep(time.Millisecond)
	}
	if got := roundTrip(t, kept, "/mutate"); got != "200 close answer" {
		t.Errorf("on a kept connection while draining: %q, want an answer and Connection: close", got)
	}
	if got := roundTrip(t, dial(t, s), "/mutate"); got != "200 close answer" {
		t.Errorf("on a new connection during the delay: %q, want an answer", got)
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with %v while a call was under way", err)
	case <-time.After(600 * time.Millisecond):
	}
	close(release)
	if got := <-answered; !strings.HasSuffix(got, "answer") {
		t.Errorf("the call under way got %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
	if _, err := net.Dial("tcp", s.address); err == nil {
		t.Error("still listening")
	}
}

func roundTrip(t *testing.T, c *tls.Conn, path string) string {
	t.Helper()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Errorf("POST %s: %v", path, err)
		return ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.Close {
		return fmt.Sprintf("%d close %s", resp.StatusCode, body)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

func TestHTTP2IsServedOnlyWhenAskedFor(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		s, stop, ended := startServer(t, ServerOptions{Handler: http.NotFoundHandler(), HTTP2: enabled})
		want := "http/1.1"
		if enabled {
			want = "h2"
		}
		if got := dial(t, s, "h2", "http/1.1").ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("HTTP2 %t: negotiated %q, want %q", enabled, got, want)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestAnAddressThatCannotBeServedIsAnError(t *testing.T) {
	for _, address := range []string{"", "9443", ":0", ":http", ":99999"} {
		if _, err := NewServer(ServerOptions{Address: address}); err == nil {
			t.Errorf("%q: no error", address)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := NewServer(ServerOptions{Address: l.Addr().String(), Handler: http.NotFoundHandler(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("port in use: got %v, want an error that names the address", err)
	}
}
