package check

// The cluster as one round sees it. In: clients. Out: each thing that checks look at, read once. Errors: the API server's.

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// Names that stay the same however tracehook is installed.
const (
	webhookDomain      = ".tracehook.dev"
	traceWebhook       = "trace-context" + webhookDomain
	environmentWebhook = "environment" + webhookDomain
	customWebhook      = "custom-resources" + webhookDomain
	proofWebhook       = "proof" + webhookDomain

	nameLabel    = "app.kubernetes.io/name"
	serverName   = "tracehook" // of nameLabel and, where nothing else is known, of the objects
	excludeLabel = "tracehook.dev/exclude"

	defaultServicePort = 443
)

// Options say which cluster to look at, and from where.
type Options struct {
	Config *rest.Config
	// Namespace of tracehook, where no webhook configuration names it.
	Namespace string
	// MustBeInstalled makes it a failure that tracehook is not there.
	MustBeInstalled bool
	// TryIn is the namespace of dry runs. "": one that the webhook's selector takes.
	TryIn string
	// APIServers are URLs to make dry runs at, beside the one of Config. Nil: in a Pod those of Service default/kubernetes.
	APIServers []string
	// InCluster: the addresses of Pods are within reach. One that does not answer is a failure then.
	InCluster bool
	// Store is where traces are read back from; nil: nowhere.
	Store *tracestore.Client
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Random makes trace ids. Nil: crypto/rand.
	Random io.Reader
	// SpansWithin is how long a span may take to the Collector. Zero: 20 s.
	SpansWithin time.Duration
}

// Cluster reads what checks ask for, each thing once. It is for one round.
type Cluster struct {
	Options
	clients kubernetes.Interface

	mu    sync.Mutex
	known map[string]*reading
}

// reading is one thing that was read.
type reading struct {
	once  sync.Once
	value any
	err   error
}

// New makes a Cluster for one round. An error means that the Config is no good.
func New(o Options) (*Cluster, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.SpansWithin == 0 {
		o.SpansWithin = 20 * time.Second
	}
	o.Config = rest.CopyConfig(o.Config)
	o.Config.QPS = -1
	o.Config.WarningHandler = rest.NoWarnings{} // of dry runs
	clients, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return &Cluster{Options: o, clients: clients, known: map[string]*reading{}}, nil
}

// read asks once, whoever comes first.
func read[T any](c *Cluster, key string, ask func() (T, error)) (T, error) {
	c.mu.Lock()
	r := c.known[key]
	if r == nil {
		r = &reading{}
		c.known[key] = r
	}
	c.mu.Unlock()
	r.once.Do(func() { r.value, r.err = ask() })
	value, _ := r.value.(T)
	return value, r.err
}

// Version is the API server's. An error means that it does not answer.
func (c *Cluster) Version(ctx context.Context) (*apiversion.Info, error) {
	return read(c, "version", func() (*apiversion.Info, error) {
		content, err := c.clients.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Raw()
		if err != nil {
			return nil, err
		}
		var info apiversion.Info
		if err := json.Unmarshal(content, &info); err != nil {
			return nil, fmt.Errorf("read the API server's version: %w", err)
		}
		return &info, nil
	})
}

// minor is the version without what a provider adds.
func minor(info *apiversion.Info) (*utilversion.Version, error) {
	return utilversion.ParseGeneric(strings.TrimSpace(info.GitVersion))
}

// groups are the API groups that the cluster serves.
func (c *Cluster) groups(ctx context.Context) ([]string, error) {
	return read(c, "groups", func() ([]string, error) {
		list, err := c.clients.Discovery().ServerGroups()
		if err != nil {
			return nil, err
		}
		var names []string
		for _, group := range list.Groups {
			names = append(names, group.Name)
		}
		return names, ctx.Err()
	})
}

// user is who asks.
func (c *Cluster) user(ctx context.Context) (authenticationv1.UserInfo, error) {
	return read(c, "user", func() (authenticationv1.UserInfo, error) {
		review, err := c.clients.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			return authenticationv1.UserInfo{}, err
		}
		return review.Status.UserInfo, nil
	})
}

// nodes are at most 50, which is enough to recognise a provider.
func (c *Cluster) nodes(ctx context.Context) ([]corev1.Node, error) {
	return read(c, "nodes", func() ([]corev1.Node, error) {
		list, err := c.clients.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: 50})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
}

// mostPages of namespaces are read, of 500 each: a dry run needs one.
const mostPages = 10

// namespaces are the first of them.
func (c *Cluster) namespaces(ctx context.Context) ([]corev1.Namespace, error) {
	return read(c, "namespaces", func() (all []corev1.Namespace, err error) {
		options := metav1.ListOptions{Limit: 500}
		for range mostPages {
			list, err := c.clients.CoreV1().Namespaces().List(ctx, options)
			if err != nil {
				return nil, err
			}
			all = append(all, list.Items...)
			if options.Continue = list.Continue; options.Continue == "" {
				break
			}
		}
		return all, nil
	})
}

// webhook is one of ours, with the configuration that it stands in.
type webhook struct {
	admissionv1.MutatingWebhook
	configuration string
	annotations   map[string]string // of the configuration
	labels        map[string]string
}

func (w webhook) String() string { return w.Name }

// port is the Service's.
func (w webhook) port() int32 {
	if s := w.ClientConfig.Service; s != nil && s.Port != nil && *s.Port != 0 {
		return *s.Port
	}
	return defaultServicePort
}

// webhooks are those of ours, by the names of the webhooks: configurations may be named by a Helm release. Without the right to
// list them it reads the one that is named as shipped.
func (c *Cluster) webhooks(ctx context.Context) ([]webhook, error) {
	return read(c, "webhooks", func() ([]webhook, error) {
		client := c.clients.AdmissionregistrationV1().MutatingWebhookConfigurations()
		list, err := client.List(ctx, metav1.ListOptions{})
		if apierrors.IsForbidden(err) {
			one, getErr := client.Get(ctx, serverName, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(getErr):
				return nil, nil
			case getErr != nil:
				return nil, err
			}
			list, err = &admissionv1.MutatingWebhookConfigurationList{Items: []admissionv1.MutatingWebhookConfiguration{*one}}, nil
		}
		if err != nil {
			return nil, err
		}
		return ours(list.Items), nil
	})
}

// ours picks the webhooks of tracehook, but not the one for proofs of certificates, which nobody's requests reach.
func ours(configurations []admissionv1.MutatingWebhookConfiguration) (found []webhook) {
	for _, configuration := range configurations {
		for _, w := range configuration.Webhooks {
			if strings.HasSuffix(w.Name, webhookDomain) && w.Name != proofWebhook {
				found = append(found, webhook{w, configuration.Name, configuration.Annotations, configuration.Labels})
			}
		}
	}
	return found
}

// place is where tracehook is: a webhook configuration says it best.
func (c *Cluster) place(ctx context.Context) (namespace, service string, port int32) {
	webhooks, _ := c.webhooks(ctx)
	for _, w := range webhooks {
		if s := w.ClientConfig.Service; s != nil {
			return s.Namespace, s.Name, w.port()
		}
	}
	return c.Namespace, serverName, defaultServicePort
}

func (c *Cluster) service(ctx context.Context) (*corev1.Service, error) {
	return read(c, "service", func() (*corev1.Service, error) {
		namespace, name, _ := c.place(ctx)
		return c.clients.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// selector takes tracehook's Pods.
func (c *Cluster) selector(ctx context.Context) labels.Set {
	if service, err := c.service(ctx); err == nil && len(service.Spec.Selector) > 0 {
		return service.Spec.Selector
	}
	return labels.Set{nameLabel: serverName}
}

// deployment is the one whose Pods the Service leads to. Nil and no error: there is none.
func (c *Cluster) deployment(ctx context.Context) (*appsv1.Deployment, error) {
	return read(c, "deployment", func() (*appsv1.Deployment, error) {
		namespace, _, _ := c.place(ctx)
		list, err := c.clients.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		selector := c.selector(ctx).AsSelector()
		for _, d := range list.Items {
			if selector.Matches(labels.Set(d.Spec.Template.Labels)) {
				return &d, nil
			}
		}
		return nil, nil
	})
}

// replicas are tracehook's Pods, without those that have ended or are about to.
func (c *Cluster) replicas(ctx context.Context) ([]corev1.Pod, error) {
	return read(c, "replicas", func() ([]corev1.Pod, error) {
		namespace, _, _ := c.place(ctx)
		list, err := c.clients.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: c.selector(ctx).String()})
		if err != nil {
			return nil, err
		}
		return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
			return p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		}), nil
	})
}

func (c *Cluster) policies(ctx context.Context) ([]networkingv1.NetworkPolicy, error) {
	return read(c, "policies", func() ([]networkingv1.NetworkPolicy, error) {
		namespace, _, _ := c.place(ctx)
		list, err := c.clients.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
}

// installed is whether tracehook was found.
type installed struct {
	yes  bool
	what string // what was found
	err  error  // why nothing could be looked for; nil: something was, and is not there
}

// installed looks for a webhook configuration, the Service and the Deployment: one is enough, so that what is missing is noticed.
func (c *Cluster) installed(ctx context.Context) installed {
	webhooks, err := c.webhooks(ctx)
	if len(webhooks) > 0 {
		return installed{yes: true, what: "MutatingWebhookConfiguration " + webhooks[0].configuration}
	}
	namespace, name, _ := c.place(ctx)
	if service, serviceErr := c.service(ctx); serviceErr == nil {
		return installed{yes: true, what: fmt.Sprintf("Service %s/%s", service.Namespace, service.Name)}
	} else if !apierrors.IsNotFound(serviceErr) && err == nil {
		err = serviceErr
	}
	if d, deploymentErr := c.deployment(ctx); d != nil {
		return installed{yes: true, what: fmt.Sprintf("Deployment %s/%s", d.Namespace, d.Name)}
	} else if deploymentErr != nil && err == nil {
		err = deploymentErr
	}
	return installed{what: fmt.Sprintf("no webhook named *%s, no Service %s/%s and no Deployment", webhookDomain, namespace, name), err: err}
}

// container is the one that serves.
func container(spec corev1.PodSpec) *corev1.Container {
	for i := range spec.Containers {
		if slices.Contains(spec.Containers[i].Args, "serve") {
			return &spec.Containers[i]
		}
	}
	for i := range spec.Containers {
		if spec.Containers[i].Name == serverName {
			return &spec.Containers[i]
		}
	}
	return nil
}

// flag is what a container's arguments say about a flag; "" if they do not.
func flag(container *corev1.Container, name string) (value string, given bool) {
	if container == nil {
		return "", false
	}
	for i, arg := range slices.Concat(container.Command, container.Args) {
		rest, found := strings.CutPrefix(arg, "--"+name)
		switch {
		case !found:
		case rest == "":
			value, given = "true", true
			if next := slices.Concat(container.Command, container.Args)[i+1:]; len(next) > 0 && !strings.HasPrefix(next[0], "-") {
				value = next[0]
			}
		case rest[0] == '=':
			value, given = rest[1:], true
		}
	}
	return value, given
}

// serving is the container that serves, of the Deployment or of a Pod. Nil: it is not known.
func (c *Cluster) serving(ctx context.Context) *corev1.Container {
	if d, err := c.deployment(ctx); err == nil && d != nil {
		return container(d.Spec.Template.Spec)
	}
	if pods, err := c.replicas(ctx); err == nil && len(pods) > 0 {
		return container(pods[0].Spec)
	}
	return nil
}

// portNamed is a container's port.
func portNamed(container *corev1.Container, name string) int32 {
	if container == nil {
		return 0
	}
	for _, p := range container.Ports {
		if p.Name == name {
			return p.ContainerPort
		}
	}
	return 0
}

// endpoint is an address that the Service leads to.
type endpoint struct {
	address string // host:port
	name    string // of the Pod, else the address
	ready   bool
}

// endpoints are those of the Service that webhooks name, and replicas that are not among them.
func (c *Cluster) endpoints(ctx context.Context) ([]endpoint, error) {
	return read(c, "endpoints", func() ([]endpoint, error) {
		service, err := c.service(ctx)
		if err != nil {
			return nil, err
		}
		_, _, port := c.place(ctx)
		if service.Spec.Type == corev1.ServiceTypeExternalName {
			address := net.JoinHostPort(service.Spec.ExternalName, strconv.Itoa(int(port)))
			found := []endpoint{{address, address, true}}
			pods, _ := c.replicas(ctx)
			return append(found, ofPods(pods)...), nil
		}
		list, err := c.clients.DiscoveryV1().EndpointSlices(service.Namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service.Name})
		if err != nil {
			return nil, err
		}
		return ofSlices(list.Items, *service, port), nil
	})
}

func ofPods(pods []corev1.Pod) (found []endpoint) {
	for _, pod := range pods {
		if port := portNamed(container(pod.Spec), "webhook"); port != 0 && pod.Status.PodIP != "" {
			found = append(found, endpoint{net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(int(port))), pod.Name, ready(pod)})
		}
	}
	return found
}

// ofSlices finds the port of the slices by the name that it has in the Service.
func ofSlices(list []discoveryv1.EndpointSlice, service corev1.Service, port int32) (found []endpoint) {
	name := ""
	for _, p := range service.Spec.Ports {
		if p.Port == port {
			name = p.Name
		}
	}
	for _, slice := range list {
		for _, p := range slice.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != name {
				continue
			}
			for _, e := range slice.Endpoints {
				if e.Conditions.Terminating != nil && *e.Conditions.Terminating {
					continue
				}
				for _, address := range e.Addresses {
					at := net.JoinHostPort(address, strconv.Itoa(int(*p.Port)))
					one := endpoint{at, at, e.Conditions.Ready == nil || *e.Conditions.Ready}
					if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
						one.name = e.TargetRef.Name
					}
					if !slices.Contains(found, one) {
						found = append(found, one)
					}
				}
			}
		}
	}
	return found
}

// apiServer is one at which to ask.
type apiServer struct {
	url    string
	client rest.Interface
}

// apiServers are those that are asked: in a Pod each by itself, as one may reach what another does not.
func (c *Cluster) apiServers(ctx context.Context) ([]apiServer, error) {
	return read(c, "apiServers", func() ([]apiServer, error) {
		given := []apiServer{{c.Config.Host, c.clients.Discovery().RESTClient()}}
		urls, name := c.APIServers, c.Config.ServerName
		if len(urls) == 0 && c.InCluster {
			if urls = c.discoverAPIServers(ctx); len(urls) > 0 {
				given, name = nil, "kubernetes.default.svc" // the same through the Service tells nothing more
			}
		}
		for _, url := range urls {
			config := rest.CopyConfig(c.Config)
			config.Host, config.ServerName = url, name
			clients, err := kubernetes.NewForConfig(config)
			if err != nil {
				return nil, fmt.Errorf("make client of %s: %w", url, err)
			}
			given = append(given, apiServer{url, clients.Discovery().RESTClient()})
		}
		return given, nil
	})
}

// discoverAPIServers are the endpoints of Service default/kubernetes. None: they may not be listed, or there are none.
func (c *Cluster) discoverAPIServers(ctx context.Context) (urls []string) {
	list, err := c.clients.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return nil
	}
	for _, e := range ofSlices(list.Items, corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: defaultServicePort}}}}, defaultServicePort) {
		urls = append(urls, "https://"+e.address)
	}
	slices.Sort(urls)
	return slices.Compact(urls)
}

// errNoCertificate: the server ended the handshake before it showed one.
var errNoCertificate = errors.New("it shows no certificate")

// served is the chain that an endpoint serves under a name. Nothing is sent but the handshake.
func served(ctx context.Context, address, serverName string) (chain [][]byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDial, err)
	}
	defer raw.Close()
	connection := tls.Client(raw, &tls.Config{
		ServerName:         serverName,
		InsecureSkipVerify: true, // certs.Verify judges
		VerifyPeerCertificate: func(certificates [][]byte, _ [][]*x509.Certificate) error {
			chain = certificates
			return nil
		},
	})
	if err = connection.HandshakeContext(ctx); len(chain) > 0 {
		return chain, nil // what comes afterwards is about a client's certificate
	}
	if err == nil {
		err = errNoCertificate
	}
	return nil, err
}

var errDial = errors.New("dial")

// mostPage is the longest page of a replica that is read.
const mostPage = 1 << 20

// httpGet reads a page of a replica.
func httpGet(ctx context.Context, client *http.Client, url, token string) ([]byte, int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, 0, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, mostPage+1))
	if len(body) > mostPage {
		return nil, 0, fmt.Errorf("%s is longer than %d bytes", url, mostPage)
	}
	return body, response.StatusCode, err
}

// ready says whether a Pod is.
func ready(pod corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
