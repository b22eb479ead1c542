package main

// Kubeconfigs: the user's in, the child's out. Errors: the user's cannot be read or
// names no usable cluster; the child's cannot be written.

import (
	"errors"
	"fmt"
	"os"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs with an auth-provider
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// userCluster is the cluster that the user's kubeconfig selects, as whom, and under
// which names the kubeconfig knows it.
type userCluster struct {
	rest      *rest.Config // the real address and the real credentials
	namespace string       // the context's
	context   string
	cluster   string
	user      string
}

// loadCluster finds the cluster as kubectl does: file (else the files of KUBECONFIG,
// else ~/.kube/config), its context (else the current one), else the service account
// of the Pod it runs in.
func loadCluster(file, context string) (*userCluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = file
	var missing error
	rules.Warner = func(err error) { missing = err }
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context})

	restConfig, err := config.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		err = errors.New("no cluster is configured; set KUBECONFIG or give --kubeconfig")
		if missing != nil {
			err = fmt.Errorf("%w (%w)", err, missing)
		}
	}
	if err == nil {
		// What names unreadable certificates, better now than at the first call.
		_, err = rest.TransportFor(restConfig)
	}
	if err != nil {
		return nil, fmt.Errorf("load the kubeconfig: %s", oneLine(err.Error())) // a YAML error has several lines
	}

	namespace, _, err := config.Namespace()
	if err != nil {
		return nil, fmt.Errorf("find the namespace in the kubeconfig: %w", err)
	}
	found := &userCluster{rest: restConfig, namespace: namespace, context: "tracehook", cluster: "tracehook", user: "tracehook"}
	// The names are kept so that a command which gives the same --context, --cluster
	// or --user works. A service account has none.
	if raw, err := config.RawConfig(); err == nil {
		name := raw.CurrentContext
		if context != "" {
			name = context
		}
		if selected := raw.Contexts[name]; selected != nil {
			found.context = name
			if selected.Cluster != "" {
				found.cluster = selected.Cluster
			}
			if selected.AuthInfo != "" {
				found.user = selected.AuthInfo
			}
		}
	}
	return found, nil
}

// writeKubeconfig writes the child's kubeconfig, readable by this user only. All that
// it holds to be kept secret is the proxy's one-time token.
func writeKubeconfig(file string, c *userCluster, proxy *traceProxy) error {
	config := clientcmdapi.NewConfig()
	config.CurrentContext = c.context
	config.Contexts[c.context] = &clientcmdapi.Context{Cluster: c.cluster, AuthInfo: c.user, Namespace: c.namespace}
	config.Clusters[c.cluster] = &clientcmdapi.Cluster{
		Server:                   proxy.url,
		CertificateAuthorityData: proxy.certificate,
		DisableCompression:       c.rest.DisableCompression,
	}
	config.AuthInfos[c.user] = &clientcmdapi.AuthInfo{Token: proxy.token}
	content, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("encode the temporary kubeconfig: %w", err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return fmt.Errorf("write the temporary kubeconfig: %w", err)
	}
	return nil
}
