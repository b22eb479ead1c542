package certs

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"
)

// Two ports of one number, HTTP/3 beside HTTPS: API servers call the one for TCP.
func TestThePortOfAServiceIsTheOneForTCP(t *testing.T) {
	port := func(name string, number int32, protocol corev1.Protocol, target intstr.IntOrString) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: number, Protocol: protocol, TargetPort: target}
	}
	at := func(name *string, number int32, protocol *corev1.Protocol) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: name, Port: &number, Protocol: protocol, AppProtocol: new("https")}
	}
	for name, c := range map[string]struct {
		ports []corev1.ServicePort
		slice []discoveryv1.EndpointPort
		want  []string
		code  Code
	}{
		"UDP first": {
			ports: []corev1.ServicePort{port("h3", 443, corev1.ProtocolUDP, intstr.FromInt32(8443)), port("https", 443, corev1.ProtocolTCP, intstr.FromString("web"))},
			slice: []discoveryv1.EndpointPort{at(new("h3"), 8443, new(corev1.ProtocolUDP)), at(new("https"), 9443, new(corev1.ProtocolTCP))},
			want:  []string{"10.0.0.1:9443"},
		},
		"TCP first": {
			ports: []corev1.ServicePort{port("https", 443, corev1.ProtocolTCP, intstr.FromInt32(9443)), port("h3", 443, corev1.ProtocolUDP, intstr.FromInt32(8443))},
			slice: []discoveryv1.EndpointPort{at(new("https"), 9443, nil), at(new("h3"), 8443, new(corev1.ProtocolUDP))},
			want:  []string{"10.0.0.1:9443"},
		},
		"one name, as nobody should write it by hand": {
			ports: []corev1.ServicePort{port("https", 443, "", intstr.FromInt32(9443))},
			slice: []discoveryv1.EndpointPort{at(new("https"), 8443, new(corev1.ProtocolUDP)), at(new("https"), 9443, new(corev1.ProtocolTCP))},
			want:  []string{"10.0.0.1:9443"},
		},
		"without a name": {
			ports: []corev1.ServicePort{port("", 443, "", intstr.FromInt32(9443))},
			slice: []discoveryv1.EndpointPort{at(new(""), 9443, new(corev1.ProtocolTCP)), at(new("other"), 1, nil)},
			want:  []string{"10.0.0.1:9443"},
		},
		"without a name, left out": {
			ports: []corev1.ServicePort{port("", 443, "", intstr.FromInt32(9443))},
			slice: []discoveryv1.EndpointPort{at(nil, 9443, nil)},
			want:  []string{"10.0.0.1:9443"},
		},
		"UDP alone": {
			ports: []corev1.ServicePort{port("h3", 443, corev1.ProtocolUDP, intstr.FromInt32(8443))},
			slice: []discoveryv1.EndpointPort{at(new("h3"), 8443, new(corev1.ProtocolUDP))},
			code:  ServiceUnroutable,
		},
		"SCTP alone": {
			ports: []corev1.ServicePort{port("x", 443, corev1.ProtocolSCTP, intstr.FromInt32(8443))},
			slice: []discoveryv1.EndpointPort{at(new("x"), 8443, new(corev1.ProtocolSCTP))},
			code:  ServiceUnroutable,
		},
	} {
		clients := fake.NewClientset(
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "hook"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7", Ports: c.ports}},
			&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "hook-x", Labels: map[string]string{discoveryv1.LabelServiceName: "hook"}},
				Ports: c.slice, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}}})
		r := resolveService(t.Context(), clients, "a", "hook", 443)
		var got []string
		for _, e := range r.endpoints {
			got = append(got, e.address)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if (c.code == "") != (len(r.findings) == 0) || c.code != "" && r.findings[0].Code != c.code {
			t.Errorf("%s: findings %+v", name, r.findings)
		}
	}
}

func TestAURLMayLeadToAService(t *testing.T) {
	var service Target
	service.to("shop", "hook", nil)
	way := route{aliases: []string{"10.96.0.7", "fd00::7", "hooks.example.org"}}
	for url, want := range map[string]bool{
		"https://10.96.0.7/":                            true,
		"https://10.96.0.7:443/x":                       true,
		"https://[fd00:0::7]":                           true,
		"https://[::ffff:10.96.0.7]":                    true,
		"https://hook.shop.svc":                         true,
		"https://HOOK.shop.svc.:443":                    true,
		"https://hook.shop.svc.cluster.local/validate":  true,
		"https://hook.shop":                             true,
		"https://hooks.example.org":                     true,
		"https://10.96.0.7:8443":                        false,
		"https://10.96.0.8":                             false,
		"https://hook.shop.svcx":                        false,
		"https://hook.other.svc":                        false,
		"http://10.96.0.7":                              false,
		"https://evil.example.org/hook.shop.svc":        false,
		"https://hook.shop.svc.cluster.local:9443/path": false,
	} {
		var byURL Target
		byURL.toURL(url)
		if got := byURL.leadsTo(service, way); got != want {
			t.Errorf("%s: %t, want %t", url, got, want)
		}
		if got := sameServer(service, byURL, way, route{}); got != want {
			t.Errorf("%s: the same server: %t, want %t", url, got, want)
		}
	}
	targets := []Target{service, {}}
	targets[1].toURL("https://10.96.0.7/")
	viaService(targets, []Target{service}, []route{way})
	if targets[1].service != "hook" || targets[1].ServerName != "10.96.0.7" {
		t.Errorf("it is looked at elsewhere than its Service leads: %+v", targets[1])
	}
}
