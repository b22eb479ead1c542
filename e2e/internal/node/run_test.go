//go:build linux

package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// idle has this program be a run that waits to be killed.
const idle = "TRACEHOOK_NODES_TEST_IDLE"

func TestMain(m *testing.M) {
	if os.Getenv(idle) != "" {
		os.Exit(Main(Options{Run: wait}))
	}
	os.Exit(m.Run())
}

// wait has what a run with a node has: a bridge, mounts, cgroups with processes in them.
func wait(dir string) int {
	if err := makeCgroups(filepath.Base(dir), "node1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	sleep := exec.Command("sleep", "600")
	err := sleep.Start()
	mounts, mountsErr := cgroupMounts()
	err = errors.Join(err, mountsErr)
	for _, mount := range mounts {
		err = errors.Join(err, os.WriteFile(filepath.Join(mount, filepath.Base(dir), "node1", "cgroup.procs"), []byte(strconv.Itoa(sleep.Process.Pid)), 0))
	}
	_, bridgeErr := net.InterfaceByName(bridge)
	if err = errors.Join(err, bridgeErr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(dir)
	time.Sleep(time.Hour) // until it is killed
	return 1
}

func TestAKilledRunLeavesNothingBehind(t *testing.T) {
	if err := Possible(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("not run:", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := exec.Command(self)
	run.Env = append(os.Environ(), idle+"=yes")
	run.Stderr = os.Stderr
	out, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the run said %q: %v", line, err)
	}
	dir := strings.TrimSpace(line)
	if left := leftOf(t, dir); len(left) < 3 {
		t.Errorf("of a run there is only %v, so its end would show nothing", left)
	}
	if err := run.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = run.Wait() // killed

	var left []string
	for range 600 {
		if left = leftOf(t, dir); len(left) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("half a minute after kill -9 there is still %v", left)
}

// leftOf lists what there is of a run on the machine.
func leftOf(t *testing.T, dir string) (left []string) {
	t.Helper()
	if exists(dir) {
		left = append(left, dir)
	}
	mounts, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, mount := range mounts {
		if cgroup := filepath.Join(mount, filepath.Base(dir)); exists(cgroup) {
			left = append(left, cgroup)
		}
	}
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range environments {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte(dirVariable+"="+dir)) {
			left = append(left, file)
		}
	}
	if info, err := os.ReadFile("/proc/self/mountinfo"); err != nil {
		t.Fatal(err)
	} else if bytes.Contains(info, []byte(dir)) {
		left = append(left, "a mount")
	}
	if _, err := net.InterfaceByName(bridge); err == nil {
		left = append(left, "bridge "+bridge)
	}
	return left
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
