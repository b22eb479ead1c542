package webhook

// What the server's handlers may do as with any server of net/http. To be run with -race.

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAConnectionThatAHandlerTookOverIsLeftToIt(t *testing.T) {
	s, _, _ := startServer(t, ServerOptions{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			conn, both, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			go func() { // it outlives the handler
				defer conn.Close()
				line, err := both.ReadString('\n')
				_, _ = fmt.Fprintf(conn, "%s%v\n", line, err)
			}()
		}),
	})
	c := dial(t, s)
	defer c.Close()
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
	time.Sleep(lingering + 200*time.Millisecond) // longer than the rest of a body is awaited
	_, _ = io.WriteString(c, "hello\n")
	answer, err := io.ReadAll(bufio.NewReader(c))
	if string(answer) != "hello\n<nil>\n" {
		t.Errorf("got %q, %v", answer, err)
	}
}

// http.TimeoutHandler gives a handler up, which reads on; and others leave a goroutine behind.
func TestAHandlerThatWasLeftBehindHarmsNobody(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", http2), func(t *testing.T) {
			var behind sync.WaitGroup
			mux := http.NewServeMux()
			givenUp := http.TimeoutHandler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				defer behind.Done()
				_, _ = r.Body.Read(make([]byte, 100<<10))
				<-r.Context().Done()
				for range 1000 {
					_, _ = r.Body.Read(make([]byte, 1<<10))
				}
			}), 50*time.Millisecond, "too late")
			mux.HandleFunc("/given-up", func(w http.ResponseWriter, r *http.Request) {
				behind.Add(1)
				givenUp.ServeHTTP(w, r)
			})
			mux.HandleFunc("/left", func(_ http.ResponseWriter, r *http.Request) {
				behind.Go(func() { _, _ = io.Copy(io.Discard, r.Body) })
			})
			s, _, _ := startServer(t, ServerOptions{Handler: mux, HTTP2: http2})
			transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: http2}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			for range 5 {
				for _, path := range []string{"/given-up", "/left"} {
					resp, err := client.Post("https://"+s.options.Address+path, "application/json", strings.NewReader(strings.Repeat(" ", 1<<20)))
					if err != nil {
						continue // the rest of the body was not wanted
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
			behind.Wait()
			transport.CloseIdleConnections()
			for deadline := time.Now().Add(20 * time.Second); s.bytes.Used() > 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d bytes are held for nobody", s.bytes.Used())
				}
			}
		})
	}
}
