package main

// What of a command line may be said in a span or a message. In: the command line.
// Out: names from closed lists. Pure. Arguments may be secrets, so nothing is taken
// from them: they are only compared with the words below.

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// knownVerbs are the subcommands of the tools that people run against a cluster.
var knownVerbs = words(`
	annotate api-resources api-versions apply attach auth autoscale certificate cluster-info completion
	config cordon cp create debug delete describe diff drain edit events exec explain expose get kustomize
	label logs options patch plugin port-forward proxy replace rollout run scale set taint top uncordon
	version wait
	dependency env history install lint list package pull push registry repo rollback search show status
	template test uninstall upgrade verify
	adm import login logout new-app new-project process project projects rsh start-build whoami
	bootstrap build check export reconcile resume stats suspend trace tree
	analyze dashboard experimental init inspect migrate remove sync
`)

// Flags that may stand before the verb. Only with these is it certain what the word
// behind a flag is: its value, or the verb.
var (
	flagsWithValue = words(`
		-n --namespace --context --cluster --user --kubeconfig -s --server --token --username --password
		--as --as-group --as-uid --as-user-extra --cache-dir --certificate-authority --client-certificate
		--client-key --kuberc --log-flush-frequency --profile --profile-output --request-timeout
		--tls-server-name -v --v --vmodule
		--burst-limit --color --content-cache --kube-apiserver --kube-as-group --kube-as-user --kube-ca-file
		--kube-context --kube-tls-server-name --kube-token --qps --registry-config --repository-cache
		--repository-config
	`)
	flagsWithoutValue = words(`
		--disable-compression --insecure-skip-tls-verify --match-server-version --warnings-as-errors
		--debug --kube-insecure-skip-tls-verify --verbose
	`)
)

// Flags by which a command itself says which cluster it talks to, or as whom. A context, a
// cluster or a user that the kubeconfig names is not among them: the temporary one has it, too.
var ownClusterFlags = words(`
	--kubeconfig --server --token --username --password --client-certificate --client-key
	--certificate-authority --tls-server-name --insecure-skip-tls-verify
	--kube-apiserver --kube-token --kube-ca-file --kube-tls-server-name --kube-insecure-skip-tls-verify
`)

// helmRepositoryFlags are of a chart's repository where helm is given them.
var helmRepositoryFlags = words(`--username --password --insecure-skip-tls-verify`)

// kubeconfigVerbs change the kubeconfig: kubectl's, and oc's.
var kubeconfigVerbs = words(`config login logout project new-project`)

// helmVariables are helm's flags of the same kind.
var helmVariables = words(`HELM_KUBEAPISERVER HELM_KUBETOKEN HELM_KUBECAFILE HELM_KUBETLS_SERVER_NAME HELM_KUBEINSECURE_SKIP_TLS_VERIFY`)

func words(s string) []string { return strings.Fields(s) }

// executableName is the base name of the command, without `.exe`. It is UTF-8: anything else
// would cost the whole batch of spans.
func executableName(command []string) string {
	return strings.ToValidUTF8(strings.TrimSuffix(filepath.Base(command[0]), ".exe"), "?")
}

// spanName is the executable's name and its verb, where that is one of the known
// ones and certainly the verb.
func spanName(command []string) string {
	name := executableName(command)
	if verb := verbOf(command[1:]); verb != "" {
		return name + " " + verb
	}
	return name
}

func verbOf(args []string) string {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case !strings.HasPrefix(arg, "-"):
			if slices.Contains(knownVerbs, arg) {
				return arg
			}
			return ""
		case slices.Contains(flagsWithValue, arg):
			i++
		case slices.Contains(flagsWithoutValue, arg), strings.Contains(arg, "="):
		case !strings.HasPrefix(arg, "--") && len(arg) > 2 && slices.Contains(flagsWithValue, arg[:2]): // -nprod
		default:
			return "" // the next word may be this flag's value
		}
	}
	return ""
}

// pastProxy says why the command is to run with the user's own kubeconfig, past the proxy; "" where
// it is not. With the temporary one it would fail, or change what nobody keeps.
func pastProxy(command, env []string) string {
	name := executableName(command)
	if verb := verbOf(command[1:]); isKubectl(name) && slices.Contains(kubeconfigVerbs, verb) {
		return fmt.Sprintf("%s %s works on your kubeconfig", name, verb)
	}
	if flag := ownClusterFlag(command); flag != "" {
		return fmt.Sprintf("with %s, %s chooses a cluster past the proxy; give `tracehook trace` --kubeconfig or --context before the `--` instead", flag, name)
	}
	for _, entry := range env {
		if variable, value, _ := strings.Cut(entry, "="); name == "helm" && value != "" && slices.Contains(helmVariables, variable) {
			return fmt.Sprintf("with %s, helm chooses a cluster past the proxy; give `tracehook trace` --kubeconfig or --context before the `--` instead", variable)
		}
	}
	return ""
}

func isKubectl(name string) bool { return name == "kubectl" || name == "oc" }

// ownClusterFlag is the first flag by which the command itself says which cluster
// it talks to, or as whom; "" where there is none.
func ownClusterFlag(command []string) string {
	for i, arg := range command[1:] {
		if arg == "--" {
			return "" // what follows is for a program in a container
		}
		name, value, assigned := strings.Cut(arg, "=")
		ofRepository := executableName(command) == "helm" && slices.Contains(helmRepositoryFlags, name)
		if slices.Contains(ownClusterFlags, name) && value != "false" && !ofRepository {
			return name
		}
		// -s is --server to kubectl, and to many others something else.
		if name == "-s" && !assigned && i+2 < len(command) {
			value = command[i+2]
		}
		if name == "-s" && (isKubectl(executableName(command)) || strings.HasPrefix(value, "http://") || strings.HasPrefix(value, "https://")) {
			return name
		}
	}
	return ""
}
