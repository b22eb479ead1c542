package check

// Whose cluster it is, and what is known to stand in the way there. In: version, nodes, API groups, what is installed. Out:
// obstacles. Pure. docs/managed.md has the sources.

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// provider is who runs the control plane.
type provider string

const (
	providerUnknown   provider = ""
	providerEKS       provider = "EKS"
	providerGKE       provider = "GKE"
	providerAutopilot provider = "GKE Autopilot"
	providerAKS       provider = "AKS"
	providerOpenShift provider = "OpenShift"
)

// seen is what a provider is recognised by.
type seen struct {
	version string // GitVersion
	nodes   []corev1.Node
	groups  []string
}

// recognise says whose cluster it is, and by what.
func recognise(s seen) (p provider, by string) {
	label := func(prefix string) bool {
		return slices.ContainsFunc(s.nodes, func(n corev1.Node) bool {
			for key := range n.Labels {
				if strings.HasPrefix(key, prefix) {
					return true
				}
			}
			return false
		})
	}
	named := func(prefix string) bool {
		return slices.ContainsFunc(s.nodes, func(n corev1.Node) bool { return strings.HasPrefix(n.Name, prefix) })
	}
	switch {
	case slices.Contains(s.groups, "config.openshift.io"):
		return providerOpenShift, "API group config.openshift.io"
	case strings.Contains(s.version, "-eks-"):
		return providerEKS, "version " + s.version
	case strings.Contains(s.version, "-gke."):
		if named("gk3-") { // nodes of an Autopilot cluster; those of a Standard one are called gke-…
			return providerAutopilot, "version " + s.version + ", nodes gk3-…"
		}
		return providerGKE, "version " + s.version
	case label("kubernetes.azure.com/"):
		return providerAKS, "labels kubernetes.azure.com/… of nodes"
	case label("eks.amazonaws.com/"):
		return providerEKS, "labels eks.amazonaws.com/… of nodes"
	}
	return providerUnknown, ""
}

// managed says whether somebody else decides about the API server's tracing configuration.
func (p provider) managed() bool { return p != providerUnknown && p != providerOpenShift }

// setup is what of an installation matters to a provider. Its zero value is that nothing is installed.
type setup struct {
	installed   bool
	port        int32 // that Pods listen on; 0: not known
	hostNetwork bool
	numericIDs  bool // a user, group or fsGroup is set by number
	everything  bool // a rule is for groups or resources `*`
	enforcerOff bool // admissions.enforcer/disabled
	called      bool // an API server called it: no network stands in the way
}

// situation is all that an obstacle is judged by.
type situation struct {
	seen
	setup
	provider provider
}

// obstacle is something that is known to stand in the way at a provider.
type obstacle struct {
	at      provider
	meets   func(situation) bool
	message string
	remedy  string
}

// obstacles are known by what their providers and users wrote. They are warnings: whether they apply a dry run says.
var obstacles = []obstacle{
	{
		at:      providerEKS,
		meets:   func(s situation) bool { return fargate(s.nodes) && s.port == 10250 },
		message: "Fargate's kubelet listens on 10250 of the Pod's own address, and the Pods listen there, too",
		remedy:  "Leave out deploy/components/port-10250, and open 9443 in the security group.",
	},
	{
		at:      providerEKS,
		meets:   func(s situation) bool { return !s.called && !s.hostNetwork && s.port != 10250 },
		message: "the control plane must reach the Pods' port 9443: a security group that opens 443 and 10250 alone stops it, and a CNI of your own (Calico, Cilium, Weave) with its own Pod network hides Pods from it",
		remedy:  "Security group: open 9443, or have the Pods listen on 10250 (deploy/components/port-10250, values-eks.yaml). CNI of your own: hostNetwork, with a port that is free on nodes.",
	},
	{
		at:      providerGKE,
		meets:   func(s situation) bool { return !s.called && !external(s.nodes) && s.port != 10250 },
		message: "the nodes have no external address, as in a private cluster: its firewall lets the control plane through to 443 and 10250 alone",
		remedy:  "Have the Pods listen on 10250 (deploy/components/port-10250, values-gke.yaml), or add a firewall rule for 9443.",
	},
	{
		at:      providerAutopilot,
		meets:   func(s situation) bool { return s.everything },
		message: "Autopilot refuses webhook rules for all groups or resources (*)",
		remedy:  "With custom-resources name groups and resources of yours (deploy/README.md, Platforms).",
	},
	{
		at:      providerAutopilot,
		meets:   func(s situation) bool { return s.hostNetwork },
		message: "Autopilot refuses hostNetwork",
		remedy:  "Switch hostNetwork off (values-gke-autopilot.yaml).",
	},
	{
		at:      providerAutopilot,
		meets:   func(s situation) bool { return !s.called && !external(s.nodes) && s.port != 10250 },
		message: "the nodes have no external address, as in a private cluster: its firewall lets the control plane through to 443 and 10250 alone",
		remedy:  "Have the Pods listen on 10250 (deploy/components/port-10250, values-gke-autopilot.yaml), or add a firewall rule for 9443.",
	},
	{
		at:      providerAKS,
		meets:   func(s situation) bool { return !s.enforcerOff },
		message: "the admissions enforcer adds to namespaceSelector as field manager admissionsenforcer: server-side apply (Helm 4, Flux, Argo CD) meets a conflict or drift",
		remedy:  `Annotate and label the MutatingWebhookConfiguration admissions.enforcer/disabled: "true" (values-aks.yaml). It leaves kube-system out by itself.`,
	},
	{
		at:      providerOpenShift,
		meets:   func(s situation) bool { return s.numericIDs },
		message: "a user, group or fsGroup is set by number: the SCC restricted-v2 refuses what is not in the namespace's range",
		remedy:  "Set none, as shipped (values-openshift.yaml).",
	},
}

func fargate(nodes []corev1.Node) bool {
	return slices.ContainsFunc(nodes, func(n corev1.Node) bool { return n.Labels["eks.amazonaws.com/compute-type"] == "fargate" })
}

// external says whether a node has an external address. Without any node nobody knows, and it is assumed.
func external(nodes []corev1.Node) bool {
	return len(nodes) == 0 || slices.ContainsFunc(nodes, func(n corev1.Node) bool {
		return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Type == corev1.NodeExternalIP })
	})
}

// judgeProvider names the obstacles that the situation meets.
func judgeProvider(s situation, by string) verdict {
	if s.provider == providerUnknown {
		return ok("none with obstacles that are known")
	}
	var messages, remedies []string
	for _, o := range obstacles {
		if o.at == s.provider && o.meets(s) {
			messages, remedies = append(messages, o.message), append(remedies, o.remedy)
		}
	}
	if len(messages) == 0 {
		return ok("%s (%s): no known obstacle is met", s.provider, by)
	}
	return warn("%s (%s): %s", s.provider, by, strings.Join(messages, "; ")).do(strings.Join(remedies, " "))
}

// setupOf reads what is installed.
func setupOf(webhooks []webhook, pod *corev1.PodSpec) setup {
	s := setup{installed: len(webhooks) > 0 || pod != nil, enforcerOff: len(webhooks) > 0}
	for _, w := range webhooks {
		if w.annotations["admissions.enforcer/disabled"] != "true" && w.labels["admissions.enforcer/disabled"] != "true" {
			s.enforcerOff = false
		}
		for _, rule := range w.Rules {
			s.everything = s.everything || slices.Contains(rule.APIGroups, "*") || slices.Contains(rule.Resources, "*")
		}
	}
	if pod == nil {
		return s
	}
	s.hostNetwork = pod.HostNetwork
	s.port = portNamed(container(*pod), "webhook")
	if c := pod.SecurityContext; c != nil {
		s.numericIDs = c.RunAsUser != nil || c.RunAsGroup != nil || c.FSGroup != nil || len(c.SupplementalGroups) > 0
	}
	for _, one := range pod.Containers {
		if c := one.SecurityContext; c != nil && (c.RunAsUser != nil || c.RunAsGroup != nil) {
			s.numericIDs = true
		}
	}
	return s
}
