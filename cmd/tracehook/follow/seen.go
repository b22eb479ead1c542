package follow

// Which objects a command wrote. In: the API server's answers to its requests. Out: roots.
// Errors: none; an answer that cannot be read names no object.

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// MostAnswer is how many bytes of an answer are read for the name of an object, 1 MiB: more
// than etcd holds of one.
const MostAnswer = 1 << 20

// mostRoots bounds what is followed of a command that writes thousands of objects.
const mostRoots = 100

// Root is an object that the command wrote.
type Root struct {
	Resource        string // deployments, …
	Namespace, Name string
	Config          *rest.Config // the API server and the user
}

func (r Root) kind() string {
	return map[string]string{"pods": "Pod", "deployments": "Deployment", "statefulsets": "StatefulSet", "daemonsets": "DaemonSet", "jobs": "Job"}[r.Resource]
}

// Seen collects roots. The zero value is ready, and it may be used by several goroutines.
type Seen struct {
	mu    sync.Mutex
	roots []Root
	more  int
}

// Wants says whether the answer to a request names a root, and so is to be given to Answer.
func Wants(method, path, query string, status int) bool {
	root, ok := rootAt(path)
	switch {
	case !ok, status != http.StatusOK && status != http.StatusCreated, strings.Contains(query, "dryRun=All"):
		return false
	case method == http.MethodPost:
		return root.Name == ""
	}
	return (method == http.MethodPut || method == http.MethodPatch) && root.Name != ""
}

// Answer takes the body of an answer that Wants wanted.
func (s *Seen) Answer(path string, body []byte, config *rest.Config) {
	root, _ := rootAt(path)
	if root.Name == "" { // a POST: the server may have made the name
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil) // JSON, YAML or protobuf
		if err != nil {
			return
		}
		written, err := meta.Accessor(object)
		if err != nil {
			return
		}
		root.Namespace, root.Name = written.GetNamespace(), written.GetName()
	}
	root.Config = config
	s.mu.Lock()
	defer s.mu.Unlock()
	if root.Name == "" || slices.ContainsFunc(s.roots, func(r Root) bool {
		return r.Resource == root.Resource && r.Namespace == root.Namespace && r.Name == root.Name && r.Config == root.Config
	}) {
		return
	}
	if len(s.roots) == mostRoots {
		s.more++
		return
	}
	s.roots = append(s.roots, root)
}

// Roots are those seen so far, in the order in which they were written first; more is how many
// are left out beyond the first 100.
func (s *Seen) Roots() (roots []Root, more int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.roots), s.more
}

// rootAt is the object, or with a Name of "" the kind, at a path of the API. The subresource
// scale changes the object; what is done to others (status, eviction) leaves its desired state.
func rootAt(path string) (Root, bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	resources := []string{"pods"}
	switch {
	case len(parts) > 2 && parts[0] == "api" && parts[1] == "v1":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis" && parts[1] == "apps" && parts[2] == "v1":
		parts, resources = parts[3:], []string{"deployments", "statefulsets", "daemonsets"}
	case len(parts) > 3 && parts[0] == "apis" && parts[1] == "batch" && parts[2] == "v1":
		parts, resources = parts[3:], []string{"jobs"}
	default:
		return Root{}, false
	}
	if len(parts) < 3 || parts[0] != "namespaces" || !slices.Contains(resources, parts[2]) || len(parts) > 5 || len(parts) == 5 && parts[4] != "scale" {
		return Root{}, false
	}
	root := Root{Resource: parts[2], Namespace: parts[1]}
	if len(parts) > 3 {
		root.Name = parts[3]
	}
	return root, true
}
