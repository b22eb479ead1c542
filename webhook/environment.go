package webhook

// Mutator: the trace context that a pod stores in, environment variables for its
// containers out. Errors: the pod's spec is not shaped like one.
//
// The API server refuses the user's request when a patch cannot be applied, whatever
// the failurePolicy says. So an operation is only ever made for a place that was
// read and found to be there.

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/tracehook/tracehook/webhook/cause"
)

// InjectEnvironmentKey is the annotation with which a pod asks for the variables
// ("true") or refuses them ("false"), and by convention the label of namespaces that ask for all their pods.
const InjectEnvironmentKey = "tracehook.dev/inject-env"

// The names that OpenTelemetry's environment carriers read.
const (
	traceparentVariable = "TRACEPARENT"
	tracestateVariable  = "TRACESTATE"
)

// mostContainers of a pod, init containers among them, get variables. A pod with more
// is left alone: a review of a few MiB could hold a million, and the patch would be a
// hundred times as large.
const mostContainers = 100

// Environment hands the trace context that a pod stores to the processes in it:
// every container and init container gets TRACEPARENT and, where there is one,
// TRACESTATE as environment variables, before its others, so that these can refer to them: $(TRACEPARENT).
// A container that says where its TRACEPARENT comes from is left alone.
//
// So is what `kubectl debug` adds: ephemeral containers, the pod with which it looks at a node
// (label app.kubernetes.io/managed-by: kubectl-debug), and a container in a copy of a pod. A copy is
// known by a container that has the TRACEPARENT of another pod.
//
// It works on pods that are created and ask for it, and belongs behind TraceContext in a Chain.
// It is meant for processes that do one thing and end: a server that takes its
// parent from the environment makes one trace that never ends.
type Environment struct {
	// Key of the annotation that holds the traceparent; "" means DefaultAnnotationKey.
	// A tracestate stands beside it, under the same prefix and the name "tracestate".
	Key string
	// Always takes every pod as asking that does not refuse, false only those that ask by
	// annotation. It is for a webhook with a namespaceSelector: the labels of a
	// namespace are not in a review, and looking them up would cost an API request.
	Always bool
}

// Mutate adds the variables. Neither mirror pods (they only show what a node runs
// already), nor pod templates (a changed one is a rollout), nor ephemeral containers
// (they come later, to look at the pod and not to do its job) get any.
func (e Environment) Mutate(_ context.Context, req *Request, resp *Response) error {
	if !e.Wants(req, resp) {
		return nil
	}
	variables := e.variables(resp)
	if len(variables) == 0 {
		return nil
	}
	containers, err := readContainers(req.Object.spec)
	if err != nil {
		return fmt.Errorf("read the pod's containers: %w", err)
	}
	if len(containers) > mostContainers {
		resp.Warn(fmt.Sprintf("%s: a pod of more than %d containers gets no environment", InjectEnvironmentKey, mostContainers))
		return nil
	}
	for _, c := range containers {
		if c.literal != variables[0].value && cause.Parse(c.literal, "").IsValid() {
			return nil // a copy
		}
	}
	for _, c := range containers {
		switch {
		case c.traceparent:
		case c.tracestate:
			resp.addEnvironment(environment{c.pointer, c.env, variables[:1]})
		default:
			resp.addEnvironment(environment{c.pointer, c.env, variables})
		}
	}
	return nil
}

// Wants says whether the pod asks.
func (e Environment) Wants(req *Request, resp *Response) bool {
	if req.Operation != admissionv1.Create || req.SubResource != "" || req.Object.Raw == nil ||
		req.Resource.Group != "" || req.Resource.Resource != "pods" {
		return false
	}
	if _, mirror := req.Object.Annotation(mirrorAnnotation); mirror {
		return false
	}
	wish, _ := resp.Annotation(InjectEnvironmentKey)
	return (wish == "true" || e.Always && wish != "false") && !debugsNode(req.Object.Raw)
}

// debugsNode says whether a pod has the label that `kubectl debug node/NAME` sets.
func debugsNode(pod []byte) (yes bool) {
	const name, value = "app.kubernetes.io/managed-by", `"kubectl-debug"`
	if !bytes.Contains(pod, []byte(value)) {
		return false // the usual case, not worth a reader
	}
	d := reviewDecoder{json: scanner{doc: pod}}
	inside := func(field string, read func(name []byte) error) func(name []byte) error {
		return func(name []byte) error {
			if string(name) != field || d.json.peek() != '{' {
				return d.json.skip()
			}
			return d.json.object(read)
		}
	}
	_ = d.json.object(inside("metadata", inside("labels", func(label []byte) error {
		text, err := d.json.value()
		yes = yes || string(label) == name && string(text) == value
		return err
	})))
	return yes
}

// variables are none where the pod stores no valid context, else TRACEPARENT and perhaps TRACESTATE.
func (e Environment) variables(resp *Response) []variable {
	key := e.Key
	if key == "" {
		key = DefaultAnnotationKey
	}
	var stored Cause
	stored.Traceparent, _ = resp.Annotation(key)
	stored.Tracestate, _ = resp.Annotation(cause.TracestateKey(key))
	span := stored.SpanContext()
	if !span.IsValid() {
		return nil
	}
	variables := []variable{{traceparentVariable, literal(stored.Traceparent)}}
	if span.TraceState().Len() > 0 {
		variables = append(variables, variable{tracestateVariable, literal(stored.Tracestate)})
	}
	return variables
}

// literal writes a value so that the kubelet hands it on as it is. Unescaped, a
// tracestate with $(PASSWORD) in it, which any client may send, would make the kubelet put that
// variable of the container into what the process passes on.
func literal(value string) string { return strings.ReplaceAll(value, "$", "$$") }

// addEnvironment adds variables to a container, unless an earlier mutator did.
func (r *Response) addEnvironment(e environment) {
	for _, c := range r.changes {
		if c.environment != nil && c.environment.container == e.container {
			return
		}
	}
	r.append(change{environment: &e})
}

// container is what of a container is asked for here.
type container struct {
	pointer                 string // JSON Pointer to it in the pod
	env                     bool   // it has a list `env`
	traceparent, tracestate bool   // the list has a variable of that name
	literal                 string // the value of TRACEPARENT, if it has one
}

// readContainers reads the containers and init containers in a pod's spec, nil where there is none.
// What is null is not there, in the API server's eyes too; of a null container it makes
// an empty one, which it then refuses, so it is left out.
func readContainers(spec []byte) (containers []container, err error) {
	if spec == nil {
		return nil, nil
	}
	d := reviewDecoder{json: scanner{doc: spec}}
	if d.json.peek() == 'n' {
		return nil, nil
	}
	err = d.json.object(func(name []byte) error {
		field := string(name)
		if field != "containers" && field != "initContainers" {
			return d.json.skip()
		}
		return d.array(func(i int) error {
			if d.json.peek() == 'n' {
				return d.json.skip()
			}
			c := container{pointer: "/spec/" + field + "/" + strconv.Itoa(i)}
			if err := d.container(&c); err != nil {
				return fmt.Errorf("%s[%d]: %w", field, i, err)
			}
			if len(containers) <= mostContainers { // more are too many, however many
				containers = append(containers, c)
			}
			return nil
		})
	})
	return containers, err
}

func (d *reviewDecoder) container(c *container) error {
	return d.json.object(func(name []byte) error {
		if string(name) != "env" || d.json.peek() == 'n' {
			return d.json.skip()
		}
		c.env = true
		return d.array(func(int) error {
			if d.json.peek() == 'n' {
				return d.json.skip()
			}
			var name, value []byte
			err := d.json.object(func(field []byte) (err error) {
				switch string(field) {
				case "name":
					name, err = d.stringBytes()
					return err
				case "value":
					value, err = d.json.value()
					return err
				}
				return d.json.skip()
			})
			switch string(name) {
			case traceparentVariable:
				c.traceparent = true
				if len(value) > 0 && value[0] == '"' {
					text, _ := unquote(value)
					c.literal = string(text)
				}
			case tracestateVariable:
				c.tracestate = true
			}
			return err
		})
	})
}

// array reads one array, or null as one without elements; element must read exactly one value.
func (d *reviewDecoder) array(element func(i int) error) error {
	if d.json.peek() == 'n' {
		return d.json.skip()
	}
	return d.json.array(element)
}
