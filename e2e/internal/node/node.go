//go:build linux

package node

// A node, from outside. In: a cluster that listens on HostAddress. Out: a node that is Ready, with images, on the
// bridge. Errors: *cluster.ProcessError, or of ip(8).

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

// NodeOptions of one node.
type NodeOptions struct {
	Number int    // from 1 to 9: "node1" has 172.31.250.11, and 10.244.1.0/24 for its Pods
	Dir    string // of the run
	// Images are tars of OCI layouts, imported before kubelet starts. Pause is the name of
	// the one among them that every Pod's sandbox is.
	Images []string
	Pause  string
	// Tracing is the directory of the configurations that have kubelet and containerd trace
	// what they do: deploy/nodes. "": they do not.
	Tracing string
}

// Node is a running node.
type Node struct {
	Name string
	IP   string
	// Manifests is where kubelet looks for static Pods.
	Manifests string

	cluster *cluster.Cluster
	program *cluster.Program
	number  int
}

// Start starts a node and returns when it is Ready.
func Start(ctx context.Context, c *cluster.Cluster, o NodeOptions) (*Node, error) {
	n := &Node{Name: fmt.Sprintf("node%d", o.Number), IP: fmt.Sprintf("172.31.250.1%d", o.Number), cluster: c, number: o.Number}
	state := filepath.Join(o.Dir, "state", n.Name)
	n.Manifests = filepath.Join(state, "manifests")
	cfg, err := configure(c, n, o, state)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", n.Name, err)
	}
	if err := makeCgroups(filepath.Base(o.Dir), n.Name); err != nil {
		return nil, fmt.Errorf("start %s: %w", n.Name, err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", n.Name, err)
	}
	clients, err := kubernetes.NewForConfig(c.RESTConfig)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", n.Name, err)
	}
	n.program, err = c.StartProgram(ctx, cluster.ProgramOptions{
		Program: self, Args: os.Args[1:], Name: n.Name, Isolated: true,
		Env: []string{roleVariable + "=" + roleNode, configVariable + "=" + cfg},
	})
	if err != nil {
		return nil, err
	}
	// The first process waits for eth0.
	if err := ip(
		"link add "+n.Name+" type veth peer name eth0 netns "+strconv.Itoa(n.program.PID()),
		"link set "+n.Name+" master "+bridge+" up",
		"route replace "+podNetwork(o.Number)+" via "+n.IP,
	); err != nil {
		return nil, fmt.Errorf("connect %s: %w", n.Name, err)
	}
	if o.Number == 1 {
		// The way to Services: kube-proxy translates what is forwarded, too.
		if err := ip("route replace " + cluster.ServiceNetwork + " via " + n.IP); err != nil {
			return nil, fmt.Errorf("connect %s: %w", n.Name, err)
		}
	}
	if err := n.program.Await(ctx, func(ctx context.Context) error { return ready(ctx, clients, n.Name) }); err != nil {
		return nil, err
	}
	return n, nil
}

// ready has no complaint about a node that is Ready.
func ready(ctx context.Context, clients kubernetes.Interface, name string) error {
	node, err := clients.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status == corev1.ConditionTrue {
				return nil
			}
			return errors.New(condition.Message)
		}
	}
	return errors.New("it has no condition Ready")
}

// podNetwork is where the Pods of a node get their addresses.
func podNetwork(number int) string { return fmt.Sprintf("10.244.%d.0/24", number) }

// Programs are what a node runs, by the names that e2e/controlplane/build.sh knows.
func Programs() []string {
	return []string{"kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "ctr", "ptp", "host-local"}
}

// Kill ends the node and all that runs on it at once.
func (n *Node) Kill() error { return n.program.Kill() }

// Cut takes the node off the network; both sides keep their state. Mend puts it back.
func (n *Node) Cut() error { return ip("link set " + n.Name + " down") }

// Mend ends Cut.
func (n *Node) Mend() error { return ip("link set " + n.Name + " up") }

// config is what the first process of a node needs to know.
type config struct {
	Name, IP  string
	State     string // directory
	Logs      string
	Routes    []string // to the Pods of other nodes: arguments of `ip route add`
	Images    []string
	Bin       map[string]string // paths of programs
	Kubelet   []string          // arguments
	ProxyArgs []string
	Env       []string // of all
	Tracing   []string // more environment, of containerd
}

// configure writes the configurations of all that runs on a node, and returns the path of what first reads.
func configure(c *cluster.Cluster, n *Node, o NodeOptions, state string) (path string, err error) {
	cfg := config{Name: n.Name, IP: n.IP, State: state, Logs: c.Logs, Images: o.Images, Bin: map[string]string{}}
	for _, program := range Programs() {
		if cfg.Bin[program], err = c.Binary(program); err != nil {
			return "", err
		}
	}
	for other := 1; other <= 9; other++ {
		if other != o.Number {
			cfg.Routes = append(cfg.Routes, fmt.Sprintf("%s via 172.31.250.1%d", podNetwork(other), other))
		}
	}
	kubelet, err := c.User("system:node:"+n.Name, "system:nodes")
	if err != nil {
		return "", err
	}
	proxy, err := c.User("system:kube-proxy")
	if err != nil {
		return "", err
	}
	in := func(name string) string { return filepath.Join(state, name) }
	files := map[string]string{
		"cni/10-ptp.conflist": fmt.Sprintf(cniConfig, in("cni-ipam"), podNetwork(o.Number)),
		"containerd.toml":     fmt.Sprintf(containerdConfig, in("root"), in("run"), in("containerd.sock"), in("ttrpc.sock"), o.Pause, in("bin"), in("cni")),
		"kubelet.yaml": fmt.Sprintf(kubeletConfig, filepath.Base(o.Dir), n.Name, in("containerd.sock"), n.IP,
			filepath.Join(c.Dir, "pki", "ca.crt"), HostAddress, in("manifests"), in("pod-logs"), in("volume-plugins")),
		"proxy.yaml": fmt.Sprintf(proxyConfig, proxy, n.Name, n.IP),
	}
	if o.Tracing != "" {
		if files["kubelet.conf.d/tracing.conf"], cfg.Tracing, err = tracing(o.Tracing, n.Name, c.CollectorGRPC); err != nil {
			return "", err
		}
	}
	for name, text := range files {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(in(name)), 0o700), os.WriteFile(in(name), []byte(text), 0o600))
	}
	for _, dir := range []string{"manifests", "kubelet", "kubelet.conf.d", "pod-logs", "volume-plugins", "sysctl", "bin"} {
		err = errors.Join(err, os.MkdirAll(in(dir), 0o755))
	}
	// containerd looks for its shim, and for CNI plugins, by name.
	for _, program := range []string{"containerd-shim-runc-v2", "ptp", "host-local"} {
		err = errors.Join(err, os.Symlink(cfg.Bin[program], filepath.Join(in("bin"), program)))
	}
	if err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	cfg.Kubelet = []string{
		"--config=" + in("kubelet.yaml"), "--config-dir=" + in("kubelet.conf.d"), "--kubeconfig=" + kubelet, "--root-dir=" + in("kubelet"), "--cert-dir=" + in("kubelet/pki"),
		"--hostname-override=" + n.Name, "--node-ip=" + n.IP, "--node-labels=topology.kubernetes.io/zone=zone" + strconv.Itoa(o.Number), "--v=2",
	}
	cfg.ProxyArgs = []string{"--config=" + in("proxy.yaml")}
	cfg.Env = []string{"PATH=" + in("bin") + ":" + os.Getenv("PATH"), "HOME=" + state, "OTEL_BSP_SCHEDULE_DELAY=100"}
	text, err := json.Marshal(cfg)
	if err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	path = in("node.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	return path, nil
}

const cniConfig = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": false,
 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

const containerdConfig = `version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = %q
[ttrpc]
  address = %q
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true # root may lack CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true # /run is the machine's
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = %q
    use_internal_loopback = true
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /%s/%s
containerRuntimeEndpoint: unix://%s
address: %s
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %q}}
authorization: {mode: Webhook}
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: ""
staticPodPath: %q
podLogsDir: %q
volumePluginDir: %q
imageGCHighThresholdPercent: 100 # there is no registry to get an image from again
evictionHard: {memory.available: 100Mi, nodefs.available: "1%%", imagefs.available: "1%%"}
localStorageCapacityIsolation: false
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
`

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: %q}
clusterCIDR: 10.244.0.0/16 # what comes from elsewhere, the host's calls, is masqueraded
hostnameOverride: %s
healthzBindAddress: %[3]s:10256
metricsBindAddress: %[3]s:10249
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

// StartAll starts nodes with the numbers 1 to count at the same time, each with o.
func StartAll(ctx context.Context, c *cluster.Cluster, count int, o NodeOptions) ([]*Node, error) {
	nodes := make([]*Node, count)
	group, ctx := errgroup.WithContext(ctx)
	for i := range nodes {
		group.Go(func() (err error) {
			o := o
			o.Number = i + 1
			nodes[i], err = Start(ctx, c, o)
			return err
		})
	}
	return nodes, group.Wait()
}
