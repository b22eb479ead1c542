package hostile

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/flood"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// review is a Pod of 6.9 kB, or something else as its object.
func review(t *testing.T) []byte {
	t.Helper()
	body, err := os.ReadFile("../../webhook/testdata/bench/pod.json")
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func reviewOf(name, object string) []byte {
	return []byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1","kind":{"group":"","version":"v1","kind":"ConfigMap"},` +
		`"resource":{"group":"","version":"v1","resource":"configmaps"},"name":"` + name + `","namespace":"shop","operation":"CREATE","object":` + object + `}}`)
}

// padded is a review of that many bytes.
func padded(n int) []byte {
	return reviewOf("x", `{"metadata":{},"data":{"x":"`+strings.Repeat("x", n)+`"}}`)
}

var sampled = http.Header{"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}

// attacks are what a server of 128 MiB was ended or held up by, and their like. Every one has its end.
func attacks() map[string]func(context.Context, *server) string {
	run := func(f flood.Flood) func(context.Context, *server) string {
		return func(ctx context.Context, s *server) string {
			f := f
			f.Address = s.webhook
			if f.Plain {
				f.Address = s.health
			}
			if f.Within == 0 {
				f.Within = 10 * time.Second
			}
			return f.Run(ctx).String()
		}
	}
	body := padded(6 << 20)
	many := func(n int) string {
		var b strings.Builder
		b.WriteString(`{"metadata":{}`)
		for i := range n {
			fmt.Fprintf(&b, `,"%x":0`, i)
		}
		return b.String() + "}"
	}
	return map[string]func(context.Context, *server) string{
		"200 bodies of 6 MiB, fast":                   run(flood.Flood{Callers: 200, Calls: 3, Body: body}),
		"200 bodies of 6 MiB, fast, in chunks":        run(flood.Flood{Callers: 200, Calls: 3, Body: body, Chunked: true}),
		"200 bodies of 6 MiB, the end slow":           run(flood.Flood{Callers: 200, Body: body, Fast: 6 << 20, Pause: time.Second}),
		"200 bodies of 6 MiB, slow":                   run(flood.Flood{Callers: 200, Body: body, Fast: 100 << 10, Pause: 100 * time.Millisecond}),
		"60 calls with a name of 3 MB, sampled":       run(flood.Flood{Callers: 60, Calls: 5, Body: reviewOf(strings.Repeat("n", 2900<<10), `{"metadata":{}}`), Header: sampled}),
		"300 calls with a User-Agent of 900 kB":       run(flood.Flood{Callers: 300, Calls: 2, Body: padded(10), Header: http.Header{"User-Agent": {strings.Repeat("x", 900<<10)}}}),
		"1000 headers of 30 kB, the body slow":        run(flood.Flood{Callers: 1000, Body: padded(1000), Fast: 900, Pause: time.Second, Header: http.Header{"User-Agent": {strings.Repeat("x", 30<<10)}}}),
		"1000 bodies of 15 kB, the end slow":          run(flood.Flood{Callers: 1000, Body: padded(16 << 10), Fast: 15 << 10, Pause: time.Second}),
		"1000 bodies of 60 kB, the end slow":          run(flood.Flood{Callers: 1000, Body: padded(64 << 10), Fast: 60 << 10, Pause: time.Second}),
		"40 objects of 600,000 fields":                run(flood.Flood{Callers: 40, Body: reviewOf("x", many(600_000))}),
		"40 objects of 400,000 annotations":           run(flood.Flood{Callers: 40, Body: reviewOf("x", `{"metadata":{"annotations":`+strings.ReplaceAll(many(400_000), ":0", `:""`)+`}}`)}),
		"HTTP/2, 2000 bodies of 60 kB, the end slow":  run(flood.Flood{HTTP2: true, Callers: 2000, Body: padded(64 << 10), Fast: 60 << 10, Pause: time.Second}),
		"HTTP/2, 200 bodies of 6 MiB, fast":           run(flood.Flood{HTTP2: true, Callers: 200, Calls: 3, Body: body}),
		"HTTP/2, 300 headers of 900 kB":               run(flood.Flood{HTTP2: true, Callers: 300, Body: padded(10), Header: http.Header{"User-Agent": {strings.Repeat("x", 900<<10)}}}),
		"1000 headers of lines, without an end":       begin(1000, "POST /mutate HTTP/1.1\r\n"+strings.Repeat("a:\r\n", 7000)),
		"1000 headers behind a request":               begin(1000, "GET /mutate HTTP/1.1\r\nHost: x\r\n\r\nPOST /mutate HTTP/1.1\r\n"+strings.Repeat("a:\r\n", 7000)),
		"3000 idle connections":                       idle(3000),
		"3000 connections without a handshake":        silent(3000),
		"2000 requests for readiness, in slow bodies": run(flood.Flood{Plain: true, Callers: 2000, Path: "/readyz", Body: padded(100), Fast: 50, Pause: time.Second}),
		"200 headers of 900 kB to the port of probes": run(flood.Flood{Plain: true, Callers: 200, Path: "/readyz", Method: http.MethodGet, Header: http.Header{"User-Agent": {strings.Repeat("x", 900<<10)}}}),
	}
}

func idle(n int) func(context.Context, *server) string {
	return func(ctx context.Context, s *server) string {
		open, end := flood.Idle(ctx, s.webhook, n)
		defer end()
		time.Sleep(5 * time.Second)
		return fmt.Sprintf("%d handshakes", open)
	}
}

func begin(n int, send string) func(context.Context, *server) string {
	return func(ctx context.Context, s *server) string {
		open, end := flood.Begin(ctx, s.webhook, n, send)
		defer end()
		time.Sleep(5 * time.Second)
		return fmt.Sprintf("%d handshakes", open)
	}
}

func silent(n int) func(context.Context, *server) string {
	return func(ctx context.Context, s *server) string {
		open, end := flood.Silent(ctx, s.webhook, n)
		defer end()
		time.Sleep(5 * time.Second)
		return fmt.Sprintf("%d connections", open)
	}
}

func TestNothingThatIsSentEndsTheServerOrHoldsOthersUp(t *testing.T) {
	for name := range attacks() {
		t.Run(name, func(t *testing.T) {
			var args []string
			if strings.HasPrefix(name, "HTTP/2") {
				args = append(args, "--enable-http2")
			}
			s := start(t, args...)
			well := flood.WellBehaved{Address: s.webhook, Review: review(t), PerSecond: 50}
			stop := well.Start(t.Context())
			time.Sleep(time.Second)
			before := stop()
			stop = well.Start(t.Context())
			met := attackFrom(story.Within(t, 2*time.Minute), name, s)
			beside := stop()
			if !s.alive() {
				t.Fatalf("serve ended: %s, at %s; the attack met with: %s", s.cmd.ProcessState, s.peak(), met)
			}
			t.Logf("\n\tthe attack: %s\n\tat most %s\n\tothers before: %s\n\tothers beside: %s\n\trefused: %v", met, s.peak(), before, beside, s.refused(t))
			if beside.Failed > beside.Calls/100 {
				t.Errorf("others: %s", beside)
			}
		})
	}
}
