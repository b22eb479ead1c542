package main

// The way through the proxy. In: the user's kubeconfig. Out: a proxy, and a kubeconfig and an
// environment that lead a command to it. Errors: no port, no directory or no file to be had.

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// proxyWay is what leads a command through the proxy.
type proxyWay struct {
	proxy      *traceProxy
	dir        string // of the two below
	kubeconfig string
	written    []byte // into the kubeconfig
}

func (run tracedRun) openWay(ctx context.Context) (*proxyWay, error) {
	proxy, err := startTraceProxy(ctx, traceProxyOptions{
		Kubeconfig:     run.Kubeconfig,
		TracerProvider: run.TracerProvider,
		FirstAnswer:    run.FirstAnswer,
		Random:         run.Random,
		Now:            run.Now(),
	})
	if err != nil {
		return nil, err
	}
	way := &proxyWay{proxy: proxy}
	if way.dir, err = os.MkdirTemp("", "tracehook-trace-"); err != nil { // 0700
		way.close()
		return nil, fmt.Errorf("make a directory for the temporary kubeconfig: %w", err)
	}
	way.kubeconfig = filepath.Join(way.dir, "kubeconfig")
	if way.written, err = writeKubeconfig(way.kubeconfig, run.Kubeconfig, proxy); err != nil {
		way.close()
		return nil, err
	}
	return way, nil
}

// environment is what the command needs of it. A nil way needs nothing.
func (w *proxyWay) environment(env []string) map[string]string {
	if w == nil {
		return nil
	}
	set := noProxy(env)
	set["KUBECONFIG"] = w.kubeconfig
	// kubectl and helm cache what they discover by the server's address. Ours is a
	// new one each time: without a cache directory of its own every run would leave
	// another directory behind in the user's home.
	set["KUBECACHEDIR"] = filepath.Join(w.dir, "cache")
	return set
}

// observe is for when the command has ended.
func (w *proxyWay) observe(outcome *traceOutcome) {
	outcome.Calls, outcome.Refused = w.proxy.calls.Load(), w.proxy.refused.Load()
	outcome.Passed = w.proxy.passed.Load()
	outcome.Unreachable = w.proxy.failure.get()
	content, err := os.ReadFile(w.kubeconfig)
	outcome.KubeconfigChanged = err == nil && !bytes.Equal(content, w.written)
}

func (w *proxyWay) close() {
	w.proxy.close()
	if w.dir != "" {
		os.RemoveAll(w.dir)
	}
}
