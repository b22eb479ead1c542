package main

// How a command finds its cluster: kubectl's flags, the same on every command. In: flags, kubeconfigs, a Pod's ServiceAccount.
// Out: a way to an API server; nobody is called yet. Errors: what cannot be used, and that nothing names a cluster.

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientconfig "sigs.k8s.io/controller-runtime/pkg/client/config"
)

// clusterAnnotation is on the flags that say how to reach a cluster. Help lists them by themselves.
const clusterAnnotation = "tracehook.dev/cluster"

// clusterFlags are kubectl's. A command that goes on running has neither --request-timeout, which would end its watches, nor
// kubectl's --namespace: it has one of its own.
type clusterFlags struct {
	*genericclioptions.ConfigFlags
	flags *pflag.FlagSet
}

// namespaceUsage is what --namespace means to a command. The zero value is for commands that take it as kubectl does.
type namespaceUsage struct {
	value string // the default; "": that of the kubeconfig's context, or none
	usage string // "": kubectl's text
}

// bind adds the flags to cmd.
func (c *clusterFlags) bind(cmd *cobra.Command, namespace namespaceUsage) {
	c.ConfigFlags = genericclioptions.NewConfigFlags(true)
	c.Namespace = &namespace.value
	c.add(cmd.Flags())
	if namespace.usage != "" {
		cmd.Flags().Lookup("namespace").Usage = namespace.usage
	}
	offer(cmd, "namespace", c.completeNamespace)
}

// bindProcess adds the flags of a command that goes on running.
func (c *clusterFlags) bindProcess(f *pflag.FlagSet) {
	c.ConfigFlags = genericclioptions.NewConfigFlags(true)
	c.Namespace, c.Timeout, c.CacheDir = nil, nil, nil
	c.add(f)
}

func (c *clusterFlags) add(f *pflag.FlagSet) {
	c.WithWrapConfigFn(c.fromPod)
	c.flags = pflag.NewFlagSet("", pflag.ContinueOnError)
	c.AddFlags(c.flags)
	c.flags.Lookup("kubeconfig").Usage = "`FILE` that says how to reach the cluster (default $KUBECONFIG, ~/.kube/config or, in a pod, its ServiceAccount)"
	if cache := c.flags.Lookup("cache-dir"); cache != nil {
		cache.DefValue = "$HOME/.kube/cache" // nobody's home in a help text
	}
	c.flags.VisitAll(func(flag *pflag.Flag) {
		flag.Annotations = map[string][]string{clusterAnnotation: {"true"}}
		f.AddFlag(flag)
	})
}

// fromPod fills in what a Pod's ServiceAccount says where nothing else names a cluster. client-go does so by itself only if no flag is set
// at all: with --as or --request-timeout it would go to localhost:8080.
func (c *clusterFlags) fromPod(config *rest.Config) *rest.Config {
	if pod, err := rest.InClusterConfig(); err == nil && c.unnamed(config) {
		fillIn(config, pod)
	}
	return config
}

// fillIn keeps what the flags say.
func fillIn(config, pod *rest.Config) {
	config.Host = pod.Host
	if config.CAFile == "" && !config.Insecure {
		config.CAFile = pod.CAFile
	}
	if config.BearerToken == "" && config.CertFile == "" {
		config.BearerToken, config.BearerTokenFile = pod.BearerToken, pod.BearerTokenFile
	}
}

// unnamed: no flag, no kubeconfig and no variable names a cluster.
func (c *clusterFlags) unnamed(config *rest.Config) bool {
	if config.Host != clientcmd.ClusterDefaults.Server || *c.APIServer != "" || os.Getenv("KUBERNETES_MASTER") != "" {
		return false
	}
	raw, err := c.ToRawKubeConfigLoader().RawConfig()
	return err == nil && len(raw.Clusters) == 0
}

// config finds the cluster, for a command that has limits of its own on what it asks at a time.
func (c *clusterFlags) config() (*rest.Config, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	config, err := c.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	if c.unnamed(config) {
		return nil, errors.New("find the cluster: no kubeconfig names one: give --kubeconfig or set KUBECONFIG")
	}
	if config.QPS == 0 {
		config.QPS = -1
	}
	return config, nil
}

// validate finds what client-go would not tell, or would tell late.
func (c *clusterFlags) validate() error {
	if c.ConfigFlags == nil {
		return nil
	}
	var errs []error
	if c.Namespace != nil && *c.Namespace != "" && len(validation.IsDNS1123Label(*c.Namespace)) > 0 {
		errs = append(errs, fmt.Errorf("--namespace %q: want a DNS label", *c.Namespace))
	}
	if c.Timeout != nil {
		if _, err := clientcmd.ParseTimeout(*c.Timeout); err != nil {
			errs = append(errs, fmt.Errorf("--request-timeout %q: want a time such as 30s, or 0 for no limit", *c.Timeout))
		}
	}
	for _, extra := range *c.ImpersonateUserExtra {
		if key, _, found := strings.Cut(extra, "="); !found || key == "" {
			errs = append(errs, fmt.Errorf("--as-user-extra %q: want KEY=VALUE", extra))
		}
	}
	if *c.Impersonate == "" && (*c.ImpersonateUID != "" || len(*c.ImpersonateGroup) > 0 || len(*c.ImpersonateUserExtra) > 0) {
		errs = append(errs, errors.New("--as-uid, --as-group and --as-user-extra need --as, which says who asks"))
	}
	return errors.Join(errs...)
}

// in puts --namespace, if it is given, in front of a NAME without a namespace.
func (c *clusterFlags) in(name string) string {
	if name == "" || c.ConfigFlags == nil || *c.Namespace == "" || strings.Contains(name, "/") {
		return name
	}
	return *c.Namespace + "/" + name
}

// isClusterFlag: the error is about a flag that kubectl has and the command does not.
func isClusterFlag(err error) bool {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return false
	}
	kubectl := pflag.NewFlagSet("", pflag.ContinueOnError)
	genericclioptions.NewConfigFlags(true).AddFlags(kubectl)
	name := unknown.GetSpecifiedName()
	return kubectl.Lookup(name) != nil || len(name) == 1 && kubectl.ShorthandLookup(name) != nil
}

// with changes every way to the cluster that is found from now on.
func (c *clusterFlags) with(change func(*rest.Config)) {
	find := c.WrapConfigFn
	c.WithWrapConfigFn(func(config *rest.Config) *rest.Config {
		config = find(config)
		change(config)
		return config
	})
}

// process finds the cluster of a command that goes on running. Without a flag a Pod's ServiceAccount comes before ~/.kube/config.
func (c *clusterFlags) process() (*rest.Config, error) {
	given := false
	if c.flags != nil {
		c.flags.VisitAll(func(f *pflag.Flag) { given = given || f.Changed })
	}
	if !given {
		return clientconfig.GetConfig()
	}
	return c.config()
}

// contexts is the value of a --context that may be repeated.
type contexts struct {
	names *[]string
	first *string
}

func (c contexts) String() string { return strings.Join(*c.names, ",") }
func (c contexts) Type() string   { return "string" }

func (c contexts) Set(name string) error {
	if slices.Contains(*c.names, name) {
		return fmt.Errorf("%q is named twice", name)
	}
	*c.names = append(*c.names, name)
	*c.first = (*c.names)[0]
	return nil
}

// bindContexts lets --context be repeated. bind comes first.
func (c *clusterFlags) bindContexts() *[]string {
	names := new([]string)
	flag := c.flags.Lookup("context")
	flag.Value = contexts{names, c.Context}
	flag.Usage = "`NAME` of the kubeconfig's context; may be repeated, for several clusters (default its current one)"
	return names
}

// of is the same flags for another context: what a client was made of is kept in them.
func (c *clusterFlags) of(context string) *clusterFlags {
	other := genericclioptions.NewConfigFlags(true)
	other.CacheDir, other.KubeConfig, other.ClusterName, other.AuthInfoName = c.CacheDir, c.KubeConfig, c.ClusterName, c.AuthInfoName
	other.Context, other.Namespace, other.APIServer, other.TLSServerName = &context, c.Namespace, c.APIServer, c.TLSServerName
	other.Insecure, other.CertFile, other.KeyFile, other.CAFile = c.Insecure, c.CertFile, c.KeyFile, c.CAFile
	other.BearerToken, other.Impersonate, other.ImpersonateUID = c.BearerToken, c.Impersonate, c.ImpersonateUID
	other.ImpersonateGroup, other.ImpersonateUserExtra, other.Username, other.Password = c.ImpersonateGroup, c.ImpersonateUserExtra, c.Username, c.Password
	other.Timeout, other.DisableCompression, other.WrapConfigFn = c.Timeout, c.DisableCompression, c.WrapConfigFn
	return &clusterFlags{ConfigFlags: other, flags: c.flags}
}
