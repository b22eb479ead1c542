package hostile

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/flood"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

func TestAFloodOfRefusedCallsTakesNothingOfOthersTraces(t *testing.T) {
	s := start(t, "--max-sampled-rate=20")
	calls, stop := context.WithCancel(story.Within(t, time.Minute))
	var group sync.WaitGroup
	var refused *flood.Tally
	group.Go(func() {
		refused = flood.Flood{Address: s.webhook, Callers: 8, Calls: 1 << 20, Within: 30 * time.Second, Body: []byte("{}"), Header: sampled}.Run(calls)
	})
	time.Sleep(time.Second)
	end := flood.WellBehaved{Address: s.webhook, Review: review(t), PerSecond: 10}.Start(t.Context())
	time.Sleep(4 * time.Second)
	good := end()
	stop()
	group.Wait()
	t.Logf("refused: %s\n\tgood: %s, %d patched", refused, good, good.Patched)
	if refused.By["400"] < 500 {
		t.Errorf("no flood: %s", refused)
	}
	if good.Patched != good.Calls || good.Calls < 20 {
		t.Errorf("%d of %d good calls were stamped", good.Patched, good.Calls)
	}
	lines := strings.Count(s.log.String(), `"admission call"`)
	t.Logf("%d refused calls made %d lines of log", refused.By["400"], lines)
	if lines > 10 {
		t.Errorf("%d lines of log", lines)
	}
}

// slowly opens connections whose requests do not end, and returns what closes them.
func slowly(t *testing.T, s *server, n int) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		flood.Flood{Address: s.webhook, Callers: n, Within: time.Minute, Path: "/mutate?timeout=30s",
			Body: flood.Padded(1000), Fast: 10, Pause: time.Second}.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
}

func TestTheEndComesWithinTheGracePeriodAndLosesNoSpan(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "console")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "600000") // nothing is exported before the end
	s := start(t, "--shutdown-delay=10s")         // as shipped
	slowly(t, s, 500)
	time.Sleep(5 * time.Second) // for their handshakes
	end := flood.WellBehaved{Address: s.webhook, Review: review(t), PerSecond: 5}.Start(t.Context())
	time.Sleep(time.Second)
	if good := end(); good.Failed > 0 || good.Calls == 0 {
		t.Fatalf("before the end: %s", good)
	}
	start := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	slowly(t, s, 50) // whose time would end after that of the server
	select {
	case <-s.ended:
	case <-time.After(60 * time.Second):
		t.Fatal("no end within 60 s")
	}
	took := time.Since(start)
	log := s.log.String()
	t.Logf("the end took %s: %s", took, s.cmd.ProcessState)
	if took > 40*time.Second || s.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("the end took %s, %s; the grace period is 40 s", took, s.cmd.ProcessState)
	}
	if !strings.Contains(log, "connections cut") {
		t.Error("the log does not say that connections were cut")
	}
	if !strings.Contains(log, `"POST /mutate"`) {
		t.Error("the spans of the last calls are lost")
	}
}

func TestConnectionsThatWereIdleForNinetySecondsAreThereStill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 96 s")
	}
	s := start(t)
	body := review(t)
	const clients = 200
	var failed []string
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			one := flood.NewConnection(s.webhook)
			defer one.Close()
			// An API server gives a connection up after 90 s. Here the server must not be the first to do so.
			for _, pause := range []time.Duration{0, 89*time.Second + time.Duration(i)*6*time.Second/clients} {
				time.Sleep(pause)
				if err := one.Call(body); err != nil {
					mu.Lock()
					failed = append(failed, fmt.Sprintf("after %s: %v", pause, err))
					mu.Unlock()
				}
			}
		})
	}
	group.Wait()
	if len(failed) > 0 {
		t.Errorf("%d of %d calls failed: %s", len(failed), clients, failed[0])
	}
}

func TestWhoeverConnectsToTheSidePortsHoldsNothingUp(t *testing.T) {
	s := start(t)
	for _, address := range []string{s.health, s.metrics} {
		begin := time.Now()
		tally := flood.Flood{Address: address, Plain: true, Callers: 20, Within: 20 * time.Second, Path: "/metrics",
			Body: flood.Padded(100_000), Fast: 10, Pause: time.Second}.Run(t.Context())
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("slow bodies took %s: %s", took, tally)
		}
		if status, _ := s.get("http://" + s.health + "/readyz"); status != http.StatusOK {
			t.Errorf("/readyz: %d", status)
		}
	}
}
