package certs

// In: a Service as a person names it. Out: the DNS names that its callers verify.
// Errors: names that no Service, namespace or cluster domain can have.

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// DefaultClusterDomain is the DNS domain of a cluster that was not given another one.
const DefaultClusterDomain = "cluster.local"

// ParseService splits NAMESPACE/NAME and checks both parts.
func ParseService(s string) (namespace, name string, err error) {
	namespace, name, found := strings.Cut(s, "/")
	if !found {
		return "", "", fmt.Errorf("service %q is not of the form NAMESPACE/NAME", s)
	}
	if err := checkService(namespace, name); err != nil {
		return "", "", err
	}
	return namespace, name, nil
}

// ServerName is the name that an API server verifies when it calls the Service,
// also when the Service is of type ExternalName.
func ServerName(namespace, name string) string {
	return name + "." + namespace + ".svc"
}

// ServiceNames returns every name under which the Service can be called, from the
// shortest to the longest. An empty domain means [DefaultClusterDomain].
func ServiceNames(namespace, name, domain string) ([]string, error) {
	if err := checkService(namespace, name); err != nil {
		return nil, err
	}
	if domain == "" {
		domain = DefaultClusterDomain
	}
	if len(validation.IsDNS1123Subdomain(domain)) > 0 {
		return nil, fmt.Errorf("cluster domain %q is no DNS name: lower-case letters, digits, '-' and '.', without a dot at the end", domain)
	}
	names := []string{
		name,
		name + "." + namespace,
		ServerName(namespace, name),
		ServerName(namespace, name) + "." + domain,
	}
	for _, n := range names {
		if len(n) > validation.DNS1123SubdomainMaxLength {
			return nil, fmt.Errorf("%q is longer than the %d characters of a DNS name", n, validation.DNS1123SubdomainMaxLength)
		}
	}
	return names, nil
}

func checkService(namespace, name string) error {
	for _, part := range []struct{ what, value string }{
		{"namespace", namespace},
		{"service name", name},
	} {
		if part.value == "" {
			return fmt.Errorf("%s is empty", part.what)
		}
		if len(validation.IsDNS1123Label(part.value)) > 0 {
			return fmt.Errorf("%s %q is no DNS label: lower-case letters, digits and '-', at most %d, with a letter or digit at both ends",
				part.what, part.value, validation.DNS1123LabelMaxLength)
		}
	}
	return nil
}
