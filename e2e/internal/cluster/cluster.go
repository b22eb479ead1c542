// Package cluster runs a real Kubernetes control plane with a real trace pipeline, as
// processes on loopback, without containers and without root:
//
//	jaeger ◄── otelcol ◄──OTLP── etcd ◄── kube-apiserver ◄── kube-controller-manager, kube-scheduler
//	                      └───── tracehook serve ◄──┘
//
// They start from left to right, so that nobody's first spans find the door closed, and
// stop from right to left. Every process has a log file of its own and none outlives
// the program that started it, be it by Stop, Ctrl-C, panic or kill -9.
//
// In: where the binaries are. Out: addresses, kubeconfigs, counters, audit events.
// Errors: a *ProcessError, which shows the log's last lines, whenever a process is the
// reason.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/rest"
)

// Options say what to start and where.
type Options struct {
	// Dir holds state and logs: a directory that is new, empty or an earlier
	// cluster's, whose state is removed. "": a new temporary one, which Stop removes
	// unless something failed.
	Dir string
	// Bin is the directory of the binaries. "": each comes from $KUBEBUILDER_ASSETS if
	// it is there, else from bin at the root of the repository.
	Bin string
	// Controllers adds kube-controller-manager and kube-scheduler. Without them
	// nothing happens to an object once it is stored.
	Controllers bool
	// NoTraces leaves Jaeger, the Collector and everybody's tracing out: for those who
	// want the machine for something else. JaegerURL and the like are empty then.
	NoTraces bool
	// Untraced leaves the API server's own tracing out, as where somebody else runs it.
	Untraced bool
	// Address is this host's on a network that nodes are on: see package node. The API
	// server and the Collector listen there, on their usual ports. "": there are no
	// nodes, and all is on loopback, on ports that are free.
	Address string
	// Progress gets one line for each process that is ready. Nil: silence.
	Progress io.Writer
}

// Cluster is a running control plane with its trace pipeline.
type Cluster struct {
	Dir  string // state, logs, kubeconfigs
	Logs string // one file per process
	Bin  string // Options.Bin, or bin at the root of the repository

	Kubeconfig string       // for a member of system:masters, whose traceparent the API server takes as parent
	RESTConfig *rest.Config // the same, for client-go
	AuditLog   string       // of the first API server, one JSON event a line: see AuditEvents

	JaegerURL     string // http://127.0.0.1:P, base of the query API
	CollectorGRPC string // 127.0.0.1:P, OTLP over gRPC without TLS
	CollectorHTTP string // 127.0.0.1:P, OTLP over HTTP without TLS
	ZPagesURL     string // the Collector's live state, for a browser
	EtcdURL       string // http://127.0.0.1:P

	Version *version.Version // of kube-apiserver

	binDirs    []string
	keeper     *keeper
	progress   io.Writer
	onDeath    func(error) // ends a Start that waits for something which cannot come any more
	temporary  bool        // Dir is ours to remove
	ca         *authority
	jaegerOTLP string
	first      *APIServer
	// With controllers every namespace gets its ServiceAccount `default`, as admission
	// demands of pods.
	controllers bool
	noTraces    bool
	untraced    bool
	address     string

	mu         sync.Mutex
	stopped    bool
	processes  []*process // in the order of their start
	apiServers []*APIServer
	names      map[string]int // how many processes of that name were started
	stop       func() error
}

// Start starts everything and returns when it is ready for use. ctx is for the start
// only: when it ends before that, Start stops what is running already and says so. Once
// started, the cluster runs until Stop.
//
// An error is a *ProcessError, ctx's, or says which binary is missing and how to get
// it.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	c, err := prepare(o)
	if err != nil {
		return nil, fmt.Errorf("prepare cluster: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	c.onDeath = cancel
	defer cancel(nil)

	started := false
	defer func() { // deferred, so that a panic is followed by the same order
		if started {
			return
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			c.temporary = false // the error names logs in there
		}
		_ = c.Stop() // what it would complain of is what err tells already
	}()
	if err := c.start(ctx); err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	started = true
	return c, nil
}

// start is the order of things. What does not wait for each other starts together.
func (c *Cluster) start(ctx context.Context) error {
	if err := c.findVersion(ctx); err != nil {
		return err
	}
	if !c.noTraces {
		if err := c.startJaeger(ctx); err != nil {
			return err
		}
		if err := c.startCollector(ctx); err != nil {
			return err
		}
	}
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	api, err := c.StartAPIServer(ctx)
	if err != nil {
		return err
	}
	c.first = api
	c.Kubeconfig, c.RESTConfig, c.AuditLog = api.Kubeconfig, api.RESTConfig, api.AuditLog
	if !c.controllers {
		return nil
	}
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error { return c.startControllerManager(ctx) })
	both.Go(func() error { return c.startScheduler(ctx) })
	return both.Wait()
}

// Stop ends everything, last started first, and returns when it is gone. It may be
// called again and then says the same. An error means that a process had ended before
// its time or had to be killed.
func (c *Cluster) Stop() error { return c.stop() }

func (c *Cluster) stopAll() error {
	c.mu.Lock()
	processes := slices.Clone(c.processes)
	c.stopped = true // from here on nothing is added
	c.mu.Unlock()
	defer c.keeper.close()

	var errs []error
	for _, p := range slices.Backward(processes) {
		if err := p.stop(); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop cluster: %w", err)
	}
	if c.temporary {
		if err := os.RemoveAll(c.Dir); err != nil {
			return fmt.Errorf("remove directory of cluster: %w", err)
		}
	}
	return nil
}

// prepare makes the directory and everything in memory; nothing runs yet.
func prepare(o Options) (*Cluster, error) {
	c := &Cluster{
		Dir: o.Dir, Bin: o.Bin,
		progress: o.Progress, controllers: o.Controllers, noTraces: o.NoTraces, untraced: o.Untraced, address: o.Address,
		temporary: o.Dir == "",
		names:     map[string]int{},
	}
	c.stop = sync.OnceValue(c.stopAll)
	if c.progress == nil {
		c.progress = io.Discard
	}
	if err := c.findBinaries(o); err != nil {
		return nil, err
	}
	var err error
	if c.ca, err = newAuthority(time.Now()); err != nil {
		return nil, err
	}
	if err := c.makeDir(); err != nil {
		return nil, err
	}
	c.keeper = newKeeper()
	return c, nil
}

// makeDir makes the directory and, in one that was used before, removes what a cluster
// writes.
func (c *Cluster) makeDir() (err error) {
	if c.temporary {
		if c.Dir, err = os.MkdirTemp("", "tracehook-e2e-"); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return fmt.Errorf("find directory: %w", err)
	}
	c.Logs = filepath.Join(c.Dir, "logs")
	mark := filepath.Join(c.Dir, ".tracehook-e2e")
	if left, err := os.ReadDir(c.Dir); err == nil && len(left) > 0 {
		if _, err := os.Stat(mark); err != nil { // things are about to be removed from it
			return fmt.Errorf("use directory %s: it is neither empty nor an earlier cluster's", c.Dir)
		}
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return fmt.Errorf("mark directory: %w", err)
	}
	for _, name := range []string{"logs", "etcd", "pki", "apiserver", "users", "install", "home"} {
		if err := os.RemoveAll(filepath.Join(c.Dir, name)); err != nil {
			return fmt.Errorf("remove what an earlier cluster left: %w", err)
		}
		// 0700: keys of system:masters are in there, and audit logs.
		if err := os.MkdirAll(filepath.Join(c.Dir, name), 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return c.writePKI()
}

// findBinaries looks for all programs before the first one runs.
func (c *Cluster) findBinaries(o Options) error {
	if c.Bin == "" {
		root, err := repository()
		if err != nil {
			return err
		}
		c.Bin = filepath.Join(root, "bin")
		if assets := os.Getenv("KUBEBUILDER_ASSETS"); assets != "" {
			c.binDirs = append(c.binDirs, assets)
		}
	}
	c.binDirs = append(c.binDirs, c.Bin)
	for i := range c.binDirs {
		abs, err := filepath.Abs(c.binDirs[i])
		if err != nil {
			return fmt.Errorf("find binaries: %w", err)
		}
		c.binDirs[i] = abs
	}
	programs := []string{"etcd", "kube-apiserver", "kubectl"}
	if !o.NoTraces {
		programs = append([]string{"jaeger", "otelcol"}, programs...)
	}
	if o.Controllers {
		programs = append(programs, "kube-controller-manager", "kube-scheduler")
	}
	for _, program := range programs {
		if _, err := c.Binary(program); err != nil {
			return err
		}
	}
	return nil
}

// Binary returns the path of a program that the cluster uses.
func (c *Cluster) Binary(program string) (string, error) {
	for _, dir := range c.binDirs {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	target := "controlplane"
	if program == "tracehook" {
		target = "build"
	}
	return "", fmt.Errorf("no program %s in %s: `make %s` builds it", program, strings.Join(c.binDirs, " or "), target)
}

// launch is one program to be started and waited for.
type launch struct {
	name      string // "" means program
	program   string
	args, env []string
	isolated  bool // in namespaces of its own: see ProgramOptions
	ready     func(context.Context) error
}

// launch starts a program, to be stopped by Stop, and returns when it is ready.
func (c *Cluster) launch(ctx context.Context, l launch) (*process, error) {
	path := l.program
	if !filepath.IsAbs(path) {
		var err error
		if path, err = c.Binary(l.program); err != nil {
			return nil, err
		}
	}
	if l.name == "" {
		l.name = l.program
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	begin := time.Now()
	c.mu.Lock() // so that Stop either sees the process or prevents its start
	if c.stopped {
		c.mu.Unlock()
		return nil, ErrStopped
	}
	p, err := c.keeper.run(c.Logs, l, path, c.environment(l.env...), c.onDeath)
	if err == nil {
		c.processes = append(c.processes, p)
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := p.waitReady(ctx, l.ready); err != nil {
		_ = p.stop()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.processes = slices.DeleteFunc(c.processes, func(other *process) bool { return other == p }) // told once is enough
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.progress, "%-24s ready after %.1fs\n", l.name, time.Since(begin).Seconds())
	return p, nil
}

// environment is small on purpose: no proxy, KUBECONFIG, OTEL_* or TRACEPARENT of the
// caller's bends a result.
func (c *Cluster) environment(extra ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(c.Dir, "home")}, extra...)
}

// Kubectl runs kubectl as a member of system:masters and returns what it wrote to
// stdout. An error holds what it wrote to stderr and unwraps to *exec.ExitError.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (stdout string, err error) {
	path, err := c.Binary("kubectl")
	if err != nil {
		return "", err
	}
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = c.environment("KUBECONFIG=" + c.Kubeconfig)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err = c.keeper.start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), nil
}

// repository finds the root of the checkout that the working directory is in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find repository: %w", err)
	}
	for from := dir; ; {
		// The line, not the file: e2e/controlplane has go.mod files of its own.
		if data, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil &&
			bytes.HasPrefix(data, []byte("module github.com/tracehook/tracehook\n")) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("find repository: no go.mod of github.com/tracehook/tracehook in %s or above it", from)
		}
		dir = parent
	}
}
