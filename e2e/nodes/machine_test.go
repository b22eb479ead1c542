//go:build linux

package nodes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sysctls that kubelet and kube-proxy set.
var sysctls = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"}

// noteSysctls keeps what the machine has before there are nodes.
func noteSysctls(dir string) error {
	return os.WriteFile(filepath.Join(dir, "sysctls"), []byte(readSysctls()), 0o600)
}

func readSysctls() string {
	var all strings.Builder
	for _, name := range sysctls {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			value = []byte(err.Error())
		}
		all.WriteString(name + " " + strings.TrimSpace(string(value)) + "\n")
	}
	return all.String()
}

// These have no namespace: what kubelet sets is the whole machine's.
func TestNodesLeaveTheMachinesSysctlsAlone(t *testing.T) {
	before, err := os.ReadFile(filepath.Join(shared.dir, "sysctls"))
	if err != nil {
		t.Fatal(err)
	}
	if now := readSysctls(); now != string(before) {
		t.Errorf("before there were nodes:\n%snow:\n%s", before, now)
	}
}
