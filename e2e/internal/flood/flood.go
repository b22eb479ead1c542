// Package flood makes the calls that a server has to survive, and beside them those of a
// caller who behaves.
//
// In: where the server is, and what to send. Out: how the calls ended, and how long the
// well-behaved ones took. Errors: none of its own; they are part of the tally. Every flood
// ends: the number of callers and of their calls is given, and so is the time.
package flood

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Flood is many callers who do the same.
type Flood struct {
	Address string // host:port, over TLS
	Plain   bool   // without TLS
	HTTP2   bool   // all callers share one connection
	From    string // address of loopback to call from; empty: the usual one
	// Callers make Calls each, one after the other (zero: 1), and give up after Within.
	Callers, Calls int
	Within         time.Duration

	Method, Path string // empty: POST /mutate?timeout=10s
	Header       http.Header
	// Body is sent with its length, or in chunks.
	Body    []byte
	Chunked bool
	// Pause comes after each byte beyond the first Fast ones. Zero: none.
	Pause time.Duration
	Fast  int
}

// Tally is how calls ended: by HTTP status, or "error".
type Tally struct {
	By      map[string]int
	Error   string // one of them
	Slowest time.Duration
	mu      sync.Mutex
}

func (t *Tally) String() string {
	var parts []string
	for how, n := range t.By {
		parts = append(parts, how+" × "+strconv.Itoa(n))
	}
	slices.Sort(parts)
	text := strings.Join(parts, ", ")
	if t.Error != "" {
		text += " (" + t.Error + ")"
	}
	return text
}

func (t *Tally) count(how string, took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.By[how]++
	t.Slowest = max(t.Slowest, took)
	if err != nil && t.Error == "" {
		t.Error = err.Error()
	}
}

// Run makes all calls and returns when all have ended.
func (f Flood) Run(ctx context.Context) *Tally {
	ctx, cancel := context.WithTimeout(ctx, f.Within)
	defer cancel()
	tally := &Tally{By: map[string]int{}}
	shared := f.client()
	var group sync.WaitGroup
	for range f.Callers {
		group.Go(func() {
			client := shared
			if !f.HTTP2 {
				client = f.client() // a connection of its own
				defer client.CloseIdleConnections()
			}
			for range max(1, f.Calls) {
				if ctx.Err() != nil {
					return
				}
				start := time.Now()
				how, err := f.call(ctx, client)
				tally.count(how, time.Since(start), err)
			}
		})
	}
	group.Wait()
	shared.CloseIdleConnections()
	return tally
}

func (f Flood) client() *http.Client {
	dialer := &net.Dialer{Timeout: 20 * time.Second}
	if f.From != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(f.From)}
	}
	return &http.Client{Transport: &http.Transport{
		DialContext: dialer.DialContext, ForceAttemptHTTP2: f.HTTP2,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, TLSHandshakeTimeout: f.Within,
	}}
}

func (f Flood) call(ctx context.Context, client *http.Client) (string, error) {
	scheme, method, path := "https", f.Method, f.Path
	if f.Plain {
		scheme = "http"
	}
	if method == "" {
		method = http.MethodPost
	}
	if path == "" {
		path = "/mutate?timeout=10s"
	}
	var body io.Reader = &drip{ctx: ctx, rest: f.Body, fast: f.Fast, pause: f.Pause}
	r, err := http.NewRequestWithContext(ctx, method, scheme+"://"+f.Address+path, body)
	if err != nil {
		return "error", err
	}
	r.ContentLength = int64(len(f.Body))
	if f.Chunked {
		r.ContentLength = -1
	}
	r.Header = http.Header{"Content-Type": {"application/json"}}
	for name, values := range f.Header {
		r.Header[name] = values
	}
	resp, err := client.Do(r)
	if err != nil {
		return "error", err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return strconv.Itoa(resp.StatusCode), nil
}

// drip is a body, fast first and then byte by byte.
type drip struct {
	ctx   context.Context
	rest  []byte
	fast  int
	pause time.Duration
}

func (d *drip) Read(p []byte) (int, error) {
	if len(d.rest) == 0 {
		return 0, io.EOF
	}
	n := len(p)
	if d.pause > 0 {
		if n = min(n, d.fast); n == 0 {
			select {
			case <-time.After(d.pause):
			case <-d.ctx.Done():
				return 0, d.ctx.Err()
			}
			n = 1
		} else {
			d.fast -= n
		}
	}
	n = copy(p[:n], d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// Idle opens connections and sends nothing. They are open until close is called, or the server closes
// them; n is how many handshakes succeeded.
func Idle(ctx context.Context, address string, callers int) (n int, close func()) {
	return dialAll(ctx, &tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}, address, callers)
}

// Begin is Idle, but that each caller sends this at once, whatever it is the beginning of.
func Begin(ctx context.Context, address string, callers int, send string) (n int, close func()) {
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}
	return dialAll(ctx, begins{dialer, send}, address, callers)
}

type begins struct {
	contextDialer
	send string
}

func (b begins) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := b.contextDialer.DialContext(ctx, network, address)
	if err == nil {
		_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, b.send) // the server may have had enough of it
	}
	return c, err
}

// Hello is Idle, but that each caller only begins the handshake: it sends a ClientHello, and reads nothing.
func Hello(ctx context.Context, address string, callers int) (n int, close func()) {
	here, there := net.Pipe()
	go func() { _ = tls.Client(here, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) }()
	hello := make([]byte, 16<<10)
	size, _ := there.Read(hello) // it is one record, written at once
	_ = there.Close()
	return dialAll(ctx, begins{&net.Dialer{Timeout: 20 * time.Second}, string(hello[:size])}, address, callers)
}

// Silent is Idle without a handshake.
func Silent(ctx context.Context, address string, callers int) (n int, close func()) {
	return dialAll(ctx, &net.Dialer{Timeout: 20 * time.Second}, address, callers)
}

type contextDialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

func dialAll(ctx context.Context, dialer contextDialer, address string, callers int) (n int, close func()) {
	var mu sync.Mutex
	var open []net.Conn
	var group sync.WaitGroup
	places := make(chan struct{}, 64)
	for range callers {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			c, err := dialer.DialContext(ctx, "tcp", address)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			open = append(open, c)
		})
	}
	group.Wait()
	return len(open), func() {
		for _, c := range open {
			_ = c.Close()
		}
	}
}

// WellBehaved is an API server: calls at a steady rate on a few kept connections.
type WellBehaved struct {
	Address   string
	Review    []byte
	PerSecond int
	Header    http.Header
}

// Result is what it met with.
type Result struct {
	Calls, Failed int
	Patched       int    // answered with a patch
	Error         string // one of the failures
	P50, P99, Max time.Duration
}

func (r Result) String() string {
	text := fmt.Sprintf("%d calls, %d failed, p50 %.1f ms, p99 %.1f ms, max %.1f ms", r.Calls, r.Failed,
		float64(r.P50.Microseconds())/1e3, float64(r.P99.Microseconds())/1e3, float64(r.Max.Microseconds())/1e3)
	if r.Error != "" {
		text += ": " + r.Error
	}
	return text
}

// Start calls until stop is called, which returns the result.
func (w WellBehaved) Start(ctx context.Context) (stop func() Result) {
	ctx, cancel := context.WithCancel(ctx)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 25, IdleConnTimeout: 90 * time.Second}}
	var mu sync.Mutex
	var result Result
	var took []time.Duration
	var group sync.WaitGroup
	var number atomic.Uint64
	group.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(w.PerSecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			group.Go(func() {
				start := time.Now()
				patched, err := w.call(client, number.Add(1))
				mu.Lock()
				defer mu.Unlock()
				result.Calls++
				if patched {
					result.Patched++
				}
				took = append(took, time.Since(start))
				if err != nil {
					result.Failed++
					if result.Error == "" {
						result.Error = err.Error()
					}
				}
			})
		}
	})
	return func() Result {
		cancel()
		group.Wait()
		client.CloseIdleConnections()
		slices.Sort(took)
		if n := len(took); n > 0 {
			result.P50, result.P99, result.Max = took[n/2], took[n*99/100], took[n-1]
		}
		return result
	}
}

func (w WellBehaved) call(client *http.Client, number uint64) (patched bool, err error) {
	r, err := http.NewRequest(http.MethodPost, "https://"+w.Address+"/mutate?timeout=10s", bytes.NewReader(w.Review))
	if err != nil {
		return false, err
	}
	r.Header = w.Header.Clone()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	r.Header.Set("Content-Type", "application/json")
	if r.Header.Get("Traceparent") == "" {
		r.Header.Set("Traceparent", fmt.Sprintf("00-%032x-%016x-01", number, number))
	}
	resp, err := client.Do(r)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"allowed":true`)) {
		return false, fmt.Errorf("answered %s: %.200s", resp.Status, body)
	}
	return bytes.Contains(body, []byte(`"patch":"`)), nil
}

// Connection makes calls on one connection, as long as the server keeps it.
type Connection struct {
	well   WellBehaved
	client *http.Client
	dials  atomic.Int32
}

// NewConnection opens nothing yet.
func NewConnection(address string) *Connection {
	c := &Connection{well: WellBehaved{Address: address}}
	c.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: 1,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c.dials.Add(1)
			return new(net.Dialer).DialContext(ctx, network, address)
		}}}
	return c
}

// Call makes a call of a well-behaved caller. That the connection was not kept is an error.
func (c *Connection) Call(review []byte) error {
	c.well.Review = review
	if _, err := c.well.call(c.client, 1); err != nil {
		return err
	}
	if n := c.dials.Load(); n > 1 {
		return fmt.Errorf("the connection was not kept: this is number %d", n)
	}
	return nil
}

// Close closes it.
func (c *Connection) Close() { c.client.CloseIdleConnections() }
