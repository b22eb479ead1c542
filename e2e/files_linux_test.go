package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

// On a machine where others have used inotify up the files are read all the same, and a new pair is served. In a user namespace of
// its own a process can be given no inotify at all, and nobody else on this machine is touched.
func TestFilesAreServedAndRenewedWhereInotifyIsUsedUp(t *testing.T) {
	none := func(command string) *exec.Cmd {
		return exec.Command("unshare", "--user", "--map-root-user", "sh", "-c", "echo 0 >/proc/sys/user/max_inotify_instances && "+command)
	}
	if out, err := none("true").CombinedOutput(); err != nil {
		t.Skipf("no user namespace can be made here: %v %s", err, out)
	}
	dir := t.TempDir()
	ca := forge(t, nil, forgedCA("CA"))
	write := func() certs.KeyPair {
		leaf := forge(t, &ca, forHost("hook.default.svc"))
		key, err := leaf.KeyPEM()
		if err != nil {
			t.Fatal(err)
		}
		for name, contents := range map[string][]byte{"tls.key": key, "tls.crt": pemOf(leaf)} {
			if err := os.WriteFile(filepath.Join(dir, name), contents, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return leaf
	}
	leaf := write()
	address := fmt.Sprintf("127.0.0.1:%d", 20000+mathrand.IntN(12000))
	cmd := none(fmt.Sprintf("exec %s serve --lineage off --webhook-cert-path %s --webhook-bind-address %s --health-probe-bind-address 0 --metrics-bind-address 0 --shutdown-delay 0s",
		installed.tracehook, dir, address))
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	serves := func(want certs.KeyPair) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			select {
			case err := <-ended:
				t.Fatalf("it ended: %v\n%s", err, &out)
			default:
			}
			c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
			if err == nil {
				got := c.ConnectionState().PeerCertificates[0]
				c.Close()
				if got.Equal(want.Certificate) {
					return
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("another certificate is served: %v", err)
			}
		}
	}
	serves(leaf)
	serves(write())
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || strings.Contains(out.String(), "too many open files") {
		t.Errorf("it ended with %v:\n%s", err, &out)
	}
}
