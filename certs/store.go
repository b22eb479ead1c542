package certs

// The Secrets, read, written and watched. In: a client. Out: Secrets; what they hold is secrets.go's. Errors: the API
// server's; a conflict if somebody else wrote first.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
)

// fieldManager writes the Secrets.
const fieldManager = "tracehook-certs"

// store reads and writes the two Secrets.
type store struct {
	clients     kubernetes.Interface
	namespace   string
	ca, serving string
}

// secrets are the two as they were read; nil is one that does not exist.
type secrets struct{ ca, serving *corev1.Secret }

func (st store) read(ctx context.Context) (secrets, error) {
	var found secrets
	var err error
	if found.ca, err = st.get(ctx, st.ca); err != nil {
		return secrets{}, err
	}
	found.serving, err = st.get(ctx, st.serving)
	return found, err
}

func (st store) get(ctx context.Context, name string) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := st.clients.CoreV1().Secrets(st.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s: %w", name, err)
	}
	return secret, nil
}

// write changes a Secret as it was read, and makes it if it did not exist. It returns what is stored then. If somebody else
// wrote in between, nothing is written and apierrors.IsConflict says so.
//
// A Secret is made empty, by server-side apply: that is the one way of creating whose right can be limited to a
// name; and as it says nothing about contents, it takes nothing away from a Secret that somebody else has
// made meanwhile. The contents follow by an update of exactly the version that was seen.
func (st store) write(ctx context.Context, name string, secret *corev1.Secret, change func(*corev1.Secret) error) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client := st.clients.CoreV1().Secrets(st.namespace)
	if secret == nil {
		made, err := client.Apply(ctx, coreapply.Secret(name, st.namespace), metav1.ApplyOptions{FieldManager: fieldManager})
		if err != nil {
			return nil, fmt.Errorf("create Secret %s: %w", name, err)
		}
		if len(made.Data) > 0 || len(made.Annotations) > 0 {
			return nil, apierrors.NewConflict(corev1.Resource("secrets"), name, errors.New("somebody else has made it meanwhile"))
		}
		secret = made
	}
	changed := secret.DeepCopy()
	if err := change(changed); err != nil {
		return nil, fmt.Errorf("encode Secret %s: %w", name, err)
	}
	if sameContents(changed, secret) {
		return secret, nil
	}
	written, err := client.Update(ctx, changed, metav1.UpdateOptions{FieldManager: fieldManager})
	if err != nil {
		return nil, fmt.Errorf("write Secret %s: %w", name, err)
	}
	return written, nil
}

// RequestRotation asks whoever leads, by an annotation on the serving Secret. A request that waits there already and that nobody
// has begun is not lost: this one takes it in. Errors are the API server's; apierrors.IsNotFound: nobody has made the Secret yet.
func RequestRotation(ctx context.Context, clients kubernetes.Interface, namespace, servingSecret string, r RotationRequest) error {
	if r.Time.IsZero() {
		return errors.New("request rotation: the time is missing")
	}
	client := clients.CoreV1().Secrets(namespace)
	const attempts = 20
	for attempt := 1; ; attempt++ {
		secret, err := client.Get(ctx, servingSecret, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("request rotation: %w", err)
		}
		asked := r
		if earlier, err := parseRequest(secret.Annotations[requestAnnotation]); err == nil && !statusOf(secret).Begun(earlier) {
			asked = r.joined(earlier)
		}
		patch, err := requestPatch(secret, asked)
		if err != nil {
			return fmt.Errorf("request rotation: %w", err)
		}
		_, err = client.Patch(ctx, servingSecret, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
		switch {
		case apierrors.IsConflict(err) && attempt < attempts: // another request, or the leader's status
		case err != nil:
			return fmt.Errorf("request rotation: %w", err)
		default:
			return nil
		}
	}
}

// requestPatch fails at the API server if somebody wrote the Secret since.
func requestPatch(secret *corev1.Secret, r RotationRequest) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": secret.ResourceVersion, "annotations": map[string]string{requestAnnotation: string(text)}}})
}

// WatchStatus calls visit with each new Status until visit returns false (then it returns nil) or ctx ends. The first is
// that which is stored. Errors are ctx's and the API server's.
func WatchStatus(ctx context.Context, clients kubernetes.Interface, namespace, servingSecret string, visit func(Status) bool) error {
	client := clients.CoreV1().Secrets(namespace)
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, servingSecret).String()
	var last Status
	more := func(secret *corev1.Secret) bool {
		status := statusOf(secret)
		if status.Time.IsZero() || sameStatus(status, last) {
			return true
		}
		last = status
		return visit(status)
	}
	for p := new(pace); ; { // an API server ends a watch every few minutes
		list, err := client.List(ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil {
			return fmt.Errorf("watch status: %w", err)
		}
		for i := range list.Items {
			if !more(&list.Items[i]) {
				return nil
			}
		}
		changes, err := p.watch(ctx, func() (watch.Interface, error) {
			return client.Watch(ctx, metav1.ListOptions{FieldSelector: selector, ResourceVersion: list.ResourceVersion})
		})
		if err != nil {
			return fmt.Errorf("watch status: %w", err)
		}
		for change := range changes.ResultChan() {
			secret, ok := change.Object.(*corev1.Secret)
			if ok && change.Type != watch.Deleted && !more(secret) {
				changes.Stop()
				return nil
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("watch status: %w", context.Cause(ctx))
		}
	}
}
