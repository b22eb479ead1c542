//go:build linux

package node

// The first process of a node. In: a config. Out: containerd, kubelet and kube-proxy, each with a log file; it reaps
// what loses its parent. Errors: whatever ends it, and the node with it.

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const configVariable = "TRACEHOOK_NODES_CONFIG"

// sysctls that kubelet sets, for the whole machine if it could, with the values that it wants.
var sysctls = map[string]string{
	"vm/overcommit_memory": "1\n",
	"vm/panic_on_oom":      "0\n",
	"kernel/panic":         "10\n",
	"kernel/panic_on_oops": "1\n",
}

// first returns only with an error.
func first(path string) error {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	go func() {
		<-terminated
		os.Exit(0) // the kernel ends the others
	}()
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	var cfg config
	if err := json.Unmarshal(text, &cfg); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := cfg.mount(); err != nil {
		return err
	}
	if err := cfg.connect(); err != nil {
		return err
	}

	programs := map[int]string{}
	start := func(name string, env []string, args ...string) error {
		log, err := os.OpenFile(filepath.Join(cfg.Logs, cfg.Name+"-"+name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("open log of %s: %w", name, err)
		}
		defer log.Close()
		process, err := os.StartProcess(cfg.Bin[name], append([]string{name}, args...), &os.ProcAttr{Env: env, Files: []*os.File{nil, log, log}})
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		programs[process.Pid] = name
		return nil
	}
	if err := start("containerd", append(slices.Clone(cfg.Env), cfg.Tracing...), "--config="+filepath.Join(cfg.State, "containerd.toml")); err != nil {
		return err
	}
	if err := cfg.importImages(); err != nil {
		return err
	}
	if err := start("kubelet", cfg.Env, cfg.Kubelet...); err != nil {
		return err
	}
	if err := start("kube-proxy", cfg.Env, cfg.ProxyArgs...); err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for processes: %w", err)
		}
		if name, ours := programs[pid]; ours {
			return fmt.Errorf("%s ended by itself with status %d: see its log in %s", name, status, cfg.Logs)
		}
	}
}

func (cfg *config) mount() error {
	if err := privateMounts(); err != nil {
		return err
	}
	for name, value := range sysctls {
		file := filepath.Join(cfg.State, "sysctl", filepath.Base(name))
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			return fmt.Errorf("write sysctl: %w", err)
		}
		if err := syscall.Mount(file, "/proc/sys/"+name, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount sysctl %s: %w", name, err)
		}
	}
	// What kubelet mounts for Pods is to be seen by their containers.
	if err := syscall.Mount(cfg.State, cfg.State, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount directory: %w", err)
	}
	if err := syscall.Mount("", cfg.State, "", syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share directory: %w", err)
	}
	return nil
}

func (cfg *config) connect() error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := net.InterfaceByName("eth0"); err == nil {
			break
		} else if time.Now().After(deadline) {
			return fmt.Errorf("wait for eth0: %w", err)
		}
	}
	commands := []string{
		"link set lo up",
		"address add " + cfg.IP + "/24 dev eth0",
		"link set eth0 up",
		"route add default via " + HostAddress,
	}
	for _, route := range cfg.Routes {
		commands = append(commands, "route add "+route)
	}
	if err := ip(commands...); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0); err != nil {
		return fmt.Errorf("forward packets: %w", err)
	}
	return nil
}

// importImages waits for containerd and imports.
func (cfg *config) importImages() error {
	ctr := func(args ...string) error {
		cmd := exec.Command(cfg.Bin["ctr"], append([]string{"--address=" + filepath.Join(cfg.State, "containerd.sock"), "--namespace=k8s.io"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ctr %v: %w: %s", args, err, out)
		}
		return nil
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if err := ctr("version"); err == nil {
			break
		} else if time.Now().After(deadline) {
			return err
		}
	}
	for _, image := range cfg.Images {
		if err := ctr("images", "import", image); err != nil {
			return err
		}
	}
	return nil
}
