package cluster

// The balancer. In: replicas of the webhook. Out: one port that leads to those of them
// that are ready. Errors: no free port.
//
// It stands in for what a Service with endpoints is on a real cluster: who opens a
// connection gets to a replica that was ready when somebody last looked, and stays
// there. It copies bytes and does not know what they say.

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// lookEvery is how often the balancer asks the replicas whether they are ready. Real
// probes and kube-proxies take longer.
const lookEvery = 100 * time.Millisecond

// BalancerOptions of a Balancer.
type BalancerOptions struct {
	// NotReady leads to all replicas, as a Service with publishNotReadyAddresses.
	NotReady bool
}

// Balancer leads connections to ready replicas, alternately.
type Balancer struct {
	Port int // on 127.0.0.1

	options  BalancerOptions
	listener net.Listener
	stop     context.CancelFunc
	ended    sync.WaitGroup

	mu          sync.Mutex
	replicas    []*Webhook
	ready       []*Webhook
	connections map[*connection]struct{}
	accepted    int
	next        int
	latency     time.Duration
}

// StartBalancer starts a balancer that leads nowhere yet. Close ends it.
func StartBalancer(o BalancerOptions) (*Balancer, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", loopback(ports[0]))
	if err != nil {
		return nil, fmt.Errorf("start balancer: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	b := &Balancer{Port: ports[0], options: o, listener: listener, stop: stop, connections: map[*connection]struct{}{}}
	b.ended.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(lookEvery):
				b.look(ctx)
			}
		}
	})
	b.ended.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			b.ended.Go(func() { b.serve(client) })
		}
	})
	return b, nil
}

// Close ends the balancer and every connection through it.
func (b *Balancer) Close() {
	b.stop()
	b.listener.Close()
	b.mu.Lock()
	for c := range b.connections {
		c.close()
	}
	b.mu.Unlock()
	b.ended.Wait()
}

// Lead changes the replicas to lead to, and looks which of them are ready.
func (b *Balancer) Lead(ctx context.Context, replicas ...*Webhook) {
	b.mu.Lock()
	b.replicas = replicas
	b.mu.Unlock()
	b.look(ctx)
}

// Latency sets how long whatever a replica says is on its way, on connections that are
// made from now on. It is 0 at first.
func (b *Balancer) Latency(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.latency = d
}

// Ready is how many replicas new connections go to.
func (b *Balancer) Ready() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ready)
}

// Accepted is how many connections were made so far.
func (b *Balancer) Accepted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.accepted
}

func (b *Balancer) look(ctx context.Context) {
	b.mu.Lock()
	replicas := b.replicas
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ready := slices.DeleteFunc(slices.Clone(replicas), func(w *Webhook) bool {
		return !b.options.NotReady && get(ctx, http.DefaultClient, w.HealthURL+"/readyz") != nil
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ready = ready
}

// pick takes the replicas in turn.
func (b *Balancer) pick() *Webhook {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accepted++
	if len(b.ready) == 0 {
		return nil
	}
	b.next++
	return b.ready[b.next%len(b.ready)]
}

// connection is one client's.
type connection struct {
	client, replica net.Conn
	gone            chan struct{} // closed when it is over

	mu   sync.Mutex
	idle bool // the last bytes were an answer's
}

func (c *connection) close() {
	c.client.Close()
	c.replica.Close()
}

func (b *Balancer) serve(client net.Conn) {
	defer client.Close()
	to := b.pick()
	if to == nil {
		return // nobody there: kube-proxy refuses, which comes to the same
	}
	replica, err := net.DialTimeout("tcp", loopback(to.Port), 2*time.Second)
	if err != nil {
		return // and tries nobody else, as kube-proxy does not
	}
	c := &connection{client: client, replica: replica, gone: make(chan struct{})}
	defer close(c.gone)
	defer c.close()
	b.mu.Lock()
	b.connections[c] = struct{}{}
	latency := b.latency
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.connections, c)
	}()

	answers := make(chan struct{})
	go func() {
		defer close(answers)
		c.copy(client, replica, true, latency)
		_ = client.(*net.TCPConn).CloseWrite() // an error means that the client is gone
	}()
	c.copy(replica, client, false, 0)
	replica.Close()
	<-answers
}

// copy notes who has spoken last, before anybody can have heard it.
func (c *connection) copy(to io.Writer, from io.Reader, answers bool, latency time.Duration) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			time.Sleep(latency)
			c.mu.Lock()
			c.idle = answers
			c.mu.Unlock()
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// Cut ends the connections on which the replica has spoken last, so that the next calls
// have to shake hands again, and returns when their clients have let go of them. Who
// cuts while calls are made breaks some of them: a client may take a connection up in
// the very moment in which it ends.
func (b *Balancer) Cut(ctx context.Context) error {
	b.mu.Lock()
	var idle []*connection
	for c := range b.connections {
		c.mu.Lock()
		if c.idle {
			idle = append(idle, c)
		}
		c.mu.Unlock()
	}
	b.mu.Unlock()
	for _, c := range idle {
		_ = c.client.(*net.TCPConn).CloseWrite() // an error means that it has just ended
	}
	for _, c := range idle {
		select {
		case <-c.gone:
		case <-ctx.Done():
			return fmt.Errorf("wait until the clients of cut connections let go: %w", context.Cause(ctx))
		}
	}
	return nil
}
