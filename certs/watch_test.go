package certs

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// A watch that ends at once is not begun again at once: whatever it told before it ended, and whoever watches.
func TestAWatchThatEndsAtOnceIsBegunAgainAfterAPause(t *testing.T) {
	const secret = `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"tracehook-certs","namespace":"a","resourceVersion":"2"}}`
	for says, event := range map[string]string{
		"nothing":    "",
		"a change":   `{"type":"MODIFIED","object":` + secret + `}`,
		"a bookmark": `{"type":"BOOKMARK","object":{"kind":"Secret","apiVersion":"v1","metadata":{"resourceVersion":"3"}}}`,
		"expired":    `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410}}`,
		"garbage":    `{"type":`,
	} {
		for who, watch := range map[string]func(context.Context, kubernetes.Interface, dynamic.Interface) error{
			"source": func(ctx context.Context, clients kubernetes.Interface, _ dynamic.Interface) error {
				s, err := NewSecretSource(SourceOptions{Clients: clients, Namespace: "a", Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					return err
				}
				return s.Start(ctx)
			},
			"authority": func(ctx context.Context, clients kubernetes.Interface, objects dynamic.Interface) error {
				a, err := NewAuthority(AuthorityOptions{Clients: clients, Dynamic: objects, Namespace: "a", Identity: "x", Names: []string{"x"}})
				if err != nil {
					return err
				}
				_, wait := a.watch(ctx)
				wait()
				return nil
			},
			"rotate": func(ctx context.Context, clients kubernetes.Interface, _ dynamic.Interface) error {
				_ = WatchStatus(ctx, clients, "a", "tracehook-certs", func(Status) bool { return true })
				return nil
			},
		} {
			t.Run(who+", which is told "+says, func(t *testing.T) {
				t.Parallel()
				var watches atomic.Int32
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "application/json")
					switch {
					case r.URL.Query().Get("sendInitialEvents") != "":
						http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`, http.StatusUnprocessableEntity)
					case r.URL.Query().Get("watch") != "":
						watches.Add(1)
						fmt.Fprintln(w, event)
					default:
						fmt.Fprint(w, `{"kind":"SecretList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[`+secret+`]}`)
					}
				}))
				t.Cleanup(server.Close)
				config := &rest.Config{Host: server.URL, QPS: -1}
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
				defer cancel()
				if err := watch(ctx, kubernetes.NewForConfigOrDie(config), dynamic.NewForConfigOrDie(config)); err != nil {
					t.Fatal(err)
				}
				objects := int32(1)
				if who == "authority" {
					objects = 2
				}
				// After pauses of 1, 2 and 4 s. Without them there are thousands.
				if got := watches.Load(); got < objects || got > 4*objects {
					t.Errorf("%d watches in 4 s", got)
				}
			})
		}
	}
}

func TestThePauseBetweenWatchesGrowsAndEnds(t *testing.T) {
	now := time.Now()
	var p pace
	for i, want := range []time.Duration{0, 1, 2, 4, 8, 16, 30, 30} {
		if got := p.next(now); got != want*time.Second {
			t.Errorf("before watch %d: %s, want %s", i+1, got, want*time.Second)
		}
		p.began = now
		now = now.Add(time.Second)
	}
	if got := p.next(now.Add(time.Hour)); got != 0 {
		t.Errorf("after a watch of an hour: %s", got)
	}
	p.began = now
	if got := p.next(now); got != time.Second {
		t.Errorf("after a short one again: %s", got)
	}
}
