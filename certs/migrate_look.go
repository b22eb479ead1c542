package certs

// What there is to see of a target. In: clients, the target. Out: everybody who meets the same certificate, what each
// endpoint presents, who else writes. Errors: a target that does not exist, or cannot be read.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// injectors are annotations that make a controller write caBundle.
var injectors = []string{
	"cert-manager.io/inject-ca-from",
	"cert-manager.io/inject-ca-from-secret",
	"cert-manager.io/inject-apiserver-ca",
	"service.beta.openshift.io/inject-cabundle",
}

const certManagerCertificate = "cert-manager.io/certificate-name" // on a Secret that cert-manager has written

// look finds the target and who shares its endpoints, and shakes hands with all of them.
func (m *Migration) look(ctx context.Context) (MigrateSight, error) {
	sight := MigrateSight{Target: m.o.Target}
	o := m.auditOptions()
	all, errs := discover(ctx, o)
	for _, err := range errs {
		sight.Problems = append(sight.Problems, "who else leads to the same server is not fully known: "+err.Error())
	}
	first := slices.IndexFunc(all, m.o.Target.covers)
	switch {
	case first < 0 && len(errs) == len(kinds):
		return sight, fmt.Errorf("look for %s: %w", m.o.Target, errs[0])
	case first < 0:
		return sight, errors.Join(append([]error{fmt.Errorf("%s does not exist, or sends API servers nowhere", m.o.Target)}, errs...)...)
	}
	if m.o.Wish.StateSecret == "" { // where the server's pod can mount it
		m.o.Wish.StateSecret = fmt.Sprintf("%s/tracehook-migrate-%s-%s", cmp.Or(all[first].namespace, metav1.NamespaceDefault), strings.ToLower(m.o.Target.Kind), m.o.Target.Name)
	}
	routes := resolve(ctx, o, all)
	var targets []Target
	for pass := range 2 { // what the operator names comes first
		for i, t := range all {
			switch together := sameServer(all[first], t, routes[first], routes[i]); {
			case m.o.Target.covers(t) != (pass == 0):
			case together:
				targets = append(targets, t)
			case pass == 0:
				sight.Elsewhere = append(sight.Elsewhere, t.Webhook)
			}
		}
	}
	viaService(targets, all, routes)
	var err error
	if sight.Targets, err = m.shake(ctx, targets); err != nil {
		return sight, err
	}
	if sight.Injectors, err = m.injectors(ctx, targets); err != nil {
		return sight, err
	}
	sight.Keeper, err = m.keeper(ctx)
	return sight, err
}

// sameServer: the two lead to the same Service and port, or to an endpoint in common, or one has a URL to the other's Service.
func sameServer(a, b Target, toA, toB route) bool {
	if a.service != "" && a.namespace == b.namespace && a.service == b.service && a.port == b.port {
		return true
	}
	if a.leadsTo(b, toB) || b.leadsTo(a, toA) {
		return true
	}
	return slices.ContainsFunc(toA.endpoints, func(e endpoint) bool {
		return slices.ContainsFunc(toB.endpoints, func(other endpoint) bool { return e.address == other.address })
	})
}

// leadsTo: the URL of t is an address or a name of the other's Service.
func (t Target) leadsTo(other Target, way route) bool {
	host, port, err := net.SplitHostPort(t.dial)
	if err != nil || t.service != "" || other.service == "" || port != strconv.Itoa(int(other.port)) {
		return false
	}
	if ip := net.ParseIP(host); ip != nil {
		return slices.ContainsFunc(way.aliases, func(alias string) bool { return ip.Equal(net.ParseIP(alias)) })
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return slices.Contains(way.aliases, host) || host == other.service+"."+other.namespace ||
		host == ServerName(other.namespace, other.service) || strings.HasPrefix(host, ServerName(other.namespace, other.service)+".")
}

// viaService has a target by the URL of a Service looked at where the Service leads.
func viaService(targets, all []Target, routes []route) {
	for i := range targets {
		for j, other := range all {
			if targets[i].leadsTo(other, routes[j]) {
				targets[i].namespace, targets[i].service, targets[i].port = other.namespace, other.service, other.port
				break
			}
		}
	}
}

// shake looks at what the endpoints of targets present now. An error means that an endpoint was not looked at for want
// of time.
func (m *Migration) shake(ctx context.Context, targets []Target) ([]MigrateTarget, error) {
	o := m.auditOptions()
	routes := resolve(ctx, o, targets)
	if slices.ContainsFunc(targets, func(t Target) bool { return t.Service != "" }) {
		// They are all one server. Where its Service leads to a loopback address, that is how API servers get there, too.
		o.OnAPIServer = true
		routes = resolve(ctx, o, targets)
	}
	all := dialAll(ctx, o, targets, routes)
	var seen []MigrateTarget
	for i, t := range targets {
		report, late := judge(o, t, routes[i], all)
		if late > 0 {
			return nil, fmt.Errorf("look at the endpoints of %s: %w", t, context.Cause(ctx))
		}
		one := MigrateTarget{TargetReport: report}
		for _, e := range routes[i].endpoints {
			one.Chains = append(one.Chains, all[doorTo(o, t, e)].to(t).chain)
		}
		one.Trust = withSystemRoots(t.Trust, o.SystemRoots)
		seen = append(seen, one)
	}
	return seen, nil
}

// auditOptions are the options for the audit's parts.
func (m *Migration) auditOptions() AuditOptions {
	return AuditOptions{Clients: m.o.Clients, Dynamic: m.o.Dynamic, Now: m.o.Now(), SystemRoots: m.o.SystemRoots,
		OnAPIServer: m.o.OnAPIServer, DialTimeout: m.o.DialTimeout, Parallel: defaultParallel}
}

// named says whether an address is a name, behind which there may be more than one server.
func named(targets []MigrateTarget) bool {
	return slices.ContainsFunc(targets, func(t MigrateTarget) bool {
		return slices.ContainsFunc(t.Endpoints, func(e EndpointReport) bool {
			host, _, err := net.SplitHostPort(e.Address)
			return err == nil && net.ParseIP(host) == nil
		})
	})
}

func (m *Migration) injectors(ctx context.Context, targets []Target) (found []string, err error) {
	for _, t := range targets {
		object, err := m.o.Dynamic.Resource(resources[t.Kind]).Get(ctx, t.Name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", t, err)
		}
		for _, annotation := range injectors {
			line := fmt.Sprintf("annotation %s of %s/%s", annotation, t.Kind, t.Name)
			if _, there := object.GetAnnotations()[annotation]; there && !slices.Contains(found, line) {
				found = append(found, line)
			}
		}
	}
	return found, nil
}

// keeper finds out who would overwrite the Secret that is to be written.
func (m *Migration) keeper(ctx context.Context) (string, error) {
	if m.o.Wish.Secret == "" {
		return "", nil
	}
	namespace, name := splitSecret(m.o.Wish.Secret)
	secret, err := m.o.Clients.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("read Secret %s: %w", m.o.Wish.Secret, err)
	}
	if secret.Annotations[statusAnnotation] != "" { // no Authority holds the Lease: nobody keeps it
		lease, err := m.o.Clients.CoordinationV1().Leases(namespace).Get(ctx, "tracehook-certs", metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return "", fmt.Errorf("read the Authority's Lease: %w", err)
		default:
			spec := lease.Spec
			if spec.HolderIdentity != nil && *spec.HolderIdentity != "" && spec.RenewTime != nil && spec.LeaseDurationSeconds != nil &&
				m.o.Now().Before(spec.RenewTime.Add(time.Duration(*spec.LeaseDurationSeconds)*time.Second)) {
				return "tracehook", nil
			}
		}
		return "", nil
	}
	certificate := secret.Annotations[certManagerCertificate]
	if certificate == "" {
		return "", nil
	}
	// The annotation stays when the Certificate is deleted.
	resource := schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificates"}
	_, err = m.o.Dynamic.Resource(resource).Namespace(namespace).Get(ctx, certificate, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("read Certificate %s/%s: %w", namespace, certificate, err)
	}
	return "cert-manager", nil
}

// splitSecret takes NAMESPACE/NAME apart; NewMigration has checked it.
func splitSecret(s string) (namespace, name string) {
	namespace, name, _ = strings.Cut(s, "/")
	return namespace, name
}
