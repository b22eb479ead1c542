package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// sent is a request with a body, and its keeping.
func sent(budget *bodyBudget, source io.ReadCloser) (*http.Request, *keptBody) {
	r := &http.Request{Body: source, ContentLength: -1}
	return r, budget.keep(r)
}

func TestABodyCanBeSentAgainWhereverTheFirstAttemptWasCutOff(t *testing.T) {
	content := make([]byte, 300_000)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	for _, read := range []int{0, 1, 1000, 299_999, 300_000} {
		budget := newBodyBudget(keptBytesTotal)
		r, kept := sent(budget, io.NopCloser(bytes.NewReader(content)))
		if _, err := io.CopyN(io.Discard, r.Body, int64(read)); err != nil {
			t.Fatal(err)
		}
		first := r.Body
		if read%2 == 0 { // a transport closes what it gives up, or not yet
			first.Close()
		}
		second, err := r.GetBody()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := first.Read(make([]byte, 10)); n > 0 || err == nil {
			t.Errorf("the first attempt still gets %d bytes, %v", n, err)
		}
		got, err := io.ReadAll(second)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("cut off at %d: the second attempt got %d bytes, %v; equal: %t", read, len(got), err, bytes.Equal(got, content))
		}
		third, err := r.GetBody()
		if err != nil {
			t.Fatal(err)
		}
		kept.answered() // the API server may answer before it has read all
		if got, err = io.ReadAll(third); err != nil || !bytes.Equal(got, content) {
			t.Errorf("the third attempt got %d bytes, %v", len(got), err)
		}
		kept.forget()
		if left := budget.left.Load(); left != keptBytesTotal {
			t.Errorf("%d bytes of the budget are not given back", keptBytesTotal-left)
		}
	}
}

// The attempt that is given up may be waiting for the command. Its bytes are the next one's.
func TestABodyIsNotTornByAReadThatWasUnderWay(t *testing.T) {
	source, command := io.Pipe()
	r, kept := sent(newBodyBudget(keptBytesTotal), source)
	defer kept.forget()
	first := r.Body
	stuck := make(chan error, 1)
	go func() {
		_, err := first.Read(make([]byte, 10))
		stuck <- err
	}()
	for { // until the read is under way
		kept.mu.Lock()
		reading := kept.reading
		kept.mu.Unlock()
		if reading {
			break
		}
		time.Sleep(time.Millisecond)
	}
	second, err := r.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		fmt.Fprint(command, "hello ")
		fmt.Fprint(command, "world")
		command.Close()
	}()
	if got, err := io.ReadAll(second); err != nil || string(got) != "hello world" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := <-stuck; err == nil {
		t.Error("the attempt that was given up got bytes")
	}
}

func TestALargeBodyIsPassedOnAndNotKept(t *testing.T) {
	budget := newBodyBudget(keptBytesTotal)
	size := int64(keptBytesPerBody + 100_000)
	r, kept := sent(budget, io.NopCloser(io.LimitReader(zeros{}, size)))
	n, err := io.Copy(io.Discard, r.Body)
	if n != size || err != nil {
		t.Errorf("%d of %d bytes passed, %v", n, size, err)
	}
	if _, err := r.GetBody(); !errors.Is(err, errBodyNotKept) {
		t.Errorf("got %v, want that it cannot be sent again", err)
	}
	if kept.kept != nil || budget.left.Load() != keptBytesTotal {
		t.Errorf("%d bytes are kept", len(kept.kept))
	}
	known := &http.Request{Body: io.NopCloser(zeros{}), ContentLength: size}
	if kept := budget.keep(known); kept != nil || known.GetBody != nil {
		t.Error("a body that is known to be too large is kept")
	}
}

type zeros struct{}

func (zeros) Read(into []byte) (int, error) { clear(into); return len(into), nil }

func TestBodiesTogetherAreBounded(t *testing.T) {
	budget := newBodyBudget(10_000)
	var kept []*keptBody
	again := 0
	for range 100 {
		r, k := sent(budget, io.NopCloser(io.LimitReader(zeros{}, 1000)))
		if n, err := io.Copy(io.Discard, r.Body); n != 1000 || err != nil {
			t.Fatalf("%d bytes passed, %v", n, err)
		}
		if _, err := r.GetBody(); err == nil {
			again++
		}
		kept = append(kept, k)
	}
	if again != 10 {
		t.Errorf("%d bodies are kept, want as many as there is room for: 10", again)
	}
	for _, k := range kept {
		k.forget()
		k.forget() // twice is once
	}
	if left := budget.left.Load(); left != 10_000 {
		t.Errorf("%d of 10000 bytes are left after all calls", left)
	}
}

// FuzzABodySentAgain reads a body in pieces by several attempts. Each must see the body from its
// begin, whatever the pieces are and wherever the attempt before ended.
func FuzzABodySentAgain(f *testing.F) {
	f.Add([]byte("hello world"), []byte{3, 0, 5, 0, 255})
	f.Add([]byte(""), []byte{0})
	f.Fuzz(func(t *testing.T, content, steps []byte) {
		budget := newBodyBudget(int64(len(content)))
		r, kept := sent(budget, io.NopCloser(bytes.NewReader(content)))
		attempt, seen := r.Body, 0
		for _, step := range steps {
			if step == 0 {
				next, err := r.GetBody()
				if err != nil {
					t.Fatal(err)
				}
				attempt, seen = next, 0
				continue
			}
			piece := make([]byte, step)
			n, err := attempt.Read(piece)
			if !bytes.Equal(piece[:n], content[seen:seen+n]) || err != nil && err != io.EOF {
				t.Fatalf("got %q at %d, %v", piece[:n], seen, err)
			}
			seen += n
		}
		kept.answered()
		rest, err := io.ReadAll(attempt)
		if err != nil || !bytes.Equal(rest, content[seen:]) {
			t.Fatalf("got the rest %q at %d, %v", rest, seen, err)
		}
		kept.forget()
		if left := budget.left.Load(); left != int64(len(content)) {
			t.Fatalf("%d of %d bytes are left", left, len(content))
		}
	})
}

// As kube-apiserver does with --goaway-chance: an answer with this header makes Go's server send
// GOAWAY, and what was sent on the connection meanwhile is refused.
func TestWritesSurviveAnAPIServerThatSaysGoAway(t *testing.T) {
	var calls atomic.Int64
	_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if calls.Add(1)%20 == 0 {
			w.Header().Set("Connection", "close")
		}
		fmt.Fprintf(w, "%d %s", len(body), body[:5])
	})
	p, client, _, _ := startTestProxy(t, config)
	var failed atomic.Pointer[string]
	fail := func(text string) { failed.CompareAndSwap(nil, &text) }
	var clients sync.WaitGroup
	for c := range 10 {
		clients.Go(func() {
			for i := range 60 {
				size := 100
				if i%20 == 0 {
					size = 1 << 20
				}
				text := fmt.Sprintf("%02d-%02d", c, i) + strings.Repeat("x", size-5)
				response, err := client.Post(p.url+"/api/v1/namespaces/x/configmaps", "application/json", strings.NewReader(text))
				if err != nil {
					fail(err.Error())
					return
				}
				got, _ := io.ReadAll(response.Body)
				response.Body.Close()
				if want := fmt.Sprintf("%d %s", size, text[:5]); response.StatusCode != http.StatusOK || string(got) != want {
					fail(fmt.Sprintf("got %s and %q, want %q", response.Status, got, want))
				}
			}
		})
	}
	clients.Wait()
	if text := failed.Load(); text != nil {
		t.Error(*text)
	}
	if left := p.bodies.left.Load(); left != keptBytesTotal {
		t.Errorf("%d bytes of bodies are kept after all calls", keptBytesTotal-left)
	}
}

// A body that the command is still writing goes on to the API server meanwhile.
func TestABodyIsNotHeldBack(t *testing.T) {
	for _, upstream := range []string{"HTTP/2", "HTTP/1.1"} {
		t.Run(upstream, func(t *testing.T) {
			arrived := make(chan string)
			_, config := startAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
				piece := make([]byte, 5)
				for {
					if _, err := io.ReadFull(r.Body, piece); err != nil {
						return
					}
					arrived <- string(piece)
				}
			})
			if upstream == "HTTP/1.1" {
				config.NextProtos = []string{"http/1.1"}
			}
			p, client, _, _ := startTestProxy(t, config)
			source, command := io.Pipe()
			answered := make(chan error, 1)
			go func() {
				response, err := client.Post(p.url+"/api/v1/namespaces/x/pods/y/proxy/upload", "text/plain", source)
				if err == nil {
					response.Body.Close()
				}
				answered <- err
			}()
			for _, word := range []string{"first", "other"} {
				fmt.Fprint(command, word)
				select {
				case got := <-arrived:
					if got != word {
						t.Errorf("got %q, want %q", got, word)
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("%q has not arrived", word)
				}
			}
			command.Close()
			if err := <-answered; err != nil {
				t.Error(err)
			}
		})
	}
}

// An API server, or what stands before it, may close an idle connection just when the next
// request is sent. What changes nothing is sent again. What may have changed something is
// not, as client-go does not.
func TestAConnectionThatWasClosedMeanwhileCostsNoRead(t *testing.T) {
	for method, want := range map[string]int{http.MethodGet: http.StatusOK, http.MethodPost: http.StatusBadGateway} {
		t.Run(method, func(t *testing.T) {
			// Each connection answers one request, and is closed when the next has arrived.
			var requests atomic.Int64
			var used sync.Map // by the client's address
			_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				if _, again := used.LoadOrStore(r.RemoteAddr, true); again {
					connection, _, err := http.NewResponseController(w).Hijack()
					if err != nil {
						t.Error(err)
						return
					}
					connection.Close()
					return
				}
				_, _ = io.Copy(io.Discard, r.Body)
				fmt.Fprint(w, "{}")
			})
			config.NextProtos = []string{"http/1.1"}
			p, client, _, _ := startTestProxy(t, config)
			for i := range 2 {
				request, err := http.NewRequestWithContext(t.Context(), method, p.url+"/api/v1/namespaces/x/configmaps", nil)
				if err != nil {
					t.Fatal(err)
				}
				if method == http.MethodPost {
					request.Body, request.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
				}
				response, err := client.Do(request)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(response.Body)
				response.Body.Close()
				if i == 1 && response.StatusCode != want {
					t.Errorf("got %s and %q, want %d", response.Status, body, want)
				}
			}
			if requests.Load() != 2 && method == http.MethodPost {
				t.Errorf("the API server got %d requests: a write was repeated", requests.Load())
			}
		})
	}
}

// A script's next program begins with new connections, as alone: the old ones may be dead.
func TestIdleConnectionsEndWithTheProgramThatMadeThem(t *testing.T) {
	remotes := make(chan string, 1)
	_, config := startAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { remotes <- r.RemoteAddr })
	p, client, _, _ := startTestProxy(t, config)
	ask := func() string {
		get(t, client, p.url+"/version", nil)
		return <-remotes
	}
	first := ask()
	if second := ask(); second != first {
		t.Errorf("one program used %s and %s", first, second)
	}
	utilnet.CloseIdleConnectionsFor(client.Transport)
	for deadline := time.Now().Add(20 * time.Second); p.connections.Load() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the program's connection has not ended")
		}
	}
	// closeIdle runs right after the count.
	for deadline := time.Now().Add(20 * time.Second); ask() == first; utilnet.CloseIdleConnectionsFor(client.Transport) {
		if time.Now().After(deadline) {
			t.Fatalf("the next program still uses %s", first)
		}
	}
}
