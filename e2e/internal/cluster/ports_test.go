package cluster

import (
	"net"
	"slices"
	"strconv"
	"testing"
)

func TestFreePortsAreDifferentFreeAndBelowTheEphemeralOnes(t *testing.T) {
	ports, err := freePorts(50)
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		if port < firstPort || port > lastPort || port >= 32768 {
			t.Errorf("port %d is not in %d to %d", port, firstPort, lastPort)
		}
		listener, err := net.Listen("tcp", loopback(port))
		if err != nil {
			t.Errorf("port %d: %v", port, err)
			continue
		}
		defer listener.Close()
	}
	if slices.Sort(ports); len(slices.Compact(ports)) != 50 {
		t.Error("a port was given twice")
	}
}

func TestAPortThatSomebodyListensOnIsNotFree(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Logf("this machine has no %s: %v", host, err)
			continue
		}
		defer listener.Close()
		_, port, err := net.SplitHostPort(listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		if isFree(number) {
			t.Errorf("port %d is taken on %s, but called free", number, host)
		}
	}
}
