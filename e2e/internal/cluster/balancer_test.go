package cluster

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// replica answers with its name; health says whether it is ready.
func replica(t *testing.T, name string, ready *atomic.Bool) *Webhook {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	t.Cleanup(server.Close)
	health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(health.Close)
	return &Webhook{Port: server.Listener.Addr().(*net.TCPAddr).Port, HealthURL: health.URL}
}

func TestTheBalancerLeadsNewConnectionsToReadyReplicasInTurn(t *testing.T) {
	ctx := within(t, 30*time.Second)
	var aReady, bReady atomic.Bool
	aReady.Store(true)
	a, b := replica(t, "a", &aReady), replica(t, "b", &bReady)
	balancer, err := StartBalancer(BalancerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer balancer.Close()
	all, err := StartBalancer(BalancerOptions{NotReady: true})
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	balancer.Lead(ctx, a, b)
	all.Lead(ctx, a, b)

	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	ask := func(b *Balancer) string {
		resp, err := client.Get("http://" + loopback(b.Port))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	// four answers, with a cut after each or not
	four := func(b *Balancer, cut bool) string {
		var answers strings.Builder
		for range 4 {
			answers.WriteString(ask(b))
			if cut {
				if err := b.Cut(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		return answers.String()
	}

	if got := four(balancer, true); got != "aaaa" {
		t.Errorf("with one of two ready: %s, want it alone", got)
	}
	if got := four(all, true); got != "abab" && got != "baba" {
		t.Errorf("with both whether ready or not: %s, want them in turn", got)
	}
	bReady.Store(true)
	for balancer.Ready() != 2 {
		time.Sleep(lookEvery / 10)
	}
	if got := four(balancer, true); got != "abab" && got != "baba" {
		t.Errorf("with two ready: %s, want them in turn", got)
	}
	before := balancer.Accepted()
	if got := four(balancer, false); got != "aaaa" && got != "bbbb" {
		t.Errorf("on a kept connection: %s, want one of them", got)
	}
	if got := balancer.Accepted() - before; got != 1 {
		t.Errorf("%d connections for four requests that may share one", got)
	}
	if err := balancer.Cut(ctx); err != nil {
		t.Fatal(err)
	}

	// With an answer that takes its time nobody finds a connection that others have left.
	balancer.Latency(100 * time.Millisecond)
	before = balancer.Accepted()
	var wave sync.WaitGroup
	for range 8 {
		wave.Go(func() { ask(balancer) })
	}
	wave.Wait()
	if got := balancer.Accepted() - before; got != 8 {
		t.Errorf("%d connections for 8 requests at once", got)
	}
}
