//go:build linux

package nodes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/e2e/internal/node"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// stranger is somebody else's Pod, which answers on port 8080.
const stranger = `
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {tracehook.dev/exclude: "true"}}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: IMAGE, args: [web]}]}
`

// apiServer is the one party below that is no Pod: the API server's host, whose address no selector names.
const apiServer = "API server"

// connections are what the parties may do, and what they may not. A port of 0 stands for an answer to a DNS query.
var connections = []struct {
	from, to string
	port     int
	open     bool
}{
	// Everybody may call the webhook, as no selector can name an API server. Metrics are for Pods.
	{apiServer, "tracehook", 9443, true},
	{apiServer, "tracehook", 8080, false},
	{apiServer, "tracehook", 8081, false},
	{"stranger", "tracehook", 9443, true},
	{"stranger", "tracehook", 8080, true},
	{"stranger", "tracehook", 8081, false},
	{"tracehook", apiServer, 6443, true},
	{"tracehook", apiServer, 4317, true},
	{"tracehook", apiServer, 0, true},
	{"tracehook", apiServer, elsewhere, false},
	{"tracehook", "stranger", 8080, false},
	{"tracehook", "tracehook-authority", 8080, false},

	{apiServer, "tracehook-authority", 8080, false},
	{"stranger", "tracehook-authority", 8080, true},
	{"stranger", "tracehook-authority", 8081, false},
	{"tracehook-authority", "tracehook", 9443, true},
	{"tracehook-authority", "tracehook", 8080, false},
	{"tracehook-authority", apiServer, 6443, true},
	{"tracehook-authority", apiServer, 4317, true},
	{"tracehook-authority", apiServer, 0, true},
	{"tracehook-authority", apiServer, elsewhere, false},
	{"tracehook-authority", "stranger", 8080, false},

	{apiServer, "tracehook-lifecycle", 8080, false},
	{"stranger", "tracehook-lifecycle", 8080, true},
	{"stranger", "tracehook-lifecycle", 8081, false},
	{"tracehook-lifecycle", apiServer, 6443, true},
	{"tracehook-lifecycle", apiServer, 4317, true},
	{"tracehook-lifecycle", apiServer, 0, true},
	{"tracehook-lifecycle", apiServer, elsewhere, false},
	{"tracehook-lifecycle", "tracehook", 9443, false},
	{"tracehook-lifecycle", "stranger", 8080, false},

	{apiServer, "otel-collector", 4317, true},
	{apiServer, "otel-collector", 8888, false},
	{"stranger", "otel-collector", 4317, true},
	{"stranger", "otel-collector", 4318, true},
	{"stranger", "otel-collector", 8888, true},
	{"stranger", "otel-collector", 13133, false},
	{"otel-collector", "jaeger", 4317, true},
	{"otel-collector", apiServer, 0, true},
	{"otel-collector", apiServer, 6443, false},
	{"otel-collector", apiServer, elsewhere, false},
	{"otel-collector", "stranger", 8080, false},

	{apiServer, "jaeger", 16686, true},
	{apiServer, "jaeger", 4317, false},
	{"stranger", "jaeger", 16686, true},
	{"stranger", "jaeger", 4317, false},
	{"tracehook", "jaeger", 16686, false},
	{"jaeger", apiServer, 0, false},
	{"jaeger", apiServer, 6443, false},
	{"jaeger", "otel-collector", 4317, false},
	{"jaeger", "stranger", 8080, false},
}

// elsewhere is a port of the API server's host that nobody needs.
const elsewhere = 8443

// kube-router enforces the shipped policies, with a Deployment for each of them. What is refused is open without them.
func TestNetworkPoliciesLetThroughWhatIsNeededAndNothingElse(t *testing.T) {
	for _, n := range shared.nodes {
		end, err := n.EnforcePolicies(story.Within(t, patience))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
	importPipeline(t)
	listener, err := net.Listen("tcp", net.JoinHostPort(node.HostAddress, strconv.Itoa(elsewhere)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() }) // the kernel answers, so nobody has to accept
	t.Cleanup(func() { kubectl(t, "delete", "pod/stranger", "--grace-period=1", "--wait=false") })
	apply(t, strings.ReplaceAll(stranger, "IMAGE", workloadImage))
	deployments := []string{"tracehook", "tracehook-authority", "tracehook-lifecycle", "otel-collector", "jaeger"}
	apply(t, render(t, "overlays/split", "components/lifecycle", "components/audit", "components/collector", "components/jaeger"))
	rolledOut(t, deployments...)
	kubectl(t, "wait", "pod/stranger", "--for=condition=Ready", "--timeout=150s")

	parties := map[string]party{apiServer: {pid: os.Getpid(), ip: node.HostAddress}}
	for _, name := range deployments {
		pod := pods(t, "app.kubernetes.io/name="+name)[0]
		parties[name] = party{processOf(t, pod, ""), pod.Status.PodIP}
	}
	pod, err := shared.clients.CoreV1().Pods(metav1.NamespaceDefault).Get(story.Within(t, patience), "stranger", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	parties["stranger"] = party{processOf(t, *pod, ""), pod.Status.PodIP}

	// The rules come a moment after the Pods.
	wanted := func(open func(asShipped bool) bool) {
		t.Helper()
		story.Eventually(t, patience, time.Second, func(context.Context) error {
			var wrong []error
			for _, c := range connections {
				err := parties[c.from].connect(parties[c.to], c.port)
				if (err == nil) == open(c.open) {
					continue
				}
				if err == nil {
					err = errors.New("it is let through")
				}
				wrong = append(wrong, fmt.Errorf("from %s to %s, port %d: %w", c.from, c.to, c.port, err))
			}
			return errors.Join(wrong...)
		})
	}
	wanted(func(asShipped bool) bool { return asShipped })
	t.Run("all does its work", func(t *testing.T) {
		firstStamp(t)
		proven(t)
		stored(t)
		kubectl(t, "-n", namespace, "create", "job", "now", "--from=cronjob/tracehook-audit")
		kubectl(t, "-n", namespace, "wait", "job/now", "--for=condition=Complete", "--timeout=150s")
	})
	kubectl(t, "-n", namespace, "delete", "networkpolicies", "--all")
	wanted(func(bool) bool { return true })
}

// party is one end of a connection: a process with that network, and its address.
type party struct {
	pid int
	ip  string
}

func (from party) connect(to party, port int) error {
	return node.InNetworkOf(from.pid, func() error {
		if port == 0 {
			return asked(to.ip)
		}
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(to.ip, strconv.Itoa(port)), 2*time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// asked wants an answer to a DNS query.
func asked(ip string) error {
	query, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName("kubernetes.default.svc.cluster.local."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}).Pack()
	if err != nil {
		return err
	}
	conn, err := net.Dial("udp", net.JoinHostPort(ip, "53"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(query); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 512))
	return err
}
