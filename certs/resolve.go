package certs

// The way to a Service. In: its name and port. Out: its endpoints, as an API server or kube-proxy would choose
// from. Errors: none; what is wrong with the way is a finding.

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// route is how the API server gets to a target.
type route struct {
	endpoints []endpoint
	findings  []Finding
	aliases   []string
	external  bool // by a name, behind which there may be any number
	late      bool // ctx ended before it was known
}

type endpoint struct {
	address   string
	notReady  bool
	elsewhere bool // it means another machine to the API server than here
}

func resolveService(ctx context.Context, clients kubernetes.Interface, namespace, name string, port int32) (r route) {
	add := func(f Finding) { f.Breaks = true; f.Severity = Error; r.findings = append(r.findings, f) }
	service, err := clients.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		add(Finding{Code: ServiceMissing, Message: fmt.Sprintf("Service %s/%s does not exist", namespace, name),
			Means: "every call fails before it is dialled", Remedy: "create the Service, or remove what refers to it"})
		return r
	case err != nil:
		r.unknown(ctx, err)
		return r
	}
	r.aliases = append(slices.Clone(service.Spec.ClusterIPs), service.Spec.ClusterIP, service.Spec.ExternalName)
	r.aliases = append(r.aliases, service.Spec.ExternalIPs...)
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		r.aliases = append(r.aliases, ingress.IP, ingress.Hostname)
	}
	r.aliases = slices.DeleteFunc(r.aliases, func(alias string) bool { return alias == "" || alias == corev1.ClusterIPNone })
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		r.external = true
		r.endpoints = []endpoint{{address: net.JoinHostPort(service.Spec.ExternalName, strconv.Itoa(int(port)))}}
		return r
	}
	index := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == port && isTCP(p.Protocol) })
	if index < 0 {
		add(Finding{Code: ServiceUnroutable, Message: fmt.Sprintf("Service %s/%s has no port %d for TCP", namespace, name, port),
			Means: "every call fails before it is dialled", Remedy: "ask for a port that the Service has"})
		return r
	}
	if service.Spec.ClusterIP == corev1.ClusterIPNone {
		add(Finding{Code: ServiceUnroutable, Message: fmt.Sprintf("Service %s/%s has no cluster IP", namespace, name),
			Means: "an API server without --enable-aggregator-routing cannot call it", Remedy: "make it a Service with a cluster IP"})
	}
	slicesOf, err := clients.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
	if err != nil {
		r.unknown(ctx, err)
		return r
	}
	ready := 0
	for _, slice := range slicesOf.Items {
		for _, p := range slice.Ports {
			if p.Port == nil || p.Protocol != nil && !isTCP(*p.Protocol) || deref(p.Name) != service.Spec.Ports[index].Name {
				continue
			}
			for _, e := range slice.Endpoints {
				isReady := e.Conditions.Ready == nil || *e.Conditions.Ready
				if isReady {
					ready++
				}
				for _, address := range e.Addresses {
					at := endpoint{address: net.JoinHostPort(address, strconv.Itoa(int(*p.Port))), notReady: !isReady}
					if !slices.Contains(r.endpoints, at) {
						r.endpoints = append(r.endpoints, at)
					}
				}
			}
		}
	}
	if ready == 0 {
		add(Finding{Code: NoEndpoints, Message: fmt.Sprintf("Service %s/%s has no ready endpoint for port %d", namespace, name, port),
			Means: "every call fails", Remedy: "look at the pods that the Service selects"})
	}
	return r
}

// isTCP also of a protocol that is left out.
func isTCP(p corev1.Protocol) bool { return p == corev1.ProtocolTCP || p == "" }

// deref returns the zero value for nil.
func deref[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}

func (r *route) unknown(ctx context.Context, err error) {
	r.late = ctx.Err() != nil
	r.findings = append(r.findings, Finding{Code: ServiceUnknown, Severity: Warning,
		Message: "its endpoints are unknown: " + err.Error(),
		Means:   "whether calls work is unknown",
		Remedy:  "run the audit with the rights that deploy/components/audit lists, and with more time"})
}
