//go:build linux

package node

// NetworkPolicies. In: a running node. Out: kube-router's firewall on it, which enforces them for its Pods, and its end. Errors:
// *cluster.ProcessError, or of what it leaves behind.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

// EnforcePolicies returns when kube-router has been started; the rules follow. Its end lets everything through again.
func (n *Node) EnforcePolicies(ctx context.Context) (end func() error, err error) {
	program, err := n.cluster.Binary("kube-router")
	if err != nil {
		return nil, err
	}
	for _, needed := range []string{"iptables", "ipset"} {
		if _, err := exec.LookPath(needed); err != nil {
			return nil, fmt.Errorf("enforce policies on %s: kube-router needs %s (Debian's package of that name): %w", n.Name, needed, err)
		}
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return nil, fmt.Errorf("enforce policies on %s: %w", n.Name, err)
	}
	router, err := n.cluster.StartProgram(ctx, cluster.ProgramOptions{
		Program: nsenter, Name: n.Name + "-kube-router", Args: n.inNetwork(program,
			"--kubeconfig="+n.cluster.Kubeconfig, "--hostname-override="+n.Name, "--service-cluster-ip-range="+cluster.ServiceNetwork,
			"--run-firewall=true", "--run-router=false", "--run-service-proxy=false", "--health-port=0", "--v=1"),
	})
	if err != nil {
		return nil, err
	}
	return func() error {
		_, err := router.Stop()
		// kube-proxy has a table of its own in nftables, so all rules of iptables are kube-router's.
		for _, args := range [][]string{{"iptables", "--flush"}, {"iptables", "--delete-chain"}, {"ipset", "destroy"}} {
			if out, failed := exec.Command("nsenter", n.inNetwork(args...)...).CombinedOutput(); failed != nil {
				err = errors.Join(err, fmt.Errorf("remove rules of %s: %w: %s", n.Name, failed, out))
			}
		}
		return err
	}, nil
}

// inNetwork is what nsenter(1) needs to know to run a command in the network of the node.
func (n *Node) inNetwork(command ...string) []string {
	return append([]string{"--target=" + strconv.Itoa(n.program.PID()), "--net", "--"}, command...)
}

// InNetworkOf does something in the network of the process with this number. It must not start goroutines that have to be there, too.
func InNetworkOf(pid int, do func() error) error {
	result := make(chan error)
	go func() { result <- inNetworkOf(pid, do) }()
	return <-result
}

func inNetworkOf(pid int, do func() error) error {
	runtime.LockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("enter network: %w", err)
	}
	defer here.Close()
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("enter network: %w", err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network of process %d: %w", pid, err)
	}
	err = do()
	if back := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave network of process %d: %w", pid, back)) // and the thread ends, as it is still locked
	}
	runtime.UnlockOSThread()
	return err
}
