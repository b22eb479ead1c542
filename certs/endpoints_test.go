package certs_test

import (
	"context"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tracehook/tracehook/certs"
)

// Which endpoints are asked; what they are in a cluster is e2e/trust's.
func TestEveryoneWhoCanBeCalledHasToServeTheLeaf(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	leaf, other := forge(t, &ca), forge(t, &ca, cn("other"))
	good, handshakes := serve(t, leaf)
	bad, _ := serve(t, other)
	ends := func(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "hook-x", Labels: map[string]string{discoveryv1.LabelServiceName: "hook"}},
			Ports:      []discoveryv1.EndpointPort{{Name: new("https"), Port: new(int32(9443))}},
			Endpoints:  endpoints,
		}
	}
	at := func(address string, ready bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: new(ready)}}
	}
	outside := corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "good.example.org"}
	for name, row := range map[string]struct {
		spec       corev1.ServiceSpec
		endpoints  []discoveryv1.Endpoint
		want       certs.Certainty
		says       []string // of the error
		handshakes int32
	}{
		"all serve it":                        {clusterIP(443), []discoveryv1.Endpoint{at("good-1", true), at("good-2", true)}, certs.Proven, nil, 2},
		"one serves another":                  {clusterIP(443), []discoveryv1.Endpoint{at("good-1", true), at("bad-1", true)}, "", []string{"not everybody behind Service team-a/hook", `bad-1:9443 serves certificate "CN=other"`}, 1},
		"one that is not ready is away":       {clusterIP(443), []discoveryv1.Endpoint{at("good-1", true), at("gone-1", false)}, certs.Proven, nil, 1},
		"one that is not ready serves":        {clusterIP(443), []discoveryv1.Endpoint{at("good-1", true), at("bad-1", false)}, "", []string{"bad-1:9443 serves"}, 1},
		"one that is ready is away":           {clusterIP(443), []discoveryv1.Endpoint{at("good-1", true), at("gone-1", true)}, "", []string{"gone-1:9443: no connection: nobody there"}, 1},
		"nobody":                              {clusterIP(443), nil, "", []string{"no ready endpoint"}, 0},
		"no such port":                        {clusterIP(444), []discoveryv1.Endpoint{at("good-1", true)}, "", []string{"has no port 443"}, 0},
		"a name, behind which may be several": {outside, nil, certs.Sampled, nil, 16},
	} {
		t.Run(name, func(t *testing.T) {
			handshakes.Store(0)
			checker := certs.ServiceEndpoints{Clients: fake.NewClientset(service("hook", row.spec), ends(row.endpoints...)), Namespace: "team-a", Service: "hook",
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					switch {
					case strings.HasPrefix(address, "good"):
						return good(ctx, network, address)
					case strings.HasPrefix(address, "bad"):
						return bad(ctx, network, address)
					}
					return nil, &net.AddrError{Err: "nobody there"}
				}}
			got, err := checker.Serve(t.Context(), leaf.Certificate)
			if got != row.want || (err == nil) != (len(row.says) == 0) {
				t.Errorf("got %q, %v", got, err)
			}
			for _, words := range row.says {
				if err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("the error does not say %q: %v", words, err)
				}
			}
			if n := handshakes.Load(); n != row.handshakes {
				t.Errorf("%d handshakes with who serves it, want %d", n, row.handshakes)
			}
		})
	}
}
