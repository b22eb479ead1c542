package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal is a pseudo-terminal: what is written to keyboard is typed, and the
// process that has screen as its controlling terminal is told of Ctrl-C.
func openTerminal(t *testing.T) (keyboard, screen *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keyboard.Close() })
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { screen.Close() })
	return keyboard, screen
}

// asSignalCounter makes this program count the SIGINTs that it gets until it gets a
// SIGUSR1. A shell would take two in a row for one.
const asSignalCounter = "TRACEHOOK_TEST_AS_SIGNAL_COUNTER"

func init() { //nolint:gochecknoinits // before TestMain reads the arguments, which are the command's here
	if os.Getenv(asSignalCounter) == "" {
		return
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGUSR1)
	fmt.Println("ready")
	for interrupts := 0; ; interrupts++ {
		if <-signals == syscall.SIGUSR1 {
			fmt.Println("interrupted", interrupts)
			os.Exit(0)
		}
	}
}

// A second SIGINT is what makes kubectl give up its clean-up.
func TestCtrlCReachesTheCommandOnce(t *testing.T) {
	keyboard, screen := openTerminal(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process := exec.Command(self, "trace", "--", "env", asSignalCounter+"=1", self)
	process.Args[0] = "tracehook"
	process.Env = append(os.Environ(), "KUBECONFIG="+writeUserKubeconfig(t), "OTEL_TRACES_EXPORTER=none")
	process.Stdin, process.Stdout, process.Stderr = screen, screen, screen
	process.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Process.Kill() })
	screen.Close() // so that reading ends when the processes do

	lines := bufio.NewScanner(keyboard)
	var seen []string
	next := func(want string) {
		t.Helper()
		for lines.Scan() {
			line := strings.TrimSpace(lines.Text())
			seen = append(seen, line)
			if strings.HasSuffix(line, want) { // the terminal echoes ^C in front
				return
			}
		}
		t.Fatalf("waited for %q in vain; the terminal shows\n%s", want, strings.Join(seen, "\n"))
	}
	next("ready")
	if _, err := keyboard.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // for a second SIGINT to arrive, if there is one
	// The positive control: what is sent to tracehook alone does arrive.
	if err := process.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	next("interrupted 1")
	if err := process.Wait(); err != nil {
		t.Error(err)
	}
}
