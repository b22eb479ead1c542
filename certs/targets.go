package certs

// Targets: what sends API servers to other servers. In: webhook configurations, CustomResourceDefinitions, APIServices. Out: each
// place that they name, with the server name and the trust that goes with it. Errors: a kind that cannot be listed or read.

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// Kinds of objects that send API servers to other servers.
const (
	KindMutating   = "MutatingWebhookConfiguration"
	KindValidating = "ValidatingWebhookConfiguration"
	KindCRD        = "CustomResourceDefinition"
	KindAPIService = "APIService"
)

// resources are those kinds for a client without types.
var resources = map[string]schema.GroupVersionResource{
	KindMutating:   {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
	KindValidating: {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"},
	KindCRD:        {Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	KindAPIService: {Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
}

// Target is a place where an object sends the API server.
type Target struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Webhook is its name within a webhook configuration.
	Webhook string `json:"webhook,omitempty"`
	// Field is the path of its caBundle within the object.
	Field string `json:"field"`
	// Service is NAMESPACE/NAME:PORT. It or URL is set.
	Service string `json:"service,omitempty"`
	URL     string `json:"url,omitempty"`
	// ServerName is what the API server verifies.
	ServerName    string `json:"serverName"`
	FailurePolicy string `json:"failurePolicy,omitempty"`
	Trust         Trust  `json:"-"`

	namespace, service string
	port               int32
	dial               string        // host:port, for a URL
	timeout            time.Duration // of a call; zero: not known
}

// String is what a person would look for.
func (t Target) String() string {
	s := t.Kind + "/" + t.Name
	if t.Webhook != "" {
		s += " " + t.Webhook
	}
	return s
}

// kinds are the lists that an audit starts with.
var kinds = []struct {
	resource string
	list     func(context.Context, AuditOptions) ([]Target, error)
}{
	{"mutatingwebhookconfigurations", listMutating},
	{"validatingwebhookconfigurations", listValidating},
	{"customresourcedefinitions", listConversions},
	{"apiservices", listAPIServices},
}

// discover lists the targets, those of one kind together, and what could not be listed.
func discover(ctx context.Context, o AuditOptions) ([]Target, []error) {
	lists, failures := make([][]Target, len(kinds)), make([]error, len(kinds))
	var group errgroup.Group
	for i, kind := range kinds {
		group.Go(func() error {
			var err error
			if lists[i], err = kind.list(ctx, o); err != nil {
				failures[i] = fmt.Errorf("list %s: %w", kind.resource, err)
			}
			return nil
		})
	}
	_ = group.Wait() // every error is in failures
	targets := slices.DeleteFunc(slices.Concat(lists...), func(t Target) bool { return o.Namespace != "" && t.namespace != o.Namespace })
	return targets, slices.DeleteFunc(failures, func(err error) bool { return err == nil })
}

func listMutating(ctx context.Context, o AuditOptions) (targets []Target, err error) {
	options := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := o.Clients.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, options)
		if err != nil {
			return nil, err
		}
		for _, object := range page.Items {
			if !ofProof(&object) {
				targets = append(targets, mutatingTargets(object)...)
			}
		}
		if options.Continue = page.Continue; options.Continue == "" {
			return targets, nil
		}
	}
}

func listValidating(ctx context.Context, o AuditOptions) (targets []Target, err error) {
	options := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := o.Clients.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, options)
		if err != nil {
			return nil, err
		}
		for _, object := range page.Items {
			if !ofProof(&object) {
				targets = append(targets, validatingTargets(object)...)
			}
		}
		if options.Continue = page.Continue; options.Continue == "" {
			return targets, nil
		}
	}
}

// ofProof: a Barrier made it, and it leads nowhere.
func ofProof(object metav1.Object) bool {
	_, is := object.GetLabels()[barrierKey]
	return is
}

func mutatingTargets(object admissionv1.MutatingWebhookConfiguration) (targets []Target) {
	for i, w := range object.Webhooks {
		targets = append(targets, webhookTarget(KindMutating, object.Name, w.Name, i, w.ClientConfig, w.FailurePolicy, w.TimeoutSeconds))
	}
	return targets
}

func validatingTargets(object admissionv1.ValidatingWebhookConfiguration) (targets []Target) {
	for i, w := range object.Webhooks {
		targets = append(targets, webhookTarget(KindValidating, object.Name, w.Name, i, w.ClientConfig, w.FailurePolicy, w.TimeoutSeconds))
	}
	return targets
}

func webhookTarget(kind, object, webhook string, index int, config admissionv1.WebhookClientConfig, policy *admissionv1.FailurePolicyType, seconds *int32) Target {
	t := Target{Kind: kind, Name: object, Webhook: webhook, Field: fmt.Sprintf("webhooks[%d].clientConfig.caBundle", index), Trust: Trust{Bundle: config.CABundle},
		timeout: time.Duration(deref(seconds)) * time.Second}
	if policy != nil {
		t.FailurePolicy = string(*policy)
	}
	if s := config.Service; s != nil {
		t.to(s.Namespace, s.Name, s.Port)
	} else if config.URL != nil {
		t.toURL(*config.URL)
	}
	return t
}

func (t *Target) to(namespace, name string, port *int32) {
	t.namespace, t.service, t.port = namespace, name, defaultPort
	if port != nil && *port != 0 {
		t.port = *port
	}
	t.Service = fmt.Sprintf("%s/%s:%d", namespace, name, t.port)
	t.ServerName = ServerName(namespace, name)
}

// toURL leaves dial empty for what cannot be dialled.
func (t *Target) toURL(text string) {
	t.URL = text
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return
	}
	port := u.Port()
	if port == "" {
		port = strconv.Itoa(defaultPort)
	}
	t.ServerName = u.Hostname()
	if ascii, err := idna.Lookup.ToASCII(t.ServerName); err == nil && !isASCII(t.ServerName) { // as Go's HTTP client has it
		t.ServerName = ascii
	}
	t.dial = net.JoinHostPort(t.ServerName, port)
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// clientConfig is what CustomResourceDefinitions and APIServices say of their servers. (Their
// types live in modules that are much to depend on for these fields.)
type clientConfig struct {
	CABundle []byte `json:"caBundle"`
	URL      string `json:"url"`
	Service  *struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
		Port      *int32 `json:"port"`
	} `json:"service"`
	InsecureSkipTLSVerify bool `json:"insecureSkipTLSVerify"`
}

func listConversions(ctx context.Context, o AuditOptions) ([]Target, error) {
	return listObjects(ctx, o.Dynamic, resources[KindCRD], conversionTargets)
}

func conversionTargets(object unstructured.Unstructured) ([]Target, error) {
	var spec struct {
		Conversion struct {
			Strategy string `json:"strategy"`
			Webhook  struct {
				ClientConfig clientConfig `json:"clientConfig"`
			} `json:"webhook"`
		} `json:"conversion"`
	}
	if err := decodeSpec(object, &spec); err != nil || spec.Conversion.Strategy != "Webhook" {
		return nil, err
	}
	config := spec.Conversion.Webhook.ClientConfig
	t := Target{Kind: KindCRD, Name: object.GetName(), Field: "spec.conversion.webhook.clientConfig.caBundle", Trust: Trust{Bundle: config.CABundle}}
	if s := config.Service; s != nil {
		t.to(s.Namespace, s.Name, s.Port)
	} else {
		t.toURL(config.URL)
	}
	return []Target{t}, nil
}

func listAPIServices(ctx context.Context, o AuditOptions) ([]Target, error) {
	return listObjects(ctx, o.Dynamic, resources[KindAPIService], apiServiceTargets)
}

func apiServiceTargets(object unstructured.Unstructured) ([]Target, error) {
	var spec clientConfig
	if err := decodeSpec(object, &spec); err != nil || spec.Service == nil { // the API server's own
		return nil, err
	}
	t := Target{Kind: KindAPIService, Name: object.GetName(), Field: "spec.caBundle",
		Trust: Trust{Bundle: spec.CABundle, APIService: true, InsecureSkipVerify: spec.InsecureSkipTLSVerify}}
	t.to(spec.Service.Namespace, spec.Service.Name, spec.Service.Port)
	return []Target{t}, nil
}

func listObjects(ctx context.Context, client dynamic.Interface, resource schema.GroupVersionResource, read func(unstructured.Unstructured) ([]Target, error)) (targets []Target, err error) {
	options := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := client.Resource(resource).List(ctx, options)
		if err != nil {
			return targets, err
		}
		for _, object := range page.Items {
			if ofProof(&object) {
				continue
			}
			found, err := read(object)
			if err != nil {
				return targets, err
			}
			targets = append(targets, found...)
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return targets, nil
		}
	}
}

func decodeSpec(object unstructured.Unstructured, into any) error {
	spec, _, err := unstructured.NestedMap(object.Object, "spec")
	if err != nil {
		return fmt.Errorf("read %s: %w", object.GetName(), err)
	}
	data, err := json.Marshal(runtime.DeepCopyJSON(spec))
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", object.GetName(), err)
	}
	return nil
}
