package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/webhook/limit"
)

// What a large request holds must end in time, though all turns are taken.
func TestALargeReviewWaitsForItsTurnUntilItsDeadlineOrUntilItIsGivenUp(t *testing.T) {
	for _, test := range []struct {
		name, timeout  string
		http2, givenUp bool
	}{
		{"HTTP/1.1, the deadline", "1s", false, false},
		{"HTTP/2, the deadline", "1s", true, false},
		{"HTTP/2, given up for others", "30s", true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			hook, err := New(Options{})
			if err != nil {
				t.Fatal(err)
			}
			read, taken := make(chan bool), make(chan bool)
			turn, release := make(chan bool), make(chan bool)
			mux := http.NewServeMux()
			mux.HandleFunc("/mutate", func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
				read <- true
				<-turn
				hook.ServeHTTP(w, r)
			})
			mux.HandleFunc("/take", func(_ http.ResponseWriter, r *http.Request) {
				if end, err := limit.Turn(r.Context()); err == nil {
					defer end()
				}
				taken <- true
				<-release
			})
			mux.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					http.Error(w, err.Error(), http.StatusServiceUnavailable)
				}
			})
			s, stop, ended := startServer(t, ServerOptions{Handler: mux, HTTP2: test.http2, MaxBytesInFlight: 1 << 20})
			transport := &http.Transport{ForceAttemptHTTP2: test.http2, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
			defer func() {
				close(release)
				transport.CloseIdleConnections()
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			post := func(path, body string) string {
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.options.Address+path, strings.NewReader(body))
				if err != nil {
					return err.Error()
				}
				r.Header.Set("Content-Type", "application/json")
				resp, err := transport.RoundTrip(r)
				if err != nil {
					return err.Error()
				}
				defer resp.Body.Close()
				answer, _ := io.ReadAll(resp.Body)
				return fmt.Sprintf("%d %s", resp.StatusCode, answer)
			}

			answer := make(chan string, 1)
			go func() { answer <- post("/mutate?timeout="+test.timeout, strings.Repeat("x", 500<<10)) }()
			<-read
			for range max(1, runtime.GOMAXPROCS(0)/2) {
				go post("/take", "x")
				<-taken
			}
			turn <- true
			for test.givenUp && !strings.HasPrefix(post("/read", strings.Repeat("x", 500<<10)), "200") && ctx.Err() == nil {
				time.Sleep(50 * time.Millisecond)
			}
			if got := <-answer; !strings.HasPrefix(got, "503 wait for a turn") {
				t.Errorf("answered %q, want 503", got)
			}
		})
	}
}
