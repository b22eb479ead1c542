package limit

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serve runs a server with these limits and returns its address.
func serve(t *testing.T, o ConnectionsOptions, handler http.Handler, secure ...bool) (string, *Connections, func() map[string]int) {
	t.Helper()
	var mu sync.Mutex
	refused := map[string]int{}
	o.Refused = func(reason string) {
		mu.Lock()
		defer mu.Unlock()
		refused[reason]++
	}
	o.MaxHeaderBytes, o.FirstRequest = 8<<10, time.Minute
	o.HeaderTimeout = cmp.Or(o.HeaderTimeout, time.Minute) // for handshakes, too, on a busy machine
	connections := NewConnections(o)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, MaxHeaderBytes: o.MaxHeaderBytes, ReadHeaderTimeout: o.HeaderTimeout, ReadTimeout: time.Minute}
	connections.Guard(server)
	var config *tls.Config
	if slices.Contains(secure, true) {
		pair := httptest.NewTLSServer(nil)
		pair.Close()
		config = pair.TLS
		config.NextProtos = nil
	}
	go func() { _ = server.Serve(connections.Listen(listener, config)) }()
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String(), connections, func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		got := map[string]int{}
		for reason, n := range refused {
			got[reason] = n
		}
		return got
	}
}

// dial connects from an address of loopback, which all belong to this machine.
func dial(t *testing.T, from, to string) net.Conn {
	t.Helper()
	dialer := net.Dialer{Timeout: 30 * time.Second}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := dialer.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// call makes a request and says what came of it.
func call(c net.Conn, body string) string {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body); err != nil {
		return "write: " + err.Error()
	}
	return answer(c)
}

func answer(c net.Conn) string {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	buffer := make([]byte, 4096)
	n, err := c.Read(buffer)
	if n == 0 {
		return "read: " + err.Error()
	}
	status, _, _ := strings.Cut(string(buffer[:n]), "\r\n")
	return status
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

var ok = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); errors.Is(err, ErrOverloaded) {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
})

func TestIdleConnectionsKeepNobodyOut(t *testing.T) {
	address, connections, refused := serve(t, ConnectionsOptions{Most: 50}, ok)
	var kept []net.Conn
	for range 10 {
		c := dial(t, "", address)
		if got := call(c, ""); got != "HTTP/1.1 200 OK" {
			t.Fatal(got)
		}
		kept = append(kept, c)
	}
	for range 200 { // never used
		dial(t, "", address)
	}
	eventually(t, "the limit holds", func() bool { return connections.Open() == 50 && refused()[ReasonConnections] == 160 })
	for i, c := range kept {
		if got := call(c, ""); got != "HTTP/1.1 200 OK" {
			t.Errorf("used connection %d, beside 200 that never were: %s", i, got)
		}
	}
	if got := call(dial(t, "", address), ""); got != "HTTP/1.1 200 OK" {
		t.Errorf("a new connection: %s", got)
	}
}

func TestACallerPaysForItsOwnConnections(t *testing.T) {
	address, connections, _ := serve(t, ConnectionsOptions{Most: 50}, ok)
	quiet := dial(t, "127.0.0.2", address) // never used, so the first to go by that rule
	for range 200 {
		c := dial(t, "127.0.0.3", address)
		if got := call(c, ""); got != "HTTP/1.1 200 OK" {
			t.Fatal(got)
		}
	}
	eventually(t, "the limit holds", func() bool { return connections.Open() == 50 })
	if got := call(quiet, ""); got != "HTTP/1.1 200 OK" {
		t.Errorf("the only connection of a caller, beside 200 of another: %s", got)
	}
}

func TestSlowRequestsGiveWayBeforeKeptConnections(t *testing.T) {
	address, _, _ := serve(t, ConnectionsOptions{Most: 20}, ok)
	kept := dial(t, "", address)
	if got := call(kept, ""); got != "HTTP/1.1 200 OK" {
		t.Fatal(got)
	}
	for range 19 {
		_, _ = io.WriteString(dial(t, "", address), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
	}
	time.Sleep(settled + 200*time.Millisecond)
	for range 5 {
		if got := call(dial(t, "", address), "x"); got != "HTTP/1.1 200 OK" {
			t.Errorf("a new connection: %s", got)
		}
	}
	if got := call(kept, ""); got != "HTTP/1.1 200 OK" {
		t.Errorf("the kept connection: %s", got)
	}
}

func TestSlowRequestsGiveWayToNewConnections(t *testing.T) {
	address, _, _ := serve(t, ConnectionsOptions{Most: 20}, ok)
	for range 20 {
		c := dial(t, "127.0.0.3", address)
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
	}
	time.Sleep(100 * time.Millisecond)
	if got := call(dial(t, "127.0.0.2", address), "x"); got != "HTTP/1.1 200 OK" {
		t.Errorf("beside 20 requests that do not end: %s", got)
	}
}

func TestEveryConnectionThatALimitEndsIsCountedByItsReason(t *testing.T) {
	for _, test := range []struct {
		reason, send string
		timeout      time.Duration
	}{
		{ReasonHeaderTooLarge, "POST / HTTP/1.1\r\nHost: x\r\nUser-Agent: " + strings.Repeat("x", 900<<10) + "\r\n\r\n", time.Minute},
		{ReasonHeaderTimeout, "POST / HTTP/1.1\r\nHost: x\r\nUser-Agent: ", 300 * time.Millisecond},
		{ReasonNoRequest, "what?\r\n\r\n", time.Minute},
	} {
		address, connections, refused := serve(t, ConnectionsOptions{HeaderTimeout: test.timeout}, ok)
		c := dial(t, "", address)
		go func() { _, _ = io.WriteString(c, test.send) }()
		eventually(t, test.reason, func() bool { return refused()[test.reason] == 1 && connections.Open() == 0 })
		if got := refused(); len(got) != 1 || got[test.reason] != 1 {
			t.Errorf("counted %v, want %s once", got, test.reason)
		}
	}
}

func TestANewConnectionMayWaitForItsFirstRequestAsLongAsAnyOther(t *testing.T) {
	address, _, _ := serve(t, ConnectionsOptions{HeaderTimeout: time.Second}, ok)
	c := dial(t, "", address)
	time.Sleep(2 * time.Second) // twice the timeout of a header
	if got := call(c, ""); got != "HTTP/1.1 200 OK" {
		t.Error(got)
	}
}

func TestBytesOfSlowRequestsAreGivenUpForOthers(t *testing.T) {
	held, pass := withClock(NewBytes(1 << 20))
	address, _, refused := serve(t, ConnectionsOptions{Bytes: held}, ok)
	large := strings.Repeat("x", 200<<10)
	var dripping []net.Conn
	for range 6 {
		c := dial(t, "", address)
		go func() {
			_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"+large)
		}()
		dripping = append(dripping, c)
	}
	eventually(t, "large requests hold their share", func() bool { return held.Used() > 600<<10 })
	if got := call(dial(t, "", address), strings.Repeat("x", 40<<10)); got != "HTTP/1.1 200 OK" {
		t.Errorf("a small request, which has a share of its own: %s", got)
	}
	if got := call(dial(t, "", address), large); got != "HTTP/1.1 503 Service Unavailable" {
		t.Errorf("one more large request at once: %s, want 503", got)
	}
	pass(slow)
	if got := call(dial(t, "", address), large); got != "HTTP/1.1 200 OK" {
		t.Errorf("a large request, when others have been slow for a second: %s", got)
	}
	answered := 0
	for _, c := range dripping {
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if answer := make([]byte, 12); readAll(c, answer) && string(answer) == "HTTP/1.1 503" {
			answered++
		}
	}
	if answered == 0 {
		t.Error("none of the slow ones was told 503")
	}
	for _, c := range dripping {
		c.Close()
	}
	eventually(t, "everything is given back", func() bool { return held.Used() == 0 })
	if refused()[ReasonBytes] == 0 {
		t.Error("none was counted")
	}
}

// withClock makes time pass for b only when it is told so.
func withClock(b *Bytes) (_ *Bytes, pass func(time.Duration)) {
	var now atomic.Int64
	b.now = func() time.Duration { return time.Duration(now.Load()) }
	return b, func(d time.Duration) { now.Add(int64(d)) }
}

func readAll(c net.Conn, p []byte) bool {
	_, err := io.ReadFull(c, p)
	return err == nil
}

// Who does not read an answer holds its request for as long. That ends when another one needs the room.
func TestAnAnswerThatNobodyReadsIsCutOffForOthersAndCounted(t *testing.T) {
	const callers = 3
	held, pass := withClock(NewBytes(1 << 20))
	var answering atomic.Int32
	unwritten := make(chan error, callers)
	address, _, refused := serve(t, ConnectionsOptions{Bytes: held}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ok(w, r)
		if r.URL.Path != "/long" {
			return
		}
		answering.Add(1)
		for chunk := make([]byte, 1<<20); ; { // more than all buffers between here and there
			if _, err := w.Write(chunk); err != nil {
				unwritten <- err
				return
			}
		}
	}))
	large := strings.Repeat("x", 200<<10)
	for range callers {
		c := dial(t, "127.0.0.3", address)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(c, "POST /long HTTP/1.1\r\nHost: x\r\nContent-Length: "+strconv.Itoa(len(large))+"\r\n\r\n"+large); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are being answered", func() bool { return answering.Load() == callers })
	if used := held.Used(); used < callers*int64(len(large)-free) {
		t.Errorf("%d bytes are held for %d requests whose answers nobody reads", used, callers)
	}
	if got := call(dial(t, "", address), large+large); got != "HTTP/1.1 503 Service Unavailable" {
		t.Errorf("one more at once: %s, want 503", got)
	}
	pass(slow)
	if got := call(dial(t, "", address), large+large); got != "HTTP/1.1 200 OK" {
		t.Errorf("another's large request: %s", got)
	}
	if err := <-unwritten; !isTimeout(err) {
		t.Errorf("its handler learns of it by %v, want a timeout", err)
	}
	// The one that got 503, and of the others as many as made enough room.
	eventually(t, "two are cut off and counted", func() bool { return refused()[ReasonBytes] == 1+2 })
	if n := len(unwritten) + 1; n > 2 {
		t.Errorf("%d were cut off, and two would have done", n)
	}
}

func TestASmallCallWaitsForNoTurn(t *testing.T) {
	address, connections, _ := serve(t, ConnectionsOptions{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if n > Large {
			if end, err := Turn(r.Context()); err == nil {
				end()
			}
		}
	}), true)
	handshake := func() net.Conn { return tls.Client(dial(t, "", address), &tls.Config{InsecureSkipVerify: true}) }
	kept, large := handshake(), handshake()
	for _, c := range []net.Conn{kept, large} {
		if got := call(c, "x"); got != "HTTP/1.1 200 OK" {
			t.Fatal(got)
		}
	}
	turns := connections.turns
	busy := unused(turns)
	for range busy {
		turns.take(netip.Addr{}, nil, nil)
	}
	done := make(chan string, 2)
	go func() { done <- call(handshake(), "x") }()
	go func() { done <- call(large, strings.Repeat("x", 200<<10)) }()
	eventually(t, "a handshake and a large request wait", func() bool { return waiting(turns) == 2 })
	for range 10 { // two of them may be counted as one: net/http reads ahead before it says that a call has ended
		if got := call(kept, strings.Repeat("x", Large/4)); got != "HTTP/1.1 200 OK" {
			t.Errorf("a small call: %s", got)
		}
	}
	for range busy {
		turns.give()
	}
	for range 2 {
		if got := <-done; got != "HTTP/1.1 200 OK" {
			t.Errorf("when they have had their turns: %s", got)
		}
	}
	eventually(t, "all turns are given back", func() bool { return unused(turns) == busy && waiting(turns) == 0 })
}

func TestWhoIsSlowHoldsNoTurn(t *testing.T) {
	address, _, _ := serve(t, ConnectionsOptions{}, ok, true)
	for range 20 { // a handshake, and a large request, that do not go on
		_, _ = io.WriteString(dial(t, "", address), "\x16\x03\x01\x02\x00\x01")
		c := tls.Client(dial(t, "", address), &tls.Config{InsecureSkipVerify: true})
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat("x", 100<<10))
	}
	if got := call(tls.Client(dial(t, "", address), &tls.Config{InsecureSkipVerify: true}), strings.Repeat("x", 200<<10)); got != "HTTP/1.1 200 OK" {
		t.Errorf("a large request on a new connection: %s", got)
	}
}

func waiting(t *turns) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.waiting {
		n += len(l.next)
	}
	return n
}

func unused(t *turns) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.free
}

// large returns a connection of which so many bytes came that it takes turns, and its peer.
func large(t *testing.T, turns *turns) (c *conn, peer net.Conn) {
	t.Helper()
	raw, peer := net.Pipe()
	t.Cleanup(func() { raw.Close(); peer.Close() })
	connections := NewConnections(ConnectionsOptions{Bytes: NewBytes(0)})
	connections.turns = turns
	c, _ = connections.add(raw)
	c.paced = paceLarge
	c.received.Store(Large)
	return c, peer
}

// A caller can make TLS write within Read, by asking for new keys, and read nothing of it.
func TestAWriteHoldsNoTurn(t *testing.T) {
	read := func(c *conn, peer net.Conn) {
		go func() { _, _ = peer.Write([]byte("x")) }()
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(c *conn) {
		go func() { _, _ = c.Write([]byte("answer")) }()
		eventually(t, "it is being written", func() bool { return c.writing.Load() == 1 })
	}
	turns := &turns{free: 1}
	c, peer := large(t, turns)
	read(c, peer)
	if n := unused(turns); n != 0 {
		t.Fatalf("%d turns are unused while what came is worked at", n)
	}
	write(c)
	eventually(t, "the turn is given back", func() bool { return unused(turns) == 1 })

	read(c, peer) // an answer to this would have to wait for the other one
	if n := unused(turns); n != 1 {
		t.Error("a turn is held behind a write")
	}
	c.rest()
	if n := unused(turns); n != 1 {
		t.Errorf("%d turns in the end, of 1", n)
	}
}

func TestWhoIsEvictedWaitsForNoTurn(t *testing.T) {
	const most, callers = 10, 60
	var failed atomic.Int32
	address, connections, refused := serve(t, ConnectionsOptions{Most: most, HandshakeFailed: func(net.Addr, error) { failed.Add(1) }}, ok, true)
	turns := connections.turns
	busy := unused(turns)
	for range busy {
		turns.take(netip.Addr{}, nil, nil)
	}
	for i := range callers {
		c := dial(t, "", address)
		go func() { _ = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
		eventually(t, "as many wait as may be open", func() bool { return waiting(turns) == min(i+1, most) })
	}
	eventually(t, "evictions are counted", func() bool { return refused()[ReasonConnections] == callers-most })
	for range busy {
		turns.give()
	}
	eventually(t, "all turns are given back", func() bool { return unused(turns) == busy && waiting(turns) == 0 })
	if n := failed.Load(); n != 0 {
		t.Errorf("%d evictions were counted as failed handshakes", n)
	}
}

func TestATurnThatNobodyWaitsForAnyMoreIsGivenOn(t *testing.T) {
	turns := &turns{}
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	gone, left := make(chan struct{}), make(chan bool)
	go func() { left <- turns.take(a, gone, nil) }()
	eventually(t, "it waits", func() bool { return waiting(turns) == 1 })
	mine := turns.waiting[0].next[0]
	other := make(chan bool)
	go func() { other <- turns.take(b, nil, nil) }()
	eventually(t, "both wait", func() bool { return waiting(turns) == 2 })
	close(gone)
	if <-left {
		t.Error("it got a turn when it was gone")
	}
	turns.leave(a, mine) // as if it had been granted
	if !<-other {
		t.Error("the other one got none")
	}
	if n := waiting(turns); n != 0 {
		t.Errorf("%d wait at the end", n)
	}
}

func TestARequestThatIsGivenUpWaitsForNoTurn(t *testing.T) {
	for name, end := range map[string]func(c *conn, cancel func()){
		"its bytes are given up for others": func(c *conn, _ func()) {
			c.of.o.Bytes.mu.Lock()
			defer c.of.o.Bytes.mu.Unlock()
			c.hold.interrupt()
		},
		"its connection is evicted": func(c *conn, _ func()) { c.of.remove(c) },
		"its context ends":          func(_ *conn, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			turns := &turns{}
			c, _ := large(t, turns)
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), connectionKey{}, c))
			defer cancel()
			ended := make(chan error)
			go func() {
				_, err := Turn(ctx)
				ended <- err
			}()
			eventually(t, "it waits", func() bool { return waiting(turns) == 1 })
			end(c, cancel)
			select {
			case err := <-ended:
				if err == nil {
					t.Error("it got a turn")
				}
			case <-time.After(time.Minute):
				t.Fatal("it still waits")
			}
			if n := waiting(turns); n != 0 {
				t.Errorf("%d wait at the end", n)
			}
		})
	}
}

func TestWhatIsReadOfARequestThatIsGivenUpWaitsForNoTurn(t *testing.T) {
	turns := &turns{}
	c, peer := large(t, turns)
	go func() { _, _ = peer.Write([]byte("x")) }()
	ended := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	eventually(t, "it waits", func() bool { return waiting(turns) == 1 })
	c.giveUp()
	if err := <-ended; !errors.Is(err, ErrOverloaded) {
		t.Errorf("got %v, want %v", err, ErrOverloaded)
	}
}

func TestAddressesHaveTheirTurnsOneAfterTheOther(t *testing.T) {
	many, one := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	turns := &turns{free: 1}
	turns.take(many, nil, nil)
	order := make(chan netip.Addr)
	for i, address := range []netip.Addr{many, many, many, one} {
		go func() {
			turns.take(address, nil, nil)
			order <- address
			turns.give()
		}()
		eventually(t, "it waits", func() bool { return waiting(turns) == i+1 })
	}
	turns.give()
	var got []netip.Addr
	for range 4 {
		got = append(got, <-order)
	}
	if want := []netip.Addr{many, one, many, many}; !slices.Equal(got, want) {
		t.Errorf("the order is %v, want %v", got, want)
	}
}

func TestWhatIsAnnouncedTakesNothing(t *testing.T) {
	held := NewBytes(1 << 20)
	address, _, _ := serve(t, ConnectionsOptions{Bytes: held}, ok)
	for range 50 {
		_, _ = io.WriteString(dial(t, "", address), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
	}
	if got := call(dial(t, "", address), strings.Repeat("x", 500<<10)); got != "HTTP/1.1 200 OK" {
		t.Errorf("beside 50 announcements: %s", got)
	}
}

func TestABodyIsCountedOnASharedConnectionToo(t *testing.T) {
	held, pass := withClock(NewBytes(1 << 20))
	interrupted := make(chan bool, 1)
	first, err := held.NewBody(io.NopCloser(strings.NewReader(strings.Repeat("x", 700<<10))), 100, func() { interrupted <- true })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, first); err != nil {
		t.Fatal(err)
	}
	more := func() error {
		body, err := held.NewBody(io.NopCloser(strings.NewReader(strings.Repeat("x", 400<<10))), 100, func() {})
		if err != nil {
			return err
		}
		defer body.Release()
		_, err = io.Copy(io.Discard, body)
		return err
	}
	if err := more(); !errors.Is(err, ErrOverloaded) {
		t.Errorf("got %v, want %v", err, ErrOverloaded)
	}
	pass(slow)
	if err := more(); err != nil {
		t.Errorf("got %v when the first was slow", err)
	}
	<-interrupted
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, ErrOverloaded) {
		t.Errorf("the first got %v, want %v", err, ErrOverloaded)
	}
	first.Release()
	if used := held.Used(); used != 0 {
		t.Errorf("%d bytes are held at the end", used)
	}
}

func TestOfManyRecordsOneIsWrittenAndTheOthersAreCounted(t *testing.T) {
	var mu sync.Mutex
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return out.Write(p)
	}), nil))
	records := Records{Every: 200 * time.Millisecond}
	for i := range 1000 {
		records.Log(t.Context(), log, slog.LevelWarn, "refused", func() []slog.Attr { return []slog.Attr{slog.Int("i", i)} }, slog.String("reason", "r"))
	}
	eventually(t, "the first record, and the count of the others", func() bool {
		mu.Lock()
		defer mu.Unlock()
		text := out.String()
		return strings.Contains(text, "msg=refused i=0 reason=r") && strings.Contains(text, "like=refused left_out=")
	})
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestAHeaderOfManyLinesIsRefused(t *testing.T) {
	many := "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:\r\n", 101)
	for _, test := range []struct{ name, sent, want string }{
		{"90 lines", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:\r\n", 90) + "\r\n", "HTTP/1.1 200 OK"},
		{"101 lines", many + "\r\n", "HTTP/1.1 431 Request Header Fields Too Large"},
		{"101 lines, and it has not ended", many, "HTTP/1.1 431 Request Header Fields Too Large"},
		{"101 lines, ended by LF alone", strings.ReplaceAll(many, "\r", "") + "\n", "HTTP/1.1 431 Request Header Fields Too Large"},
		{"a body of 1000 lines", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + strings.Repeat("x\n", 1000), "HTTP/1.1 200 OK"},
		{"a body of 1000 lines in chunks", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + strings.Repeat("x\n", 1000) + "\r\n0\r\n\r\n", "HTTP/1.1 200 OK"},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %t", test.name, secure), func(t *testing.T) {
				address, _, refused := serve(t, ConnectionsOptions{}, ok, secure)
				for _, bytewise := range []bool{false, true} {
					c := dial(t, "", address)
					if secure {
						c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
					}
					go func() {
						for i := 0; bytewise && i < len(test.sent)-1; i++ { // CR and LF in two pieces, too
							if _, err := io.WriteString(c, test.sent[i:i+1]); err != nil {
								return
							}
						}
						if bytewise {
							_, _ = io.WriteString(c, test.sent[len(test.sent)-1:])
						} else {
							_, _ = io.WriteString(c, test.sent)
						}
					}()
					if got := answer(c); got != test.want {
						t.Errorf("byte by byte %t: %s, want %s", bytewise, got, test.want)
					}
				}
				if n, want := refused()[ReasonHeaderTooLarge], 2*strings.Count(test.want, "431"); n != want {
					t.Errorf("%d were counted, want %d", n, want)
				}
			})
		}
	}
}

// What comes behind a request in the same piece is read without being counted, so it is not read as a request.
func TestTheLinesOfARequestBehindAnotherAreNotLeftUncounted(t *testing.T) {
	first := "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok"
	second := "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:\r\n", 10)
	for name, sent := range map[string]string{
		"both at once":            first + second,
		"behind a body in chunks": "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + second,
	} {
		t.Run(name, func(t *testing.T) {
			var handled atomic.Int32
			address, _, _ := serve(t, ConnectionsOptions{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handled.Add(1)
				ok(w, r)
			}))
			c := dial(t, "", address)
			_, _ = io.WriteString(c, sent)
			if got := answer(c); got != "HTTP/1.1 200 OK" {
				t.Fatal(got)
			}
			_, _ = io.WriteString(c, strings.Repeat("a:\r\n", 200)+"\r\n") // the rest
			// net/http answers the piece that it has with 400; the reset behind that may overtake it.
			if got := answer(c); !strings.HasPrefix(got, "read: ") && got != "HTTP/1.1 400 Bad Request" {
				t.Errorf("the second request got %s", got)
			}
			if n := handled.Load(); n != 1 {
				t.Errorf("%d requests were handled", n)
			}
		})
	}
}

// net/http skips what some old clients send behind a POST.
func TestEmptyLinesInFrontOfARequestEndNoHeader(t *testing.T) {
	address, _, _ := serve(t, ConnectionsOptions{}, ok)
	c := dial(t, "", address)
	if got := call(c, "x"); got != "HTTP/1.1 200 OK" {
		t.Fatal(got)
	}
	_, _ = io.WriteString(c, "\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\n"+strings.Repeat("a:\r\n", 200))
	if got := answer(c); got != "HTTP/1.1 431 Request Header Fields Too Large" {
		t.Errorf("got %s", got)
	}
}

func TestRequestsOneAfterTheOtherShareAConnection(t *testing.T) {
	for _, secure := range []bool{false, true} {
		address, _, refused := serve(t, ConnectionsOptions{}, ok, secure)
		c := dial(t, "", address)
		if secure {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		for i := range 50 {
			if got := call(c, strings.Repeat("x\n", 1000*i)); got != "HTTP/1.1 200 OK" {
				t.Fatalf("TLS %t, call %d: %s", secure, i, got)
			}
		}
		if got := refused(); len(got) != 0 {
			t.Errorf("refused: %v", got)
		}
	}
}

func TestAHandshakeThatPanicsEndsItsConnectionAlone(t *testing.T) {
	failed := make(chan error, 1)
	connections := NewConnections(ConnectionsOptions{HandshakeFailed: func(_ net.Addr, err error) { failed <- err }})
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := connections.Listen(raw, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { panic("of the callback") }})
	defer listener.Close()
	c := tls.Client(dial(t, "", raw.Addr().String()), &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err == nil {
		t.Error("the handshake succeeded")
	}
	if err := <-failed; !strings.Contains(err.Error(), "of the callback") {
		t.Error(err)
	}
	eventually(t, "it is no longer counted", func() bool { return connections.Open() == 0 })
}

func FuzzHeaderReaderFindsTheEndWhereNetHTTPFindsIt(f *testing.F) {
	for _, seed := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\nHost: x\nContent-Length: 4\n\nx\n\ny", "\r\n\r\n", "GET / HTTP/1.1\r\na: \r\r\n\r\n"} {
		f.Add(seed, byte(3))
	}
	f.Fuzz(func(t *testing.T, text string, piece byte) {
		reader := bufio.NewReader(strings.NewReader(text))
		if _, err := http.ReadRequest(reader); err != nil {
			return
		}
		rest, _ := io.ReadAll(reader) // the body too: nobody has read it
		var h headerReader
		few := true
		for sent := text; sent != "" && few; {
			n := min(len(sent), int(piece)+1)
			few = h.read([]byte(sent[:n]))
			sent = sent[n:]
		}
		if header := text[:len(text)-len(rest)]; few != (strings.Count(header, "\n") <= mostLines) || few && (!h.whole || h.after != int64(len(rest))) {
			t.Errorf("%q: few lines %t, whole %t, %d bytes after the header, want %d", text, few, h.whole, h.after, len(rest))
		}
	})
}
