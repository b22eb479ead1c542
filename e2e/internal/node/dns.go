//go:build linux

package node

// Names of Services, for Pods. In: DNS queries on the bridge. Out: cluster addresses as the API server has them
// (https://github.com/kubernetes/dns/blob/master/docs/specification.md, as far as it is asked for here). Errors: a
// query that cannot be answered gets SERVFAIL.

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

// ServeDNS answers until the run ends.
func ServeDNS(c *cluster.Cluster) error {
	clients, err := kubernetes.NewForConfig(c.RESTConfig)
	if err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	conn, err := net.ListenPacket("udp", HostAddress+":53")
	if err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, client, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			var query dnsmessage.Message
			if query.Unpack(buffer[:n]) != nil || len(query.Questions) != 1 {
				continue
			}
			go func() {
				answer, err := resolve(clients, query)
				if err != nil {
					return
				}
				_, _ = conn.WriteTo(answer, client) // who gets no answer asks again
			}()
		}
	}()
	return nil
}

func resolve(clients kubernetes.Interface, query dnsmessage.Message) ([]byte, error) {
	question := query.Questions[0]
	answer := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: query.ID, Response: true, Authoritative: true, RecursionDesired: query.RecursionDesired, RCode: dnsmessage.RCodeNameError},
		Questions: query.Questions,
	}
	service, isService := strings.CutSuffix(strings.ToLower(question.Name.String()), ".svc.cluster.local.")
	name, namespace, _ := strings.Cut(service, ".")
	if isService && namespace != "" && !strings.Contains(namespace, ".") {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		found, err := clients.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			answer.RCode = dnsmessage.RCodeServerFailure
		default:
			answer.RCode = dnsmessage.RCodeSuccess
			if address := net.ParseIP(found.Spec.ClusterIP).To4(); address != nil && question.Type == dnsmessage.TypeA {
				answer.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: 5},
					Body:   &dnsmessage.AResource{A: [4]byte(address)},
				}}
			}
		}
	}
	return answer.Pack()
}
