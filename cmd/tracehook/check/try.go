package check

// Dry runs. In: webhooks, namespaces. Out: whether an API server called a webhook, and what it stamped. Nothing is stored: the API
// server runs admission and validation, and stops before etcd. Errors: why an API server refused.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/trace"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tracehook/tracehook/webhook/cause"
)

// sample is a kind that a dry run can make of nothing.
type sample struct {
	schema.GroupVersionResource
	kind string
	spec func(pod map[string]any) map[string]any // of the object's `spec`; nil: it has none
}

// samples in the order in which they are taken: those first that policies for Pods do not look at.
var samples = []sample{
	{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, "Deployment", workload},
	{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}, "ReplicaSet", workload},
	{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}, "DaemonSet", func(pod map[string]any) map[string]any {
		return map[string]any{"selector": map[string]any{"matchLabels": sampleLabels()}, "template": template(pod)}
	}},
	{schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}, "Job", func(pod map[string]any) map[string]any {
		pod["restartPolicy"] = "Never"
		return map[string]any{"suspend": true, "template": template(pod)}
	}},
	{schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, "ConfigMap", nil},
	{schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "Pod", func(pod map[string]any) map[string]any { return pod }},
}

const sampleName = "tracehook-check"

func sampleLabels() map[string]any { return map[string]any{nameLabel: sampleName} }

func template(pod map[string]any) map[string]any {
	return map[string]any{"metadata": map[string]any{"labels": sampleLabels()}, "spec": pod}
}

func workload(pod map[string]any) map[string]any {
	return map[string]any{"replicas": int64(0), "selector": map[string]any{"matchLabels": sampleLabels()}, "template": template(pod)}
}

// samplePod passes the pod security standard `restricted`, and Autopilot's demand for requests.
func samplePod() map[string]any {
	amounts := map[string]any{"cpu": "50m", "memory": "64Mi"}
	return map[string]any{
		"automountServiceAccountToken": false,
		"securityContext":              map[string]any{"runAsNonRoot": true, "seccompProfile": map[string]any{"type": "RuntimeDefault"}},
		"containers": []any{map[string]any{
			"name": "main", "image": "registry.k8s.io/pause:3.10",
			"resources":       map[string]any{"requests": amounts, "limits": amounts},
			"securityContext": map[string]any{"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": map[string]any{"drop": []any{"ALL"}}},
		}},
	}
}

// object is one to be created in a dry run.
func (s sample) object(annotations, more map[string]string) map[string]any {
	all := sampleLabels()
	for key, value := range more {
		all[key] = value
	}
	metadata := map[string]any{"generateName": sampleName + "-", "labels": all}
	if len(annotations) > 0 {
		metadata["annotations"] = annotations
	}
	o := map[string]any{"apiVersion": s.GroupVersion().String(), "kind": s.kind, "metadata": metadata}
	if s.spec != nil {
		o["spec"] = s.spec(samplePod())
	}
	return o
}

// sampleOf is the first that a webhook's rules take on CREATE. Rules for whatever there is (`*`) are custom-resources', which
// leaves Kubernetes' own kinds out by its conditions.
func sampleOf(w webhook) (sample, bool) {
	for _, s := range samples {
		for _, rule := range w.Rules {
			if slices.Contains(rule.Operations, admissionv1.Create) && slices.Contains(rule.APIGroups, s.Group) &&
				slices.Contains(rule.APIVersions, s.Version) && slices.Contains(rule.Resources, s.Resource) {
				return s, true
			}
		}
	}
	return sample{}, false
}

// dryRun creates an object with dryRun=All, and returns what would have been stored.
func dryRun(ctx context.Context, server apiServer, s sample, namespace string, object map[string]any, traceparent string) (*unstructured.Unstructured, error) {
	text, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	prefix := "/apis/" + s.Group + "/" + s.Version
	if s.Group == "" {
		prefix = "/api/" + s.Version
	}
	request := server.client.Post().AbsPath(prefix, "namespaces", namespace, s.Resource).
		Param("dryRun", metav1.DryRunAll).Param("fieldManager", sampleName).
		SetHeader("Content-Type", "application/json").SetHeader("Accept", "application/json").Body(text)
	if traceparent != "" {
		request = request.SetHeader("traceparent", traceparent)
	}
	result := request.Do(ctx)
	if err := result.Error(); err != nil { // which has the API server's words, as Raw's error has not
		return nil, err
	}
	body, err := result.Raw()
	if err != nil {
		return nil, err
	}
	var created unstructured.Unstructured
	if err := json.Unmarshal(body, &created.Object); err != nil {
		return nil, fmt.Errorf("read what the dry run made: %w", err)
	}
	return &created, nil
}

// most namespaces that a dry run is tried in, should one refuse it.
const mostTried = 3

// candidates are namespaces whose objects a webhook is called for, the best first. err says why none is known.
func (c *Cluster) candidates(ctx context.Context, w webhook) (names []string, err error) {
	if c.TryIn != "" {
		return []string{c.TryIn}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(w.NamespaceSelector)
	if w.NamespaceSelector == nil {
		selector, err = labels.Everything(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read namespaceSelector of %s: %w", w.Name, err)
	}
	namespaces, err := c.namespaces(ctx)
	if apierrors.IsForbidden(err) {
		return []string{metav1.NamespaceDefault}, nil // whether it is selected is not known
	}
	if err != nil {
		return nil, err
	}
	return selected(namespaces, selector), nil
}

// selected are the namespaces that a selector takes: `default` first, those that belong to somebody's control plane never.
func selected(namespaces []corev1.Namespace, selector labels.Selector) (names []string) {
	for _, n := range namespaces {
		if n.DeletionTimestamp == nil && !strings.HasPrefix(n.Name, "kube-") && selector.Matches(labels.Set(n.Labels)) {
			names = append(names, n.Name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == metav1.NamespaceDefault:
			return -1
		case b == metav1.NamespaceDefault:
			return 1
		}
		return strings.Compare(a, b)
	})
	return names
}

// outcome is what a dry run shows about a webhook.
type outcome int

const (
	stamped     outcome = iota
	unsampled           // it was called, and stores no context as the request is not traced
	notCalled           // the object comes back as it was sent
	refused             // by somebody else
	callFailed          // the API server says that it failed, and its failurePolicy is Fail
	forbidden           // who runs the check may not create such an object
	noNamespace         // its selector takes none
	noSample            // its rules take nothing that a dry run can make
	broken              // something else
)

// tried is a dry run, or why there was none.
type tried struct {
	webhook, server string
	outcome         outcome
	where           string // "a Deployment in namespace default"
	labelled        bool   // only objects with labels that objectSelector wants
	err             error
}

// tries are those of all webhooks at all API servers.
func (c *Cluster) tries(ctx context.Context) ([]tried, error) {
	return read(c, "tries", func() (all []tried, err error) {
		webhooks, err := c.webhooks(ctx)
		if err != nil {
			return nil, err
		}
		servers, err := c.apiServers(ctx)
		if err != nil {
			return nil, err
		}
		for _, w := range webhooks {
			for _, server := range servers {
				all = append(all, c.try(ctx, w, server))
			}
		}
		return all, nil
	})
}

// called says whether an API server reached the main webhook.
func (c *Cluster) called(ctx context.Context) bool {
	tries, _ := c.tries(ctx)
	return slices.ContainsFunc(tries, func(t tried) bool { return t.outcome == stamped || t.outcome == unsampled })
}

func (c *Cluster) try(ctx context.Context, w webhook, server apiServer) (t tried) {
	t = tried{webhook: w.Name, server: server.url}
	s, found := sampleOf(w)
	if !found {
		t.outcome = noSample
		return t
	}
	names, err := c.candidates(ctx, w)
	switch {
	case err != nil:
		t.outcome, t.err = broken, err
		return t
	case len(names) == 0:
		t.outcome = noNamespace
		return t
	}
	more, err := wantedLabels(w.ObjectSelector)
	if err != nil {
		t.outcome, t.err = broken, err
		return t
	}
	t.labelled = len(more) > 0
	for _, namespace := range names[:min(len(names), mostTried)] {
		t.where = fmt.Sprintf("a %s in namespace %s", s.kind, namespace)
		t.outcome, t.err = c.tryIn(ctx, w, server, s, namespace, more)
		if t.outcome != refused && t.outcome != forbidden {
			break
		}
	}
	return t
}

// tryIn creates an object that has a trace context already: tracehook keeps that whether or not the request is traced, and writes
// caused-at beside it, or the container's environment.
func (c *Cluster) tryIn(ctx context.Context, w webhook, server apiServer, s sample, namespace string, more map[string]string) (outcome, error) {
	key := c.annotationKey(ctx)
	sc, text, err := c.newContext()
	if err != nil {
		return broken, err
	}
	if w.Name != environmentWebhook { // does it stamp by itself?
		created, err := dryRun(ctx, server, s, namespace, s.object(nil, more), text)
		if err != nil {
			return sortError(err), err
		}
		if parse(created.GetAnnotations()[key]).IsValid() {
			return stamped, nil
		}
	}
	created, err := dryRun(ctx, server, s, namespace, s.object(map[string]string{key: text}, more), "")
	switch {
	case err != nil:
		return sortError(err), err
	case w.Name == environmentWebhook:
		if inEnvironment(created, sc) {
			return stamped, nil
		}
		return notCalled, nil
	case created.GetAnnotations()[cause.CausedAtKey(key)] != "":
		return unsampled, nil
	}
	return notCalled, nil
}

// annotationKey is what serve was told.
func (c *Cluster) annotationKey(ctx context.Context) string {
	if key, given := flag(c.serving(ctx), "annotation-key"); given {
		return key
	}
	return cause.DefaultKey
}

// newContext makes a sampled trace context up.
func (c *Cluster) newContext() (trace.SpanContext, string, error) {
	var traceID trace.TraceID
	var spanID trace.SpanID
	for _, id := range [][]byte{traceID[:], spanID[:]} {
		if _, err := io.ReadFull(c.Random, id); err != nil {
			return trace.SpanContext{}, "", fmt.Errorf("make a trace id: %w", err)
		}
	}
	sc := trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanID, TraceFlags: trace.FlagsSampled})
	return sc, fmt.Sprintf("00-%s-%s-01", traceID, spanID), nil
}

func parse(traceparent string) trace.SpanContext { return cause.Parse(traceparent, "") }

// inEnvironment says whether every container has the context.
func inEnvironment(pod *unstructured.Unstructured, want trace.SpanContext) bool {
	containers, _, _ := unstructured.NestedSlice(pod.Object, "spec", "containers")
	for _, one := range containers {
		fields, _ := one.(map[string]any)
		variables, _, _ := unstructured.NestedSlice(fields, "env")
		if !slices.ContainsFunc(variables, func(v any) bool {
			variable, _ := v.(map[string]any)
			value, _ := variable["value"].(string)
			return variable["name"] == "TRACEPARENT" && parse(value).TraceID() == want.TraceID()
		}) {
			return false
		}
	}
	return len(containers) > 0
}

// sortError says whose error it is.
func sortError(err error) outcome {
	var status apierrors.APIStatus
	text := err.Error()
	switch {
	case strings.Contains(text, "failed calling webhook") && strings.Contains(text, webhookDomain):
		return callFailed
	case apierrors.IsForbidden(err) && strings.Contains(text, "cannot create resource"): // RBAC's words; admission has others
		return forbidden
	case errors.As(err, &status):
		return refused
	}
	return broken
}

// wantedLabels are labels that an objectSelector takes.
func wantedLabels(selector *metav1.LabelSelector) (map[string]string, error) {
	if selector == nil || len(selector.MatchLabels)+len(selector.MatchExpressions) == 0 {
		return nil, nil
	}
	takes, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, fmt.Errorf("read objectSelector: %w", err)
	}
	if takes.Matches(labels.Set{nameLabel: sampleName}) {
		return nil, nil
	}
	wanted := map[string]string{}
	for key, value := range selector.MatchLabels {
		wanted[key] = value
	}
	for _, e := range selector.MatchExpressions {
		switch {
		case e.Operator == metav1.LabelSelectorOpIn && len(e.Values) > 0:
			wanted[e.Key] = e.Values[0]
		case e.Operator == metav1.LabelSelectorOpExists:
			wanted[e.Key] = "true"
		}
	}
	return wanted, nil
}

// trial is a dry run that carries a trace context in its header, as a traced client's request does.
type trial struct {
	sent       trace.SpanContext
	stamp      trace.SpanContext // what the object would have been stamped with; invalid: nothing
	privileged bool              // of a group whose contexts an API server that traces continues, from Kubernetes 1.33 on
	trust      string            // serve's --trust; "" where it is not known
}

// continued says whether the stamp is in the client's trace.
func (t trial) continued() bool { return t.stamp.TraceID() == t.sent.TraceID() }

// traced makes such a dry run for the main webhook. Where it cannot be made there is no stamp.
func (c *Cluster) traced(ctx context.Context) trial {
	t, _ := read(c, "traced", func() (trial, error) { return c.newTrial(ctx), nil })
	return t
}

func (c *Cluster) newTrial(ctx context.Context) (t trial) {
	webhooks, _ := c.webhooks(ctx)
	servers, _ := c.apiServers(ctx)
	at := slices.IndexFunc(webhooks, func(w webhook) bool { return w.Name == traceWebhook })
	if at < 0 || len(servers) == 0 {
		return t
	}
	s, found := sampleOf(webhooks[at])
	names, _ := c.candidates(ctx, webhooks[at])
	more, _ := wantedLabels(webhooks[at].ObjectSelector)
	sent, text, err := c.newContext()
	if !found || err != nil {
		return t
	}
	t.sent, t.trust = sent, "parent"
	if serving := c.serving(ctx); serving == nil {
		t.trust = ""
	} else if trust, given := flag(serving, "trust"); given {
		t.trust = trust
	}
	if user, err := c.user(ctx); err == nil {
		t.privileged = slices.Contains(user.Groups, "system:masters") || slices.Contains(user.Groups, "system:monitoring")
	} else {
		t.privileged = true // it may be
	}
	key := c.annotationKey(ctx)
	for _, namespace := range names[:min(len(names), mostTried)] {
		if created, err := dryRun(ctx, servers[0], s, namespace, s.object(nil, more), text); err == nil {
			t.stamp = parse(created.GetAnnotations()[key])
			break
		}
	}
	return t
}
