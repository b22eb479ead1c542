package main

// The receiving end of the spans. In: where it is to send them. Out: the Collector that
// e2e/controlplane builds, with the configuration that we ship.

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// collector is where servers send spans.
type collector struct {
	address string // host:port, OTLP over gRPC without TLS
	stop    func()
}

// startCollector starts it on a processor, sending to sink. Its output goes to a file in dir.
func startCollector(ctx context.Context, start starter, root, dir, sink string, cpu int) (*collector, error) {
	binary := filepath.Join(root, "bin", "otelcol")
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("find the Collector: %w (make otelcol builds it)", err)
	}
	addresses, metricsPort, err := freeAddresses(3)
	if err != nil {
		return nil, err
	}
	logPath := filepath.Join(dir, "otelcol.log")
	log, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own descriptor
	cmd := exec.Command(binary, "--config="+filepath.Join(root, "deploy", "components", "collector", "config.yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{
		"COLLECTOR_GRPC_ENDPOINT=" + addresses[0],
		"COLLECTOR_HTTP_ENDPOINT=" + addresses[1],
		"COLLECTOR_ZPAGES_ENDPOINT=" + addresses[2],
		"COLLECTOR_METRICS_HOST=127.0.0.1",
		"COLLECTOR_METRICS_PORT=" + strconv.Itoa(metricsPort),
		"COLLECTOR_EXPORT_ENDPOINT=" + sink,
	}
	if err := start(cmd, cpu); err != nil {
		return nil, fmt.Errorf("start the Collector: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its log says more
		close(ended)
	}()
	c := &collector{address: addresses[0], stop: func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	}}
	// It opens its receivers last.
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ready, "tcp", c.address)
		if err == nil {
			conn.Close()
			return c, nil
		}
		select {
		case <-ended:
			err = fmt.Errorf("it ended: %s", cmd.ProcessState)
		case <-ready.Done():
			err = fmt.Errorf("not ready: %w", err)
		case <-time.After(50 * time.Millisecond):
			continue
		}
		c.stop()
		output, _ := os.ReadFile(logPath)
		return nil, fmt.Errorf("start the Collector: %w\n%s", err, output)
	}
}

// freeAddresses returns addresses and one more port on loopback that nobody listens on
// now. All are taken before any is given back, so that they differ.
func freeAddresses(n int) (addresses []string, port int, err error) {
	for range n + 1 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, 0, err
		}
		defer listener.Close()
		addresses = append(addresses, listener.Addr().String())
		port = listener.Addr().(*net.TCPAddr).Port
	}
	return addresses[:n], port, nil
}
