package cluster

// Ports. Out: TCP ports on loopback that nobody listens on. Errors: none free.

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"
)

// Listeners are taken below 32768, where Linux's ephemeral ports begin: above that, an
// outgoing connection of anybody's may own the port between our look and the bind.
const (
	firstPort = 20000
	lastPort  = 32000
)

// freePorts returns n different ports. They are picked at random, because another
// cluster on this machine may be picking at the same moment.
func freePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	taken := map[int]bool{}
	for range lastPort - firstPort {
		if len(ports) == n {
			return ports, nil
		}
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if !taken[port] && isFree(port) {
			ports = append(ports, port)
		}
		taken[port] = true
	}
	return nil, fmt.Errorf("find %d free ports on 127.0.0.1 from %d to %d: only %d found", n, firstPort, lastPort, len(ports))
}

// FreePorts is freePorts for programs of a test's own.
func FreePorts(n int) ([]int, error) { return freePorts(n) }

// isFree looks at both loopback addresses: the API server dials a webhook as
// "localhost", which may be either. A machine without IPv6 has no ::1, and that is
// fine.
func isFree(port int) bool {
	for _, host := range []string{"127.0.0.1", "::1"} {
		listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			if host == "::1" && !errors.Is(err, syscall.EADDRINUSE) {
				continue
			}
			return false
		}
		listener.Close()
	}
	return true
}

// loopback is host:port on 127.0.0.1.
func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
