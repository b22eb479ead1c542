package main

// `tracehook certs` and what its commands share. In: flags that say how to reach a cluster. Out: clients,
// machine-readable output. Errors: a kubeconfig that cannot be used.

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

func newCertsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Make, keep, rotate, migrate and audit the certificates that API servers verify",
		Args:  noArguments,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCertsIssueCommand(), newCertsAuditCommand(), newCertsAuthorityCommand(), newCertsRotateCommand(), newCertsMigrateCommand())
	return cmd
}

// clusterFlags say how to reach a cluster, as kubectl does.
type clusterFlags struct {
	kubeconfig string
	context    string
}

func (c *clusterFlags) bind(f *pflag.FlagSet) {
	f.StringVar(&c.kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the cluster (default $KUBECONFIG, ~/.kube/config or, in a pod, its ServiceAccount)")
	f.StringVar(&c.context, "context", "", "`NAME` of the kubeconfig's context (default its current one)")
}

func (c *clusterFlags) config() (*rest.Config, error) { return clusterConfig(c.kubeconfig, c.context) }

// clusterConfig finds the cluster, for a command that has limits of its own on what it asks at a time.
func clusterConfig(kubeconfig, context string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	config.QPS = -1
	return config, nil
}

// writeMachine writes a document as json or yaml.
func writeMachine(w io.Writer, format string, document any) error {
	if format == "yaml" {
		text, err := yaml.Marshal(document)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(document)
}
