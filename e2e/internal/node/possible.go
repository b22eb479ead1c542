//go:build linux

package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// Possible says what this machine lacks. Nil: nodes can run.
func Possible() error {
	if os.Geteuid() != 0 {
		return errors.New("they need root")
	}
	if mounts, err := cgroupMounts(); err != nil {
		return err
	} else if len(mounts) == 0 {
		return errors.New("they need cgroups, and none are mounted")
	}
	for program, pkg := range map[string]string{"runc": "runc", "ip": "iproute2", "nft": "nftables", "mount": "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("they need %s (Debian's package %s)", program, pkg)
		}
	}
	// A container without CAP_SYS_ADMIN has root and cgroups, and may do nothing with them.
	if out, err := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("they need namespaces: %w: %s", err, out)
	}
	return nil
}
