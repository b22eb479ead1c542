package main

// What the Tab key offers. In: a command line that is not complete. Out: kinds, names, namespaces, contexts and the values of flags. Errors:
// none; where nothing is known, or the API server does not answer soon, nothing is offered.

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"

	"github.com/tracehook/tracehook/certs"
)

const (
	// completionTimeout is for all that is asked of an API server: somebody waits for it.
	completionTimeout = 3 * time.Second
	// mostCompleted is how many names are asked for.
	mostCompleted = 500
)

// isKubectlCompletion: kubectl runs a program of this name, found in PATH, to complete `kubectl tracehook …`.
func isKubectlCompletion(called string) bool {
	return strings.TrimSuffix(filepath.Base(called), ".exe") == "kubectl_complete-tracehook"
}

// flagChoices are the flags with a closed set of values, the same on every command.
var flagChoices = map[string][]string{
	"certs":       {certsFiles, certsManaged, certsSecret},
	"client-auth": {"observe", "enforce"},
	"fail-on":     {"info", "warning", "error"},
	"lineage":     {"link", "parent", "off"},
	"log-format":  {"json", "text"},
	"log-level":   {"debug", "info", "warn", "error"},
	"stamp":       {"sampled", "always"},
	"to":          {string(certs.ToIssued), string(certs.ToCertManager), string(certs.ToManaged)},
	"trust":       {"parent", "link", "none"},
}

// outputChoices are the values of --output, by command.
var outputChoices = map[string][]string{
	"check":   {"text", "json", "yaml"},
	"audit":   {"table", "json", "yaml"},
	"issue":   {"text", "json", "yaml"},
	"migrate": {"table", "json", "yaml"},
	"rotate":  {"text", "json", "yaml"},
	"show":    {"tree", "json", "none", "html="},
	"trace":   {"tree", "json", "none", "html="},
	"version": {"json", "yaml"},
}

// completeFlags adds what can be offered without an API server to cmd and all below it.
func completeFlags(cmd *cobra.Command) {
	choices := maps.Clone(flagChoices)
	choices["output"] = outputChoices[cmd.Name()]
	for name, values := range choices {
		if cmd.Flags().Lookup(name) != nil && len(values) > 0 {
			offer(cmd, name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	if cmd.Flags().Lookup("kubeconfig") != nil {
		for name, names := range map[string]func(clientcmdapi.Config) []string{
			"context": func(c clientcmdapi.Config) []string { return slices.Sorted(maps.Keys(c.Contexts)) },
			"cluster": func(c clientcmdapi.Config) []string { return slices.Sorted(maps.Keys(c.Clusters)) },
			"user":    func(c clientcmdapi.Config) []string { return slices.Sorted(maps.Keys(c.AuthInfos)) },
		} {
			if cmd.Flags().Lookup(name) == nil {
				continue
			}
			offer(cmd, name, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
				rules := clientcmd.NewDefaultClientConfigLoadingRules()
				rules.ExplicitPath = cmd.Flags().Lookup("kubeconfig").Value.String()
				config, err := rules.Load()
				if err != nil {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				return safe(names(*config)), cobra.ShellCompDirectiveNoFileComp
			})
		}
	}
	for _, sub := range cmd.Commands() {
		completeFlags(sub)
	}
}

func offer(cmd *cobra.Command, flag string, what cobra.CompletionFunc) {
	if _, ok := cmd.GetFlagCompletionFunc(flag); ok {
		return // the command knows better
	}
	if err := cmd.RegisterFlagCompletionFunc(flag, what); err != nil {
		panic(err) // there is no such flag, and there was a moment ago
	}
}

// safe leaves out what is not one plain word, or is a flag: shells insert what is offered as it is, and others than who presses Tab give
// names, such as `$(command)` to a Role.
func safe(names []string) []string {
	return slices.DeleteFunc(names, func(name string) bool { return !shellSafe.MatchString(name) || strings.HasPrefix(name, "-") })
}

// asking runs ask with a limit, and lets client-go be silent.
func asking(cmd *cobra.Command, ask func(context.Context) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	names, err := until(ctx, func() ([]string, error) { return ask(ctx) })
	if err != nil {
		cobra.CompDebugln(err.Error(), false)
	}
	names = safe(names)
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

// completeNamespace offers the cluster's namespaces.
func (c *clusterFlags) completeNamespace(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return asking(cmd, func(ctx context.Context) ([]string, error) {
		return c.names(ctx, schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "")
	})
}

// names asks for the first names of a kind.
func (c *clusterFlags) names(ctx context.Context, kind schema.GroupVersionResource, namespace string) (names []string, err error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	list, err := client.Resource(kind).Namespace(namespace).List(ctx, metav1.ListOptions{Limit: mostCompleted})
	if err != nil {
		return nil, err
	}
	for _, object := range list.Items {
		names = append(names, object.Name)
	}
	return names, nil
}

// completeObject offers KIND, then NAME, or KIND/NAME in one.
func (c *clusterFlags) completeObject(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	kind, _, slash := strings.Cut(begun, "/")
	switch {
	case slash:
		return asking(cmd, func(ctx context.Context) ([]string, error) {
			names, err := c.objectNames(ctx, kind)
			for i, name := range names {
				names[i] = kind + "/" + name
			}
			return names, err
		})
	case len(args) == 0:
		return asking(cmd, c.kinds)
	case !strings.Contains(args[0], "/"):
		return asking(cmd, func(ctx context.Context) ([]string, error) { return c.objectNames(ctx, args[0]) })
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// kinds are those that can be listed, as kubectl names them: with the group where there is one.
func (c *clusterFlags) kinds(context.Context) (names []string, err error) {
	client, err := c.ToDiscoveryClient()
	if err != nil {
		return nil, err
	}
	lists, err := client.ServerPreferredResources()
	for _, list := range lists { // what is known beside an error
		version, parseErr := schema.ParseGroupVersion(list.GroupVersion)
		if parseErr != nil {
			continue
		}
		for _, resource := range list.APIResources {
			if slices.Contains(resource.Verbs, "list") {
				names = append(names, schema.GroupResource{Group: version.Group, Resource: resource.Name}.String())
			}
		}
	}
	if len(names) > 0 {
		err = nil
	}
	return names, err
}

func (c *clusterFlags) objectNames(ctx context.Context, kind string) ([]string, error) {
	mapper, err := c.ToRESTMapper()
	if err != nil {
		return nil, err
	}
	_, group := schema.ParseResourceArg(strings.ToLower(kind))
	resource, err := mapper.ResourceFor(group.WithVersion(""))
	if err != nil {
		return nil, err
	}
	namespace, _, err := c.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, err
	}
	found, err := mapper.KindFor(resource)
	if err != nil {
		return nil, err
	}
	mapping, err := mapper.RESTMapping(found.GroupKind(), found.Version)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		namespace = ""
	}
	return c.names(ctx, resource, namespace)
}

// completeTarget offers what sends API servers to other servers, as KIND/NAME.
func (c *clusterFlags) completeTarget(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	switch {
	case len(args) > 0:
		return nil, cobra.ShellCompDirectiveNoFileComp
	case strings.Contains(begun, "/"):
		return c.completeObject(cmd, nil, begun)
	}
	return []string{"mutatingwebhookconfiguration/", "validatingwebhookconfiguration/", "crd/", "apiservice/"},
		cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
