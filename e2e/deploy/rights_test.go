package deploy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// as returns what a ServiceAccount of our namespace can be with.
func as(t *testing.T, account string) (kubeconfig string, clients *kubernetes.Clientset) {
	t.Helper()
	kubeconfig, err := shared.User("system:serviceaccount:"+namespace+":"+account, "system:serviceaccounts", "system:serviceaccounts:"+namespace, "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfig, clientsOf(t, kubeconfig)
}

func clientsOf(t *testing.T, kubeconfig string) *kubernetes.Clientset {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return kubernetes.NewForConfigOrDie(config)
}

// may asks the API server. A right is "VERBS RESOURCE[.GROUP][/NAME] [NAMESPACE]", or "VERBS /PATH".
func may(ctx context.Context, clients *kubernetes.Clientset, right string) (denied, allowed []string, err error) {
	fields := strings.Fields(right)
	for verb := range strings.SplitSeq(fields[0], ",") {
		review := &authorizationv1.SelfSubjectAccessReview{}
		if strings.HasPrefix(fields[1], "/") {
			review.Spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: fields[1], Verb: verb}
		} else {
			resource, name, _ := strings.Cut(fields[1], "/")
			resource, group, _ := strings.Cut(resource, ".")
			review.Spec.ResourceAttributes = &authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Name: name}
			if len(fields) > 2 {
				review.Spec.ResourceAttributes.Namespace = fields[2]
			}
		}
		answer, err := clients.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return nil, nil, err
		}
		if answer.Status.Allowed {
			allowed = append(allowed, verb)
		} else {
			denied = append(denied, verb)
		}
	}
	return denied, allowed, nil
}

// What each ServiceAccount needs, and what none of them, or not this one, may do.
var (
	lineage = []string{
		"get deployments.apps default", "get replicasets.apps default", "get statefulsets.apps default", "get daemonsets.apps default",
		"get jobs.batch default", "get cronjobs.batch default", "get replicationcontrollers default",
	}
	// What lifecycle tells of.
	objects = []string{
		"list,watch pods default", "list,watch persistentvolumeclaims default", "list,watch services default", "list,watch endpointslices.discovery.k8s.io default", "list,watch events default", "list,watch deployments.apps default", "list,watch statefulsets.apps default", "list,watch daemonsets.apps default",
		"list,watch jobs.batch default",
	}
	readiness  = []string{"get,list,watch mutatingwebhookconfigurations.admissionregistration.k8s.io/tracehook"}
	theSecrets = []string{
		"get,list,watch,create,update,patch secrets/tracehook-ca tracehook-system",
		"get,list,watch,create,update,patch secrets/tracehook-certs tracehook-system",
	}
	leases     = "create leases.coordination.k8s.io tracehook-system"
	apiServers = []string{"list endpointslices.discovery.k8s.io default", "list leases.coordination.k8s.io kube-system"}
	reviews    = []string{"create tokenreviews.authentication.k8s.io", "create subjectaccessreviews.authorization.k8s.io"} // who reads /metrics?
	bundles    = []string{
		"patch mutatingwebhookconfigurations.admissionregistration.k8s.io/tracehook",
		"get,list,watch,patch mutatingwebhookconfigurations.admissionregistration.k8s.io/tracehook-proof",
	}
	authority = slices.Concat(theSecrets, readiness, bundles, apiServers, []string{
		leases,
		"get,update leases.coordination.k8s.io/tracehook-certs tracehook-system",
		"get services/tracehook tracehook-system",
		"list endpointslices.discovery.k8s.io tracehook-system",
	})
	// Nobody's.
	never = []string{
		"get,list,watch,create,update,patch,delete secrets tracehook-system",
		"get,list,watch,create,update,patch,delete,deletecollection secrets default",
		"get,list,watch,create,update,patch,delete secrets kube-system",
		"create,update,delete,deletecollection mutatingwebhookconfigurations.admissionregistration.k8s.io",
		"update,delete mutatingwebhookconfigurations.admissionregistration.k8s.io/tracehook",
		"get,patch mutatingwebhookconfigurations.admissionregistration.k8s.io/somebody-elses",
		"create,update,patch,delete validatingwebhookconfigurations.admissionregistration.k8s.io",
		"create,update,patch,delete,deletecollection validatingadmissionpolicies.admissionregistration.k8s.io",
		"create,update,patch,delete,deletecollection validatingadmissionpolicybindings.admissionregistration.k8s.io",
		"create,update,patch,delete mutatingadmissionpolicies.admissionregistration.k8s.io", "create,update,patch,delete mutatingadmissionpolicybindings.admissionregistration.k8s.io",
		"create,update,patch,delete customresourcedefinitions.apiextensions.k8s.io",
		"create,update,patch,delete apiservices.apiregistration.k8s.io",
		"get,list,watch,create,update,patch,delete pods default", "create pods tracehook-system", "create pods/exec tracehook-system",
		"create,update,patch,delete deployments.apps default", "create,update,patch,delete deployments.apps tracehook-system",
		"list,watch deployments.apps default",
		"get,update,patch,delete configmaps default",
		"delete secrets/tracehook-ca tracehook-system", "get secrets/tracehook-ca default",
		"list,watch,create,update,patch,delete services tracehook-system", "create,update,patch,delete endpointslices.discovery.k8s.io tracehook-system",
		"update,patch,delete leases.coordination.k8s.io tracehook-system", "get,update,patch,delete leases.coordination.k8s.io kube-system",
		"create,update,patch,delete leases.coordination.k8s.io kube-node-lease",
		"create serviceaccounts/token tracehook-system",
		"create,update,patch,delete,bind,escalate clusterroles.rbac.authorization.k8s.io", "create,update,patch,delete clusterrolebindings.rbac.authorization.k8s.io",
		"create,update,patch,delete rolebindings.rbac.authorization.k8s.io tracehook-system",
		"impersonate users", "impersonate groups", "impersonate serviceaccounts tracehook-system",
		"create,approve certificatesigningrequests.certificates.k8s.io", "get,list nodes", "get /logs/",
	}
)

func TestEachServiceAccountHasTheRightsThatItNeedsAndNoOthers(t *testing.T) {
	type account struct {
		name         string
		needs, lacks []string
	}
	for _, test := range []struct {
		components []string
		accounts   []account
	}{
		{[]string{"certs-managed", "audit"}, []account{
			{"tracehook", slices.Concat(lineage, authority, reviews), []string{"get /metrics"}},
			{"tracehook-audit", []string{
				"list mutatingwebhookconfigurations.admissionregistration.k8s.io", "list validatingwebhookconfigurations.admissionregistration.k8s.io",
				"list customresourcedefinitions.apiextensions.k8s.io", "list apiservices.apiregistration.k8s.io",
				"get services default", "list endpointslices.discovery.k8s.io default", "get /metrics",
			}, slices.Concat(lineage, theSecrets, bundles[:1], reviews, []string{leases})},
			{"default", nil, slices.Concat(lineage, authority, reviews)},
		}},
		{[]string{"certs-managed", "monitoring"}, []account{
			{"tracehook", slices.Concat(lineage, authority, reviews), []string{"get /metrics", "get secrets/tracehook-metrics-reader tracehook-system"}},
			{"tracehook-metrics-reader", []string{"get /metrics"}, slices.Concat(lineage, authority, reviews)},
		}},
		{[]string{"certs-managed", "lifecycle"}, []account{
			{"tracehook-lifecycle", slices.Concat(objects, reviews, []string{"list,watch services tracehook-system", leases, "get,update leases.coordination.k8s.io/tracehook-lifecycle tracehook-system"}),
				slices.Concat(lineage, readiness, theSecrets, bundles, apiServers, []string{"get /metrics", "get,update leases.coordination.k8s.io/tracehook-certs tracehook-system", "patch,delete leases.coordination.k8s.io/tracehook-lifecycle tracehook-system"})},
			{"tracehook", slices.Concat(lineage, authority, reviews), objects},
		}},
		{[]string{"certs-managed", "check"}, []account{
			{"tracehook-check", []string{ // creates as a dry run alone: e2e/check
				"list mutatingwebhookconfigurations.admissionregistration.k8s.io", "list namespaces", "list nodes", "list endpointslices.discovery.k8s.io default", "get /metrics",
				"create pods default", "create pods tracehook-system", "create deployments.apps default", "create deployments.apps tracehook-system",
				"create pods/exec tracehook-system", // which stands for a Pod of that name here
				"list pods tracehook-system", "get services tracehook-system", "list deployments.apps tracehook-system", "list networkpolicies.networking.k8s.io tracehook-system",
				"get leases.coordination.k8s.io/tracehook-certs tracehook-system",
			}, slices.Concat(lineage, theSecrets, bundles[:1], reviews, []string{leases, "list leases.coordination.k8s.io kube-system"})},
			{"tracehook", slices.Concat(lineage, authority, reviews), nil},
		}},
		{[]string{"certs-authority"}, []account{
			{"tracehook", slices.Concat(lineage, readiness, reviews, []string{"get,list,watch secrets/tracehook-certs tracehook-system"}),
				slices.Concat(bundles, apiServers, []string{leases, "create,update,patch,delete secrets/tracehook-certs tracehook-system", theSecrets[0]})},
			{"tracehook-authority", slices.Concat(authority, reviews), slices.Concat(lineage, []string{"get /metrics"})},
		}},
		{[]string{"certs-cert-manager"}, []account{ // which has the rights of certs-files and of base
			{"tracehook", slices.Concat(lineage, readiness, reviews),
				slices.Concat(theSecrets, bundles, apiServers, []string{leases, "get,list,create,update,patch,delete certificates.cert-manager.io tracehook-system"})},
		}},
	} {
		t.Run(strings.Join(test.components, " "), func(t *testing.T) {
			install(t, kustomization(t, "base", test.components...))
			for _, a := range test.accounts {
				_, clients := as(t, a.name)
				// An API server acts on a change of RBAC a moment after it is stored.
				eventually(t, 10*time.Second, func(ctx context.Context) error {
					for _, right := range a.needs {
						denied, _, err := may(ctx, clients, right)
						if err == nil && len(denied) > 0 {
							err = fmt.Errorf("%s may not %s of %q", a.name, denied, right)
						}
						if err != nil {
							return err
						}
					}
					return nil
				})
				for _, right := range slices.Concat(never, a.lacks) {
					_, allowed, err := may(t.Context(), clients, right)
					allowed = slices.DeleteFunc(allowed, func(verb string) bool { return needed(a.needs, verb, right) })
					if err != nil || len(allowed) > 0 {
						t.Errorf("%s may %s of %q (%v)", a.name, allowed, right, err)
					}
				}
			}
		})
	}
}

// needed says whether a verb of a right is among the needs.
func needed(needs []string, verb, right string) bool {
	_, of, _ := strings.Cut(right, " ")
	return slices.ContainsFunc(needs, func(need string) bool {
		verbs, needs, _ := strings.Cut(need, " ")
		return needs == of && slices.Contains(strings.Split(verbs, ","), verb)
	})
}

// Prometheus finds its token where the ServiceMonitor says, and the token is good for nothing else.
func TestTheTokenForMetricsReadsMetricsAndNothingElse(t *testing.T) {
	install(t, kustomization(t, "base", "certs-managed", "monitoring"))
	secret := mustKubectl(t, "-n", namespace, "get", "servicemonitor/tracehook", "-o", "jsonpath={.spec.endpoints[0].authorization.credentials.name}")
	key := mustKubectl(t, "-n", namespace, "get", "servicemonitor/tracehook", "-o", "jsonpath={.spec.endpoints[0].authorization.credentials.key}")
	config := rest.AnonymousClientConfig(shared.RESTConfig)
	config.QPS = -1
	eventually(t, 10*time.Second, func(ctx context.Context) error { // until the real controller has put it in
		found, err := shared.clients.CoreV1().Secrets(namespace).Get(ctx, secret, metav1.GetOptions{})
		if err == nil && len(found.Data[key]) == 0 {
			err = fmt.Errorf("Secret %s has no %q yet", secret, key)
		}
		if err == nil {
			config.BearerToken = string(found.Data[key])
		}
		return err
	})
	clients := kubernetes.NewForConfigOrDie(config)
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		return clients.RESTClient().Get().AbsPath("/metrics").Do(ctx).Error()
	})
	for _, right := range slices.Concat(never, lineage, authority) {
		if _, allowed, err := may(t.Context(), clients, right); err != nil || len(allowed) > 0 {
			t.Errorf("it may %s of %q (%v)", allowed, right, err)
		}
	}
}

// Not what the API server says of rights, but what it does.
func TestTheServingHalfCannotGetAtTheCAsKey(t *testing.T) {
	install(t, kustomization(t, "base", "certs-authority"))
	secret := func(name string) string {
		return "apiVersion: v1\nkind: Secret\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nstringData: {key: secret}\n"
	}
	authorityConfig, _ := as(t, "tracehook-authority")
	serving, _ := as(t, "tracehook")
	for _, name := range []string{"tracehook-ca", "tracehook-certs"} { // made by server-side apply, which carries the name
		out, err := kubectlAs(t, authorityConfig, secret(name), "apply", "--server-side", "--validate=false", "-f", "-")
		if err != nil {
			t.Fatalf("the authority makes Secret %s: %s", name, out)
		}
		t.Cleanup(func() { mustKubectl(t, "-n", namespace, "delete", "secret", name) })
	}
	if out, err := kubectlAs(t, authorityConfig, secret("another"), "apply", "--server-side", "--validate=false", "-f", "-"); err == nil || !strings.Contains(out, "forbidden") {
		t.Errorf("the authority makes another Secret: %s", out)
	}
	if out, err := kubectlAs(t, serving, "", "-n", namespace, "get", "secret", "tracehook-certs"); err != nil {
		t.Errorf("the serving half reads its certificate: %s", out)
	}
	for _, args := range [][]string{
		{"get", "secret", "tracehook-ca"},
		{"get", "secrets"},
		{"get", "secrets", "--field-selector=metadata.name=tracehook-ca"},
		{"delete", "secret", "tracehook-ca"},
		{"patch", "secret", "tracehook-certs", "-p", `{"stringData":{"key":"other"}}`},
		{"create", "token", "tracehook-authority"},
		// A pod that mounts it would read it for us.
		{"run", "thief", "--image=app:1"},
		{"annotate", "--overwrite", "deployment/tracehook-authority", "a=b"},
	} {
		if out, err := kubectlAs(t, serving, "", append([]string{"-n", namespace}, args...)...); err == nil || !strings.Contains(out, "orbidden") {
			t.Errorf("kubectl %s: %s", strings.Join(args, " "), out)
		}
	}
}
