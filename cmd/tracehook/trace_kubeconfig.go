package main

// Kubeconfigs: the user's in, the child's out. Errors: the user's cannot be read or
// names no usable cluster; the child's cannot be written.

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs with an auth-provider
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// userKubeconfig is what the user's kubeconfig knows, without its secrets: they are
// read when a cluster is asked something for the first time.
type userKubeconfig struct {
	current  string                           // the context of a command that names none; may be ""
	contexts map[string]*clientcmdapi.Context // cluster, user and namespace of each
	clusters map[string]kubeconfigCluster     // each has a way through the proxy
	users    []string                         // each has a token; "" is who has no credentials

	// connect returns the real address of a cluster and the real credentials of a user.
	// It runs no credential plugin. Any cluster goes with any user, as with kubectl's
	// --cluster and --user.
	connect func(cluster, user string) (*rest.Config, error)
}

// kubeconfigCluster is what the child's kubeconfig repeats of a cluster.
type kubeconfigCluster struct{ disableCompression bool }

// oneCluster is a kubeconfig for a cluster that no file names, such as that of a Pod's
// service account.
func oneCluster(config *rest.Config, namespace string) *userKubeconfig {
	const name = "tracehook"
	return &userKubeconfig{
		current:  name,
		contexts: map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name, Namespace: namespace}},
		clusters: map[string]kubeconfigCluster{name: {config.DisableCompression}},
		users:    []string{name},
		connect:  func(string, string) (*rest.Config, error) { return config, nil },
	}
}

// currentCluster is the cluster and the user of a command that names none.
func (k *userKubeconfig) currentCluster() (cluster, user string) {
	if c := k.contexts[k.current]; c != nil {
		return c.Cluster, c.AuthInfo
	}
	return "", ""
}

// loadKubeconfig finds the clusters as kubectl does: file (else the files of KUBECONFIG,
// else ~/.kube/config), its context (else the current one), else the service account
// of the Pod it runs in. Who names a file or a context is told at once if that cannot
// be used; otherwise the command may well choose another context.
func loadKubeconfig(file, context string) (*userKubeconfig, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = file
	var missing error
	rules.Warner = func(err error) { missing = err }
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context})

	raw, err := loader.RawConfig()
	if err == nil && clientcmdapi.IsConfigEmpty(&raw) {
		return loadServiceAccount(loader, missing)
	}
	if err != nil {
		return nil, kubeconfigError(err)
	}
	k := fromConfig(raw)
	if context != "" {
		if raw.Contexts[context] == nil {
			return nil, kubeconfigError(fmt.Errorf("context %q does not exist", context))
		}
		k.current = context
	}
	if file != "" || context != "" {
		config, err := k.connect(k.currentCluster())
		if err == nil {
			// What names unreadable certificates, better now than at the first call.
			_, err = rest.TransportFor(config)
		}
		if err != nil {
			return nil, kubeconfigError(err)
		}
	}
	return k, nil
}

// kubeconfigError is one line; an error in YAML has several.
func kubeconfigError(err error) error {
	return fmt.Errorf("load the kubeconfig: %s", oneLine(err.Error()))
}

func loadServiceAccount(loader clientcmd.ClientConfig, missing error) (*userKubeconfig, error) {
	config, err := loader.ClientConfig()
	if err != nil {
		err = errors.New("no cluster is configured; set KUBECONFIG or give --kubeconfig")
		if missing != nil {
			err = fmt.Errorf("%w (%w)", err, missing)
		}
		return nil, kubeconfigError(err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("find the namespace of the service account: %w", err)
	}
	return oneCluster(config, namespace), nil
}

// fromConfig leaves the secrets where they are.
func fromConfig(raw clientcmdapi.Config) *userKubeconfig {
	k := &userKubeconfig{
		current:  raw.CurrentContext,
		contexts: map[string]*clientcmdapi.Context{},
		clusters: map[string]kubeconfigCluster{},
		users:    slices.Sorted(maps.Keys(raw.AuthInfos)),
	}
	for name, c := range raw.Contexts {
		k.contexts[name] = &clientcmdapi.Context{Cluster: c.Cluster, AuthInfo: c.AuthInfo, Namespace: c.Namespace}
		if c.AuthInfo == "" && !slices.Contains(k.users, "") {
			k.users = append(k.users, "")
		}
	}
	for name, c := range raw.Clusters {
		k.clusters[name] = kubeconfigCluster{c.DisableCompression}
	}
	k.connect = func(cluster, user string) (*rest.Config, error) {
		// One context of its own: what else is wrong with the kubeconfig does not matter.
		const name = "tracehook"
		one := clientcmdapi.NewConfig()
		one.CurrentContext = name
		one.Contexts[name] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: user}
		if c := raw.Clusters[cluster]; c != nil {
			one.Clusters[cluster] = c
		}
		if u := raw.AuthInfos[user]; u != nil {
			one.AuthInfos[user] = u
		}
		return clientcmd.NewDefaultClientConfig(*one, nil).ClientConfig()
	}
	return k
}

// writeKubeconfig writes the child's kubeconfig, readable by this user only, and returns
// what it wrote. All that it holds to be kept secret is the proxy's one-time tokens. The
// names are the user's, so that a command can give any of them to --context, --cluster
// or --user.
func writeKubeconfig(file string, k *userKubeconfig, proxy *traceProxy) ([]byte, error) {
	nobody := "tracehook" // the user of contexts that name none
	for slices.Contains(k.users, nobody) {
		nobody += "-"
	}
	config := clientcmdapi.NewConfig()
	config.CurrentContext = k.current
	for name, c := range k.contexts {
		c = c.DeepCopy()
		if c.AuthInfo == "" {
			c.AuthInfo = nobody
		}
		config.Contexts[name] = c
	}
	for name, c := range k.clusters {
		config.Clusters[name] = &clientcmdapi.Cluster{
			Server:                   proxy.urlOf(name),
			CertificateAuthorityData: proxy.certificate,
			DisableCompression:       c.disableCompression,
		}
	}
	for _, name := range k.users {
		user := &clientcmdapi.AuthInfo{Token: proxy.tokens[name]}
		if name == "" {
			name = nobody
		}
		config.AuthInfos[name] = user
	}
	content, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("encode the temporary kubeconfig: %w", err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return nil, fmt.Errorf("write the temporary kubeconfig: %w", err)
	}
	return content, nil
}
