package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// shared starts the one cluster, with controllers, that most tests use. Tests that stop
// or break things start their own.
var shared = sync.OnceValues(func() (*Cluster, error) {
	return Start(context.Background(), Options{Controllers: true, Progress: os.Stderr})
})

// stopShared is set once shared has been asked for.
var stopShared = func() error { return nil }

func TestMain(m *testing.M) {
	if what := os.Getenv("CLUSTER_TEST_CHILD"); what != "" {
		child(what)
		return
	}
	code := m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func sharedCluster(t *testing.T) *Cluster {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	stopShared = c.Stop
	return c
}

// within is a test's context with a limit, so that what does not come is missed by name
// and not by `go test -timeout`.
func within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// child is this test binary run by a test as a program that uses a cluster as the demo
// does.
func child(what string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
	defer stop()
	c, err := Start(ctx, Options{})
	if errors.Is(err, context.Canceled) {
		fmt.Println("interrupted while starting")
		return
	}
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	if what == "panic" {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		panic("the program that uses the cluster has a bug")
	}
	<-ctx.Done()
	if err := c.Stop(); err != nil {
		panic(err)
	}
	fmt.Println("stopped")
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var children []int
	for _, entry := range entries {
		if child, err := strconv.Atoi(entry.Name()); err == nil {
			if parent, state := stat(child); parent == pid && state != "Z" {
				children = append(children, child)
			}
		}
	}
	return children
}

// stat reads a process's parent and state; "" when there is no such process.
func stat(pid int) (parent int, state string) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, ""
	}
	// The name, in brackets, may hold anything.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	parent, _ = strconv.Atoi(fields[1])
	return parent, fields[0]
}

// wantGone fails unless all processes end soon. A zombie is gone: it only waits for
// init, which adopted it, to take note.
func wantGone(t *testing.T, pids []int) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		left = nil
		for _, pid := range pids {
			if _, state := stat(pid); state != "" && state != "Z" {
				name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
				left = append(left, fmt.Sprintf("%d %s (%s)", pid, strings.TrimSpace(string(name)), state))
			}
		}
		if left == nil {
			return
		}
	}
	t.Errorf("still running: %s", strings.Join(left, ", "))
}
