package main

// Flags about certificates that are kept in the cluster. In: flags, POD_NAMESPACE. Out: names and times.
// Errors: values that no cluster can have.

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tracehook/tracehook/certs"
)

const (
	defaultNamespace     = "tracehook-system"
	defaultConfiguration = "tracehook"
	defaultService       = "tracehook"
	defaultProof         = "tracehook-proof"
)

// certsConfig says where certificates are kept in the cluster, under which names they are served, and who must trust them.
type certsConfig struct {
	// For whoever serves.
	Namespace      string
	Service        string // NAME or NAME:PORT
	ProofService   string // "": nothing is proven
	ServingSecret  string
	Configurations []string // NAME or KIND/NAME
	ClusterDomain  string

	// For the authority.
	CASecret                                  string
	ProofConfiguration                        string   // "": nothing is proven
	ServingNames                              []string // DNS names and IP addresses beside the Service's
	CALifetime, LeafLifetime, Soak            time.Duration
	APIServers                                []string // URLs
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration

	holder certs.Holder // the authority's Lease; no flag
}

func (c *certsConfig) bindServing(f *pflag.FlagSet) {
	namespace := os.Getenv("POD_NAMESPACE")
	if namespace == "" {
		namespace = defaultNamespace
	}
	f.StringVarP(&c.Namespace, "namespace", "n", namespace, "`NAMESPACE` of the Services, Secrets and the Lease; $POD_NAMESPACE if that is set")
	f.StringVar(&c.Service, "service", defaultService, "`NAME[:PORT]` of the Service that the API servers call; port 443 if none is given")
	f.StringVar(&c.ProofService, "proof-service", defaultProof, `NAME of the Service under which the next certificate is tried before it is served; "" for none`)
	f.StringVar(&c.ServingSecret, "serving-secret", certs.DefaultServingSecret, "`NAME` of the Secret with the certificate that is served")
	f.StringArrayVar(&c.Configurations, "webhook-configuration", nil, "`NAME` of the MutatingWebhookConfiguration, or KIND/NAME, that sends API servers here; may be repeated (default "+defaultConfiguration+")")
	f.StringVar(&c.ClusterDomain, "cluster-domain", certs.DefaultClusterDomain, "DNS `DOMAIN` of the cluster")
}

func (c *certsConfig) bindAuthority(f *pflag.FlagSet) {
	f.StringVar(&c.CASecret, "ca-secret", certs.DefaultCASecret, "`NAME` of the Secret with the CA's key")
	f.StringVar(&c.ProofConfiguration, "proof-configuration", defaultProof, `NAME of the MutatingWebhookConfiguration that leads to --proof-service; "" for none`)
	f.StringArrayVar(&c.ServingNames, "serving-name", nil, "DNS `NAME` or IP address that the certificate is for beside the Service's names, as a webhook configured by URL needs it; may be repeated")
	f.DurationVar(&c.CALifetime, "ca-lifetime", certs.DefaultCALifetime, "how long a new CA is valid; it is replaced after two thirds of that")
	f.DurationVar(&c.LeafLifetime, "leaf-lifetime", certs.DefaultLeafLifetime, "how long a new serving certificate is valid; it is replaced after two thirds of that")
	f.DurationVar(&c.Soak, "rotation-soak", certs.DefaultSoak, "how long the old CA stays trusted after the last server has left it: longer than the 90s that idle connections of API servers live")
	f.StringArrayVar(&c.APIServers, "api-server", nil, "`URL` of an API server that must trust a new CA before it is used; may be repeated (default: those of Service default/kubernetes)")
	f.DurationVar(&c.LeaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long the others wait for a leader that is silent")
	f.DurationVar(&c.RenewDeadline, "leader-elect-renew-deadline", 10*time.Second, "how long a leader tries to renew its Lease before it gives up")
	f.DurationVar(&c.RetryPeriod, "leader-elect-retry-period", 2*time.Second, "time between two tries to get or renew the Lease")
}

// validate looks at the flags that were bound: those of the authority are zero where they were not.
func (c *certsConfig) validate() error {
	var errs []error
	if len(validation.IsDNS1123Label(c.Namespace)) > 0 {
		errs = append(errs, fmt.Errorf("--namespace %q: want a DNS label", c.Namespace))
	}
	if _, _, err := c.service(); err != nil {
		errs = append(errs, fmt.Errorf("--service %q: %w", c.Service, err))
	}
	for _, o := range []struct {
		flag, value string
		optional    bool
	}{
		{"proof-service", c.ProofService, true},
		{"proof-configuration", c.ProofConfiguration, true},
		{"serving-secret", c.ServingSecret, false},
		{"ca-secret", c.CASecret, c.CALifetime == 0},
		{"cluster-domain", c.ClusterDomain, false},
	} {
		if (o.value != "" || !o.optional) && len(validation.IsDNS1123Subdomain(o.value)) > 0 {
			errs = append(errs, fmt.Errorf("--%s %q: want a DNS name: lower-case letters, digits, '-' and '.'", o.flag, o.value))
		}
	}
	if _, err := c.configurations(); err != nil {
		errs = append(errs, err)
	}
	for _, name := range c.ServingNames {
		if net.ParseIP(name) == nil && len(validation.IsDNS1123Subdomain(strings.TrimPrefix(name, "*."))) > 0 {
			errs = append(errs, fmt.Errorf("--serving-name %q: want a DNS name or an IP address, without a port", name))
		}
	}
	if c.CASecret == c.ServingSecret {
		errs = append(errs, fmt.Errorf("--ca-secret and --serving-secret are both %q: the CA's key must not lie where servers read", c.CASecret))
	}
	for _, raw := range c.APIServers {
		if u, err := url.Parse(raw); err != nil || u.Scheme != "https" || u.Host == "" {
			errs = append(errs, fmt.Errorf("--api-server %q: want https://HOST[:PORT]", raw))
		}
	}
	if c.CASecret != "" {
		errs = append(errs, c.validateTimes()...)
	}
	return errors.Join(errs...)
}

func (c *certsConfig) validateTimes() (errs []error) {
	const shortest = 30 * time.Second // of a life; a rotation must fit into the last third
	if c.LeafLifetime < shortest {
		errs = append(errs, fmt.Errorf("--leaf-lifetime %s: want %s or more", c.LeafLifetime, shortest))
	}
	if c.CALifetime < c.LeafLifetime {
		errs = append(errs, fmt.Errorf("--ca-lifetime %s is shorter than --leaf-lifetime %s: no certificate outlives its CA", c.CALifetime, c.LeafLifetime))
	}
	if c.Soak <= 0 {
		errs = append(errs, fmt.Errorf("--rotation-soak %s: want more than 0", c.Soak))
	}
	// What client-go's election demands, and it would panic over some of it.
	if c.RetryPeriod <= 0 || c.RenewDeadline <= c.RetryPeriod*6/5 || c.LeaseDuration <= c.RenewDeadline || c.LeaseDuration < time.Second {
		errs = append(errs, fmt.Errorf("--leader-elect-retry-period %s, --leader-elect-renew-deadline %s, --leader-elect-lease-duration %s: want each clearly longer than the one before, and the lease at least 1s",
			c.RetryPeriod, c.RenewDeadline, c.LeaseDuration))
	}
	return errs
}

// service splits --service.
func (c *certsConfig) service() (name string, port int32, err error) {
	name, portText, given := strings.Cut(c.Service, ":")
	port = 443
	if given {
		p, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || p == 0 {
			return "", 0, fmt.Errorf("%q is no port from 1 to 65535", portText)
		}
		port = int32(p)
	}
	if len(validation.IsDNS1123Label(name)) > 0 {
		return "", 0, errors.New("want NAME or NAME:PORT, the name a DNS label")
	}
	return name, port, nil
}

// serverName is what API servers verify when they make admission calls.
func (c *certsConfig) serverName() string {
	name, _, _ := c.service() // validated
	return certs.ServerName(c.Namespace, name)
}

// proofName is what API servers verify when they try the next certificate; "" if they do not.
func (c *certsConfig) proofName() string {
	if c.ProofService == "" {
		return ""
	}
	return certs.ServerName(c.Namespace, c.ProofService)
}

// names are those of a certificate.
func (c *certsConfig) names() ([]string, error) {
	service, _, err := c.service()
	if err != nil {
		return nil, err
	}
	names, err := certs.ServiceNames(c.Namespace, service, c.ClusterDomain)
	if err == nil && c.ProofService != "" && c.ProofService != service {
		names = append(names, c.proofName())
	}
	for _, name := range c.ServingNames {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, err
}

// configurations are the objects that send API servers here, as given.
func (c *certsConfig) configurations() ([]certs.Ref, error) {
	var refs []certs.Ref
	for _, text := range c.Configurations {
		ref := certs.Ref{Kind: certs.KindMutating, Name: text}
		if strings.Contains(text, "/") {
			var err error
			if ref, err = certs.ParseRef(text); err != nil {
				return nil, fmt.Errorf("--webhook-configuration %q: %w", text, err)
			}
		}
		if !slices.Contains([]string{certs.KindMutating, certs.KindValidating}, ref.Kind) || ref.Webhook != "" || len(validation.IsDNS1123Subdomain(ref.Name)) > 0 {
			return nil, fmt.Errorf("--webhook-configuration %q: want NAME, mutatingwebhookconfiguration/NAME or validatingwebhookconfiguration/NAME", text)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// targets are configurations, by default our own.
func (c *certsConfig) targets() ([]certs.Ref, error) {
	if len(c.Configurations) == 0 {
		return []certs.Ref{{Kind: certs.KindMutating, Name: defaultConfiguration}}, nil
	}
	return c.configurations()
}
