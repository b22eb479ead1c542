package follow

// The loop. In: roots. Out: lines, whenever they are looked at, and how it ended. Errors: the
// API server's, where it answers no more; one answer that fails is tried again.

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Limits of one look.
const (
	mostPods   = 100 // below one root
	mostEvents = 50  // of one Pod
	askedPods  = 10  // whose Events are read
	patience   = 5   // looks that fail in a row
)

// Options of Until.
type Options struct {
	// Every is the time between two looks. 0: a second.
	Every time.Duration
	// Look gets the lines, each time. Nil: nobody.
	Look func([]Line)
}

// ErrFailed says that something that was followed has failed.
var ErrFailed = errors.New("it has failed")

// Until looks at the roots until each is ready, has failed or is gone. Its error wraps ErrFailed
// when one has failed, and the context's error when that ended first; the two name the object
// and the reason. Else it is nil. lines are the last that were seen.
func Until(ctx context.Context, roots []Root, o Options) (lines []Line, err error) {
	if o.Every == 0 {
		o.Every = time.Second
	}
	clients := map[*rest.Config]kubernetes.Interface{}
	for _, root := range roots {
		if clients[root.Config] != nil {
			continue
		}
		config := rest.CopyConfig(root.Config)
		config.QPS, config.Burst = 20, 40
		config.ContentType = "application/json"
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, fmt.Errorf("make a client: %w", err)
		}
		clients[root.Config] = client
	}
	was := make([]bool, len(roots)) // ready at some time
	ticker := time.NewTicker(o.Every)
	defer ticker.Stop()
	for failures := 0; ; {
		var now []Line
		var lookErr error
		for i, root := range roots {
			found, err := look(ctx, clients[root.Config], root)
			if len(found) > 0 {
				if was[i] && found[0].State == Gone {
					found[0].State, found[0].Text = Ready, "was ready, and is gone"
				}
				was[i] = was[i] || found[0].State == Ready
			}
			now = append(now, found...)
			if err != nil {
				lookErr = fmt.Errorf("look at %s %s: %w", root.kind(), root.Name, err)
			}
		}
		switch {
		case lookErr == nil:
			lines, failures = now, 0
			if o.Look != nil {
				o.Look(lines)
			}
			if over(lines) {
				return lines, failed(lines)
			}
		case ctx.Err() == nil:
			if failures++; failures == patience || apierrors.IsForbidden(lookErr) || apierrors.IsUnauthorized(lookErr) {
				return lines, lookErr
			}
		}
		select {
		case <-ctx.Done():
			return lines, fmt.Errorf("%s: %w", unready(lines), context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// over says that no root is waiting.
func over(lines []Line) bool {
	for _, l := range lines {
		if l.Depth == 0 && l.State == Waiting {
			return false
		}
	}
	return true
}

func failed(lines []Line) error {
	for i, l := range lines {
		if l.Depth == 0 && l.State == Failed {
			return fmt.Errorf("%s: %w", withReason(lines, i), ErrFailed)
		}
	}
	return nil
}

// unready names the first root that is waiting, and what one of its Pods says.
func unready(lines []Line) string {
	for i, l := range lines {
		if l.Depth == 0 && l.State == Waiting {
			return withReason(lines, i) + " is not ready"
		}
	}
	return "nothing has been seen yet"
}

// withReason is a root with its own reason and that of the first of its Pods that has one.
func withReason(lines []Line, i int) string {
	said := lines[i].Object
	if lines[i].Reason != "" {
		said += " (" + lines[i].Reason + ")"
	}
	for _, below := range lines[i+1:] {
		if below.Depth == 0 {
			break
		}
		if below.Reason != "" {
			return fmt.Sprintf("%s, because of %s (%s)", said, below.Object, below.Reason)
		}
	}
	return said
}

// look is a root and its Pods.
func look(ctx context.Context, client kubernetes.Interface, root Root) ([]Line, error) {
	var line Line
	var selector *metav1.LabelSelector
	var owner string
	get := metav1.GetOptions{}
	var err error
	switch root.Resource {
	case "pods":
		var pod *corev1.Pod
		if pod, err = client.CoreV1().Pods(root.Namespace).Get(ctx, root.Name, get); err == nil {
			line, err = podWithEvents(ctx, client, pod)
		}
	case "deployments":
		d, getErr := client.AppsV1().Deployments(root.Namespace).Get(ctx, root.Name, get)
		if err = getErr; err == nil {
			line, selector = deploymentLine(d), d.Spec.Selector
			sets, listErr := client.AppsV1().ReplicaSets(root.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(selector)})
			if listErr != nil {
				return nil, listErr
			}
			owner = newest(d, sets.Items)
		}
	case "statefulsets":
		s, getErr := client.AppsV1().StatefulSets(root.Namespace).Get(ctx, root.Name, get)
		if err = getErr; err == nil {
			line, selector, owner = statefulSetLine(s), s.Spec.Selector, string(s.UID)
		}
	case "daemonsets":
		s, getErr := client.AppsV1().DaemonSets(root.Namespace).Get(ctx, root.Name, get)
		if err = getErr; err == nil {
			line, selector, owner = daemonSetLine(s), s.Spec.Selector, string(s.UID)
		}
	case "jobs":
		j, getErr := client.BatchV1().Jobs(root.Namespace).Get(ctx, root.Name, get)
		if err = getErr; err == nil {
			line, selector, owner = jobLine(j), j.Spec.Selector, string(j.UID)
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		return []Line{{Namespace: root.Namespace, Object: root.kind() + " " + root.Name, State: Gone, Text: "gone"}}, nil
	case err != nil:
		return nil, err
	case selector == nil:
		return []Line{line}, nil
	}
	pods, err := client.CoreV1().Pods(root.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(selector), Limit: 5 * mostPods})
	if err != nil {
		return nil, err
	}
	lines, asked := []Line{line}, 0
	for i := range pods.Items {
		pod := &pods.Items[i]
		controller := metav1.GetControllerOf(pod)
		if controller == nil || string(controller.UID) != owner || pod.DeletionTimestamp != nil || len(lines) > mostPods {
			continue
		}
		below := podLine(pod, nil)
		if below.State != Ready && asked < askedPods {
			asked++
			if below, err = podWithEvents(ctx, client, pod); err != nil {
				return nil, err
			}
		}
		below.Depth = 1
		lines = append(lines, below)
	}
	return lines, nil
}

// podWithEvents reads a Pod's Events too, where they may be read: without, a pull has no duration.
func podWithEvents(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) (Line, error) {
	list, err := client.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("involvedObject.uid", string(pod.UID)).String(), Limit: mostEvents,
	})
	if apierrors.IsForbidden(err) {
		return podLine(pod, nil), nil
	}
	if err != nil {
		return Line{}, err
	}
	events := make([]*corev1.Event, len(list.Items))
	for i := range list.Items {
		events[i] = &list.Items[i]
	}
	return podLine(pod, events), nil
}
