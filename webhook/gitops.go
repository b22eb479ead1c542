package webhook

// Which application, repository and revision an object is of: labels and annotations that GitOps tools put on it in,
// attributes of the SERVER span out. Pure; no errors: what cannot be read is left out.

import (
	"net/url"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

const (
	// The object that applied this one, and its kind: Kustomization, HelmRelease, Application.
	keyApplication     = attribute.Key("tracehook.gitops.application")
	keyApplicationKind = attribute.Key("tracehook.gitops.kind")
)

// Labels that are remembered of an object.
const (
	labelKustomization          = "kustomize.toolkit.fluxcd.io/name"
	labelKustomizationNamespace = "kustomize.toolkit.fluxcd.io/namespace"
	labelHelmRelease            = "helm.toolkit.fluxcd.io/name"
	labelHelmReleaseNamespace   = "helm.toolkit.fluxcd.io/namespace"
	labelArgoInstance           = "argocd.argoproj.io/instance"
	labelInstance               = "app.kubernetes.io/instance"
)

const (
	// argoTracking is "APPLICATION:GROUP/KIND:NAMESPACE/NAME", where APPLICATION may be "NAMESPACE_NAME".
	argoTracking = "argocd.argoproj.io/tracking-id"
	// origin is what kustomize writes with `buildMetadata: [originAnnotations]`: lines "repo: URL", "ref: REF".
	origin = "config.kubernetes.io/origin"
	// From the OCI image specification. Flux reads the second of an artifact.
	imageSource   = "org.opencontainers.image.source"
	imageRevision = "org.opencontainers.image.revision"
)

// applicationLabels are the values of the labels above as JSON; nil where there is none.
type applicationLabels struct {
	kustomization, kustomizationNamespace, helmRelease, helmReleaseNamespace, argoInstance, instance []byte
}

// label returns where the value of a label belongs; nil: nobody asks for it.
func (l *applicationLabels) label(name []byte) *[]byte {
	switch string(name) {
	case labelKustomization:
		return &l.kustomization
	case labelKustomizationNamespace:
		return &l.kustomizationNamespace
	case labelHelmRelease:
		return &l.helmRelease
	case labelHelmReleaseNamespace:
		return &l.helmReleaseNamespace
	case labelArgoInstance:
		return &l.argoInstance
	case labelInstance:
		return &l.instance
	}
	return nil
}

// appendGitOps appends what is known of the object's application, repository and revision.
func appendGitOps(attrs []attribute.KeyValue, o *Object) []attribute.KeyValue {
	text := func(key attribute.Key, value string) {
		if value != "" {
			attrs = append(attrs, key.String(clean(value, mostText)))
		}
	}
	kind, application := applicationOf(o)
	text(keyApplicationKind, kind)
	text(keyApplication, application)
	repository, name, revision := sourceOf(o)
	text(semconv.VCSRepositoryURLFullKey, repository)
	text(semconv.VCSRefHeadNameKey, name)
	text(semconv.VCSRefHeadRevisionKey, revision)
	return attrs
}

// applicationOf is who applied the object. The kind is empty where a label alone says so that Helm
// and people write, too.
func applicationOf(o *Object) (kind, application string) {
	l := &o.labels
	if name := labelValue(l.kustomization); name != "" {
		return "Kustomization", inNamespace(labelValue(l.kustomizationNamespace), name)
	}
	if name := labelValue(l.helmRelease); name != "" {
		return "HelmRelease", inNamespace(labelValue(l.helmReleaseNamespace), name)
	}
	if tracking := o.shortAnnotation(argoTracking); tracking != "" {
		if application, object, _ := strings.Cut(tracking, ":"); application != "" && object != "" {
			namespace, name, qualified := strings.Cut(application, "_")
			if qualified {
				application = inNamespace(namespace, name)
			}
			return "Application", application
		}
	}
	if name := labelValue(l.argoInstance); name != "" {
		return "Application", name
	}
	return "", labelValue(l.instance)
}

func inNamespace(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// labelValue is what a label says, "" where it is no text, or longer than a label can be.
func labelValue(quoted []byte) string {
	if len(quoted) == 0 || len(quoted) > longestText || quoted[0] != '"' {
		return ""
	}
	value, _ := unquote(quoted) // validated when the review was read
	return string(value)
}

// shortAnnotation is what an annotation says, "" where it is longer than any of those that are read here: it is not copied then.
func (o *Object) shortAnnotation(key string) string {
	for i := range o.annotations {
		if string(o.annotations[i].name) == key {
			return labelValue(o.annotations[i].value)
		}
	}
	return ""
}

// sourceOf is the repository that an object comes from, with the name and the revision of what was checked out.
func sourceOf(o *Object) (repository, name, revision string) {
	if text := o.shortAnnotation(origin); text != "" {
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(line, ":")
			value = strings.Trim(strings.TrimSpace(value), `"'`)
			switch key {
			case "repo":
				repository = repositoryURL(value)
			case "ref":
				if !strings.Contains(value, "://") { // an address, which may hold a secret
					name, revision = refOf(value)
				}
			}
		}
	}
	if text := o.shortAnnotation(imageSource); text != "" {
		repository = repositoryURL(text)
	}
	if text := o.shortAnnotation(imageRevision); text != "" && !strings.Contains(text, "://") {
		if name, revision = refOf(text); revision == "" {
			name, revision = "", text // a number of Subversion, half a hash
		}
	}
	return repository, name, revision
}

// refOf takes apart what Git and Flux call a revision: "main@sha1:HASH", "sha256:HASH", "HASH", "v1.2".
func refOf(text string) (name, revision string) {
	head, digest, both := strings.Cut(text, "@")
	if !both {
		head, digest = "", text
	}
	if algorithm, hash, ok := strings.Cut(digest, ":"); ok && (algorithm == "sha1" || algorithm == "sha256") {
		digest = hash
	}
	if isHash(digest) {
		return head, digest
	}
	return text, ""
}

// isHash says whether a text is a whole SHA-1 or SHA-256 in hexadecimal digits.
func isHash(text string) bool {
	return (len(text) == 40 || len(text) == 64) && strings.Trim(text, "0123456789abcdef") == ""
}

// repositoryURL is a repository's address as vcs.repository.url.full wants it: without ".git", and
// without what may be a secret.
func repositoryURL(text string) string {
	if len(text) > longestText {
		return ""
	}
	if !strings.Contains(text, "://") { // host/path, or user@host:path of ssh
		if head, path, ok := strings.Cut(text, "/"); ok {
			text = head[strings.LastIndexByte(head, '@')+1:] + "/" + path
		}
		if strings.ContainsAny(text, "@?#") {
			return ""
		}
		return strings.TrimSuffix(text, ".git")
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || strings.Contains(u.Path, "@") { // a proxy's path may be an address with a secret
		return ""
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = nil, "", false, "", ""
	return strings.TrimSuffix(u.String(), ".git")
}
