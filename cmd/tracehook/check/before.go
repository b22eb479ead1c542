package check

// Checks of the cluster, and of what an installer needs. In: a Cluster. Out: verdicts. Errors: part of them.

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilversion "k8s.io/apimachinery/pkg/util/version"
)

func beforeChecks() []Check {
	return []Check{
		{
			Code:   "version",
			Title:  "Is Kubernetes new enough for the manifests as they are?",
			Remedy: "deploy/COMPATIBILITY.md says what to install on this version.",
			look: func(ctx context.Context, c *Cluster) verdict {
				info, err := c.Version(ctx)
				if err != nil {
					return unread("ask for the version", err)
				}
				v, err := minor(info)
				if err != nil {
					return skip("the version %q cannot be read", info.GitVersion)
				}
				return judgeVersion(info.GitVersion, v, c.installed(ctx).yes)
			},
		},
		{
			Code:   "provider",
			Title:  "Is it a provider's cluster where something is known to stand in the way?",
			Remedy: "docs/managed.md has the presets.",
			look: func(ctx context.Context, c *Cluster) verdict {
				s, by, v := c.situation(ctx)
				if v != nil {
					return *v
				}
				return judgeProvider(s, by)
			},
		},
		{
			Code:   "api-server-tracing",
			Title:  "Does the API server trace its own requests, as far as that can be seen?",
			Remedy: "deploy/kind/tracing has the file for --tracing-config-file.",
			look: func(ctx context.Context, c *Cluster) verdict {
				return judgeTracing(c.tracing(ctx))
			},
		},
		{
			Code:   "installed",
			Title:  "Is tracehook there?",
			Remedy: "Install it, or name its namespace with -n.",
			look: func(ctx context.Context, c *Cluster) verdict {
				return judgeInstalled(c.installed(ctx), c.MustBeInstalled)
			},
		},
		{
			Code:   "install-rights",
			Title:  "May who runs this install it?",
			Remedy: "Install as a cluster administrator, or have these rights granted. With --as the check asks for somebody else.",
			phase:  before,
			look: func(ctx context.Context, c *Cluster) verdict {
				return c.installRights(ctx)
			},
		},
	}
}

// oldest runs the manifests as they are, oldestTested something of them.
var (
	oldest       = utilversion.MajorMinor(1, 30)
	oldestTested = utilversion.MajorMinor(1, 28)
)

func judgeVersion(text string, v *utilversion.Version, installed bool) verdict {
	switch {
	case v.LessThan(oldestTested):
		return fail("Kubernetes %s: the oldest that was tested is %d.%d", text, oldestTested.Major(), oldestTested.Minor())
	case v.LessThan(oldest) && installed:
		return warn("Kubernetes %s: without ValidatingAdmissionPolicy nothing limits what an authority's token may change of the webhook configurations", text).
			do("Use overlays/cert-manager or overlays/files, or update to 1.30: deploy/COMPATIBILITY.md.")
	case v.LessThan(oldest):
		return fail("Kubernetes %s: install.yaml needs ValidatingAdmissionPolicy, stable from 1.30", text).
			do("Install overlays/cert-manager or overlays/files, or leave the policy out: deploy/COMPATIBILITY.md.")
	}
	return ok("Kubernetes %s", text)
}

// situation is what obstacles are judged by. A verdict says why it is not known.
func (c *Cluster) situation(ctx context.Context) (s situation, by string, why *verdict) {
	stop := func(v verdict) (situation, string, *verdict) { return situation{}, "", &v }
	info, err := c.Version(ctx)
	if err != nil {
		return stop(unread("ask for the version", err))
	}
	groups, err := c.groups(ctx)
	if err != nil {
		return stop(unread("list API groups", err))
	}
	nodes, nodesErr := c.nodes(ctx) // without them most are still recognised
	s.seen = seen{info.GitVersion, nodes, groups}
	s.provider, by = recognise(s.seen)
	if s.provider == providerUnknown && nodesErr != nil {
		return stop(unread("list nodes, by which providers are recognised", nodesErr))
	}
	webhooks, _ := c.webhooks(ctx)
	var pod *corev1.PodSpec
	if d, err := c.deployment(ctx); err == nil && d != nil {
		pod = &d.Spec.Template.Spec
	}
	s.setup = setupOf(webhooks, pod)
	if s.provider != providerUnknown && s.installed {
		s.called = c.called(ctx)
	}
	return s, by, nil
}

// tracing is what is known of the API server's tracing configuration.
type tracing struct {
	gateOff  bool     // the feature gate is off
	flag     *bool    // --tracing-config-file is given, by the API server's Pod; nil: no such Pod is to be seen
	trial    *trial   // of a request with a trace context; nil: there was none
	stored   bool     // spans of the API server are in the trace store
	provider provider // who decides about it
	why      []string // what could not be looked at
}

func (c *Cluster) tracing(ctx context.Context) tracing {
	t, _ := read(c, "tracing", func() (tracing, error) { return c.lookForTracing(ctx), nil })
	return t
}

func (c *Cluster) lookForTracing(ctx context.Context) (t tracing) {
	page, err := c.clients.Discovery().RESTClient().Get().AbsPath("/metrics").Stream(ctx)
	if err == nil {
		t.gateOff, err = gateOff(page)
		_ = page.Close() // which may be before its end
	}
	if err != nil {
		t.why = append(t.why, unread("read the API server's /metrics", err).message)
	}
	pods, err := c.clients.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: "component=kube-apiserver"})
	switch {
	case err != nil:
		t.why = append(t.why, unread("list the API server's Pods in kube-system", err).message)
	case len(pods.Items) > 0:
		given := false
		for _, pod := range pods.Items {
			for i := range pod.Spec.Containers {
				_, found := flag(&pod.Spec.Containers[i], "tracing-config-file")
				given = given || found
			}
		}
		t.flag = &given
	}
	if s, _, why := c.situation(ctx); why == nil {
		t.provider = s.provider
	}
	if trial := c.traced(ctx); trial.stamp.IsValid() {
		t.trial = &trial
		t.stored = c.storedSpans(ctx, trial).apiServer
	}
	return t
}

// gateOff reads kubernetes_feature_enabled (Kubernetes 1.26 and later; from 1.34 on the gate is locked on), and no further: the whole
// page may be of hundreds of megabytes.
func gateOff(metrics io.Reader) (bool, error) {
	lines := bufio.NewScanner(metrics)
	for lines.Scan() {
		if bytes.HasPrefix(lines.Bytes(), []byte(`kubernetes_feature_enabled{name="APIServerTracing"`)) {
			return bytes.HasSuffix(bytes.TrimSpace(lines.Bytes()), []byte(" 0")), nil
		}
	}
	return false, lines.Err()
}

// judgeTracing never fails: tracehook works with and without.
func judgeTracing(t tracing) verdict {
	const without = "stamps lead to the client's trace, or to one of tracehook's own (docs/managed.md)"
	switch {
	case t.stored:
		return ok("it traces: spans of it are in the trace store")
	case t.gateOff:
		return ok("it does not: the feature gate APIServerTracing is off; %s", without)
	case t.flag != nil && *t.flag:
		return ok("it is started with --tracing-config-file")
	case t.flag != nil:
		return ok("it does not: it is started without --tracing-config-file; %s", without)
	case t.trial != nil && !t.trial.continued() && t.trial.trust == "parent":
		return ok("it traces: a request's trace context was replaced by one of its own")
	case t.trial != nil && t.trial.continued() && !t.trial.privileged:
		return ok("it does not: a request's trace context reached tracehook as it was; %s", without)
	case t.provider.managed():
		return ok("%s lets nobody configure it; %s", t.provider, without)
	}
	why := "nothing shows its flags"
	if len(t.why) > 0 {
		why = strings.Join(t.why, "; ")
	}
	return skip("not to be seen: %s", why)
}

func judgeInstalled(i installed, must bool) verdict {
	switch {
	case i.yes:
		return ok("%s is there", i.what)
	case i.err != nil && must:
		return fail("nothing was found: %s", unread("look for it", i.err).message).
			do("Grant the rights of deploy/components/check.")
	case i.err != nil:
		return skip("nothing was found: %s", unread("look for it", i.err).message)
	case must:
		return fail("there is %s", i.what)
	}
	return skip("there is %s: what follows the install is not checked", i.what)
}

// right is something to be allowed.
type right struct {
	verb, group, resource, name string
	namespaced                  bool // in tracehook's namespace
}

func (r right) String() string {
	what := r.resource
	if r.group != "" {
		what += "." + r.group
	}
	if r.name != "" {
		what += "/" + r.name
	}
	return r.verb + " " + what
}

// installVerbs are those of `kubectl apply` and of Helm.
var installVerbs = []string{"get", "create", "patch"}

// installKinds are those of install.yaml.
var installKinds = []right{
	{resource: "namespaces"},
	{resource: "serviceaccounts", namespaced: true},
	{resource: "services", namespaced: true},
	{group: "apps", resource: "deployments", namespaced: true},
	{group: "policy", resource: "poddisruptionbudgets", namespaced: true},
	{group: "networking.k8s.io", resource: "networkpolicies", namespaced: true},
	{group: "rbac.authorization.k8s.io", resource: "roles", namespaced: true},
	{group: "rbac.authorization.k8s.io", resource: "rolebindings", namespaced: true},
	{group: "rbac.authorization.k8s.io", resource: "clusterroles"},
	{group: "rbac.authorization.k8s.io", resource: "clusterrolebindings"},
	{group: "admissionregistration.k8s.io", resource: "mutatingwebhookconfigurations"},
	{group: "admissionregistration.k8s.io", resource: "validatingadmissionpolicies"},
	{group: "admissionregistration.k8s.io", resource: "validatingadmissionpolicybindings"},
}

// granted are rights that the shipped roles give away: Kubernetes lets nobody grant what they have not, but for those who may
// escalate and bind.
var granted = []right{
	{verb: "get", group: "apps", resource: "deployments"}, {verb: "get", group: "apps", resource: "replicasets"},
	{verb: "get", group: "apps", resource: "statefulsets"}, {verb: "get", group: "apps", resource: "daemonsets"},
	{verb: "get", group: "batch", resource: "jobs"}, {verb: "get", group: "batch", resource: "cronjobs"},
	{verb: "get", resource: "replicationcontrollers"},
	{verb: "list", group: "discovery.k8s.io", resource: "endpointslices"}, {verb: "list", group: "coordination.k8s.io", resource: "leases"},
	{verb: "create", group: "authentication.k8s.io", resource: "tokenreviews"}, {verb: "create", group: "authorization.k8s.io", resource: "subjectaccessreviews"},
	{verb: "get", group: "admissionregistration.k8s.io", resource: "mutatingwebhookconfigurations", name: serverName},
	{verb: "patch", group: "admissionregistration.k8s.io", resource: "mutatingwebhookconfigurations", name: serverName},
	{verb: "get", resource: "secrets", name: "tracehook-ca", namespaced: true}, {verb: "update", resource: "secrets", name: "tracehook-ca", namespaced: true},
	{verb: "get", resource: "secrets", name: "tracehook-certs", namespaced: true}, {verb: "update", resource: "secrets", name: "tracehook-certs", namespaced: true},
	{verb: "create", group: "coordination.k8s.io", resource: "leases", namespaced: true},
}

// grantAnyway are the verbs that make granted unnecessary.
var grantAnyway = []right{
	{verb: "escalate", group: "rbac.authorization.k8s.io", resource: "clusterroles"}, {verb: "bind", group: "rbac.authorization.k8s.io", resource: "clusterroles"},
	{verb: "escalate", group: "rbac.authorization.k8s.io", resource: "roles", namespaced: true}, {verb: "bind", group: "rbac.authorization.k8s.io", resource: "roles", namespaced: true},
}

// installRights asks for each right by itself: the rules of a SelfSubjectRulesReview are not whole where a provider's own
// authorizer decides, too (EKS, GKE).
func (c *Cluster) installRights(ctx context.Context) verdict {
	kinds := installKinds
	if info, err := c.Version(ctx); err == nil {
		if v, err := minor(info); err == nil && v.LessThan(oldest) {
			kinds = slices.DeleteFunc(slices.Clone(kinds), func(r right) bool { return strings.HasPrefix(r.resource, "validatingadmissionpolic") })
		}
	}
	var wanted []right
	for _, kind := range kinds {
		for _, verb := range installVerbs {
			kind.verb = verb
			wanted = append(wanted, kind)
		}
	}
	missing, err := c.denied(ctx, wanted)
	if err != nil {
		return unread("ask for rights (SelfSubjectAccessReview)", err)
	}
	ungranted, err := c.denied(ctx, grantAnyway)
	if err == nil && len(ungranted) > 0 {
		ungranted, err = c.denied(ctx, granted)
	}
	if err != nil {
		return unread("ask for rights (SelfSubjectAccessReview)", err)
	}
	return judgeRights(len(wanted), missing, ungranted)
}

func judgeRights(asked int, missing, ungranted []right) verdict {
	if len(missing) > 0 {
		return fail("may not %s", few(missing))
	}
	if len(ungranted) > 0 {
		return fail("may create roles, but not grant these rights: %s", few(ungranted)).
			do("Kubernetes lets nobody grant what they do not have: install as a cluster administrator, or with `escalate` and `bind` on roles and clusterroles.")
	}
	return ok("may get, create and patch what install.yaml holds (%d rights)", asked)
}

// few names the first of many.
func few[T fmt.Stringer](all []T) string {
	const most = 4
	var names []string
	for _, one := range all {
		names = append(names, one.String())
	}
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// denied are those of the rights that the user has not.
func (c *Cluster) denied(ctx context.Context, rights []right) (denied []right, err error) {
	allowed := make([]bool, len(rights))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, r := range rights {
		group.Go(func() (err error) {
			allowed[i], err = c.may(ctx, r)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, r := range rights {
		if !allowed[i] {
			denied = append(denied, r)
		}
	}
	return denied, nil
}

func (c *Cluster) may(ctx context.Context, r right) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: r.verb, Group: r.group, Resource: r.resource, Name: r.name},
	}}
	if r.namespaced {
		review.Spec.ResourceAttributes.Namespace = c.Namespace
	}
	answer, err := c.clients.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed, nil
}
