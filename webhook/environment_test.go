package webhook

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.opentelemetry.io/contrib/propagators/envcar"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
)

// podReview is the review of a pod on its way in.
func podReview(object string) string {
	return reviewOf("CREATE", "", "pods", "", object)
}

func reviewOf(operation, group, resource, subResource, object string) string {
	return fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":%q,`+
		`"resource":{"group":%q,"version":"v1","resource":%q},"subResource":%q,"object":%s}}`, operation, group, resource, subResource, object)
}

// pod is a pod with this in its annotations and its spec; what is stored is part of the former.
func pod(annotations, spec string) string {
	return `{"metadata":{"annotations":{` + annotations + `}},"spec":` + spec + `}`
}

const (
	stored = `"tracehook.dev/traceparent":"` + testTraceparent + `"`
	asks   = `"tracehook.dev/inject-env":"true",` + stored
)

// environmentPatch runs the mutator alone and returns the patch that comes of it.
func environmentPatch(t testing.TB, e Environment, review string) (string, error) {
	t.Helper()
	patch, _, err := environmentAnswer(t, e, review)
	return patch, err
}

func environmentAnswer(t testing.TB, e Environment, review string) (_ string, warnings []string, _ error) {
	t.Helper()
	var decoder reviewDecoder
	var req Request
	if err := decoder.decode([]byte(review), &req); err != nil {
		t.Fatalf("%v\n%s", err, review)
	}
	resp := Response{object: &req.Object}
	if err := e.Mutate(t.Context(), &req, &resp); err != nil {
		return "", nil, err
	}
	patch, operations := appendPatch(nil, &req.Object, resp.changes)
	var list []any
	if operations > 0 {
		if err := json.Unmarshal(patch, &list); err != nil {
			t.Fatalf("not a patch: %v\n%s", err, patch)
		}
	}
	if len(list) != operations {
		t.Fatalf("%d operations, said to be %d: %s", len(list), operations, patch)
	}
	return string(patch), resp.warnings, nil
}

func TestContainersGetTheVariablesThatTheyHaveNot(t *testing.T) {
	const (
		traceparent = `{"name":"TRACEPARENT","value":"` + testTraceparent + `"}`
		tracestate  = `{"name":"TRACESTATE","value":"vendor=1"}`
		withState   = asks + `,"tracehook.dev/tracestate":"vendor=1"`
	)
	add := func(pointer, value string) string {
		return `{"op":"add","path":"` + pointer + `","value":` + value + `}`
	}
	first := add("/spec/containers/0/env", "["+traceparent+"]")
	for name, test := range map[string]struct {
		mutator Environment
		review  string
		want    string // operations
	}{
		"a container without env": {review: podReview(pod(asks, `{"containers":[{"name":"a"}]}`)), want: first},
		"a container with null":   {review: podReview(pod(asks, `{"containers":[{"env":null}]}`)), want: first},
		"a container with an empty list": {review: podReview(pod(asks, `{"containers":[{"env":[]}]}`)),
			want: add("/spec/containers/0/env/0", traceparent)},
		"a container with variables": {review: podReview(pod(asks, `{"containers":[{"env":[{"name":"A","value":"B"},{"name":"traceparent"},null]}]}`)),
			want: add("/spec/containers/0/env/0", traceparent)},
		"all containers and init containers, no ephemeral ones": {
			review: podReview(pod(asks, `{"containers":[{},{"env":[]}],"ephemeralContainers":[{}],"initContainers":[{},null,{"env":[]}]}`)),
			want: strings.Join([]string{first, add("/spec/containers/1/env/0", traceparent),
				add("/spec/initContainers/0/env", "["+traceparent+"]"), add("/spec/initContainers/2/env/0", traceparent)}, ",")},
		"TRACESTATE too where there is one": {review: podReview(pod(withState, `{"containers":[{},{"env":[]}]}`)),
			want: strings.Join([]string{add("/spec/containers/0/env", "["+traceparent+","+tracestate+"]"),
				add("/spec/containers/1/env/0", traceparent), add("/spec/containers/1/env/1", tracestate)}, ",")},
		"a TRACEPARENT of its own stays alone": {review: podReview(pod(withState,
			`{"containers":[{"env":[{"name":"TRACEPARENT","value":""}]},{"env":[{"valueFrom":{"fieldRef":{"fieldPath":"x"}},"name":"TRACEPARENT"}]}]}`))},
		"also under an escaped name": {review: podReview(pod(asks, `{"containers":[{"env":[{"name":"TRACEPAREN\u0054"}]}]}`))},
		"a TRACESTATE of its own stays": {review: podReview(pod(withState, `{"containers":[{"env":[{"name":"TRACESTATE","value":"x"}]}]}`)),
			want: add("/spec/containers/0/env/0", traceparent)},
		"no reference is made to other variables": {
			review: podReview(pod(asks+`,"tracehook.dev/tracestate":"v=$(PASSWORD)$"`, `{"containers":[{}]}`)),
			want:   add("/spec/containers/0/env", `[`+traceparent+`,{"name":"TRACESTATE","value":"v=$$(PASSWORD)$$"}]`)},
		"a tracestate that is none is left out": {review: podReview(pod(asks+`,"tracehook.dev/tracestate":"v"`, `{"containers":[{}]}`)), want: first},
		"so is an empty one":                    {review: podReview(pod(asks+`,"tracehook.dev/tracestate":""`, `{"containers":[{}]}`)), want: first},
		"and one that is too long": {
			review: podReview(pod(asks+`,"tracehook.dev/tracestate":"v=`+strings.Repeat("x", 511)+`"`, `{"containers":[{}]}`)), want: first},
		"another annotation key": {mutator: Environment{Key: "tracing.k8s.io/traceparent"}, review: podReview(pod(
			`"tracehook.dev/inject-env":"true","tracing.k8s.io/traceparent":"`+testTraceparent+`","tracing.k8s.io/tracestate":"vendor=1"`, `{"containers":[{}]}`)),
			want: add("/spec/containers/0/env", "["+traceparent+","+tracestate+"]")},
		"a key without a prefix": {mutator: Environment{Key: "traceparent"}, review: podReview(pod(
			`"tracehook.dev/inject-env":"true","traceparent":"`+testTraceparent+`","tracestate":"vendor=1"`, `{"containers":[{}]}`)),
			want: add("/spec/containers/0/env", "["+traceparent+","+tracestate+"]")},

		"a pod that does not ask":            {review: podReview(pod(stored, `{"containers":[{}]}`))},
		"a pod that asks for something else": {review: podReview(pod(`"tracehook.dev/inject-env":"True",`+stored, `{"containers":[{}]}`))},
		"a pod whose namespace asks":         {mutator: Environment{Always: true}, review: podReview(pod(stored, `{"containers":[{}]}`)), want: first},
		"a pod that asks as its namespace":   {mutator: Environment{Always: true}, review: podReview(pod(asks, `{"containers":[{}]}`)), want: first},
		"a pod that refuses what its namespace asks": {mutator: Environment{Always: true},
			review: podReview(pod(`"tracehook.dev/inject-env":"false",`+stored, `{"containers":[{}]}`))},
		"a pod that stores nothing": {mutator: Environment{Always: true}, review: podReview(`{"spec":{"containers":[{}]}}`)},
		"a pod that stores no traceparent": {review: podReview(pod(`"tracehook.dev/inject-env":"true",`+
			`"tracehook.dev/traceparent":"00-00000000000000000000000000000000-00f067aa0ba902b7-01"`, `{"containers":[{}]}`))},
		"a mirror pod": {mutator: Environment{Always: true}, review: podReview(pod(asks+`,"kubernetes.io/config.mirror":""`, `{"containers":[{}]}`))},

		"sidecars, which are init containers": {review: podReview(pod(asks, `{"initContainers":[{"restartPolicy":"Always"},{"restartPolicy":"Always","env":[]}],"containers":[]}`)),
			want: add("/spec/initContainers/0/env", "["+traceparent+"]") + "," + add("/spec/initContainers/1/env/0", traceparent)},
		"a copy made by kubectl debug: its container and all others": {mutator: Environment{Always: true}, review: podReview(pod(stored,
			`{"containers":[{"env":[{"name":"TRACEPARENT","value":"`+causeText+`"}]},{"name":"debugger-x"},{"env":[]}]}`))},
		"a pod to which a later webhook has added a container": {review: podReview(pod(asks, `{"containers":[{"env":[{"name":"TRACEPARENT","value":"`+testTraceparent+`"}]},{"name":"proxy"}]}`)),
			want: add("/spec/containers/1/env", "["+traceparent+"]")},
		"a TRACEPARENT that is none does not make a copy": {review: podReview(pod(asks, `{"containers":[{"env":[{"name":"TRACEPARENT","value":"x"}]},{"env":[{"name":"TRACEPARENT","value":null}]},{}]}`)),
			want: add("/spec/containers/2/env", "["+traceparent+"]")},
		"a pod of kubectl debug node/x": {mutator: Environment{Always: true}, review: podReview(`{"metadata":{"labels":{"app.kubernetes.io/managed-by":"kubectl-debug"},"annotations":{` + stored + `}},"spec":{"containers":[{}]}}`)},
		"a pod that only mentions it":   {mutator: Environment{Always: true}, review: podReview(`{"metadata":{"labels":{"a":"kubectl-debug","b":"c"},"annotations":{` + stored + `}},"spec":{"containers":[{}]}}`), want: first},

		"an update":             {review: reviewOf("UPDATE", "", "pods", "", pod(asks, `{"containers":[{}]}`))},
		"an ephemeral one":      {review: reviewOf("UPDATE", "", "pods", "ephemeralcontainers", pod(asks, `{"containers":[{}]}`))},
		"a subresource":         {review: reviewOf("CREATE", "", "pods", "binding", pod(asks, `{"containers":[{}]}`))},
		"pods of another group": {review: reviewOf("CREATE", "metrics.k8s.io", "pods", "", pod(asks, `{"containers":[{}]}`))},
		"a pod template": {mutator: Environment{Always: true},
			review: reviewOf("CREATE", "batch", "jobs", "", pod(asks, `{"containers":[{}],"template":`+pod(asks, `{"containers":[{}]}`)+`}`))},

		"no spec":         {review: podReview(`{"metadata":{"annotations":{` + asks + `}}}`)},
		"a null spec":     {review: podReview(pod(asks, `null`))},
		"no containers":   {review: podReview(pod(asks, `{}`))},
		"null containers": {review: podReview(pod(asks, `{"containers":null,"initContainers":[]}`))},
		"as many containers as there may be": {review: podReview(pod(asks, `{"initContainers":[{}],"containers":[`+strings.Repeat(`{},`, mostContainers-2)+`{}]}`)),
			want: add("/spec/initContainers/0/env", "["+traceparent+"]") + everyContainer(mostContainers-1, traceparent)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := environmentPatch(t, test.mutator, test.review)
			if err != nil {
				t.Fatal(err)
			}
			want := test.want
			if want != "" {
				want = "[" + want + "]"
			}
			if got != want {
				t.Errorf("patch\ngot  %s\nwant %s", got, want)
			}
		})
	}
}

func everyContainer(n int, variable string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,{"op":"add","path":"/spec/containers/%d/env","value":[%s]}`, i, variable)
	}
	return b.String()
}

func TestAPodOfTooManyContainersIsLeftAloneAndItsClientTold(t *testing.T) {
	patch, warnings, err := environmentAnswer(t, Environment{},
		podReview(pod(asks, `{"initContainers":[{}],"containers":[`+strings.Repeat(`{},`, mostContainers-1)+`{}]}`)))
	want := []string{"tracehook.dev/inject-env: a pod of more than 100 containers gets no environment"}
	if patch != "" || err != nil || !reflect.DeepEqual(warnings, want) {
		t.Errorf("got patch %q, warnings %q, error %v, want only the warning %q", patch, warnings, err, want)
	}
}

// The API server sends nothing of the kind; to patch it would be a guess, and a patch
// that cannot be applied costs the user's request.
func TestASpecThatIsNoPodsIsAnErrorThatSaysWhere(t *testing.T) {
	for spec, want := range map[string]string{
		`7`:                           "number where an object belongs",
		`{"containers":{}}`:           "{ where an array belongs",
		`{"containers":"x"}`:          "string where an array belongs",
		`{"initContainers":[{},7]}`:   "initContainers[1]: number where an object belongs",
		`{"containers":[[]]}`:         "containers[0]: [ where an object belongs",
		`{"containers":[{"env":{}}]}`: "containers[0]: { where an array belongs",
		`{"containers":[{"env":["TRACEPARENT"]}]}`:  "containers[0]: string where an object belongs",
		`{"containers":[{"env":[{"name":7}]}]}`:     "containers[0]: number where a string belongs",
		`{"containers":[{"env":[{"name":["x"]}]}]}`: "containers[0]: [ where a string belongs",
	} {
		t.Run(spec, func(t *testing.T) {
			patch, err := environmentPatch(t, Environment{}, podReview(pod(asks, spec)))
			if err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("got patch %q and error %v, want the error %q", patch, err, want)
			}
		})
	}
}

func TestTheVariablesSayWhatWasStoredInTheSameCall(t *testing.T) {
	handler, rec := newTestHandler(t, Options{Mutators: Chain{
		{Name: "trace-context", Mutator: newTraceContext(t, TraceContextOptions{})},
		{Name: "environment", Mutator: Environment{}},
	}})
	body := podReview(`{"metadata":{"annotations":{"tracehook.dev/inject-env":"true"}},"spec":{"containers":[{"name":"a"}]}}`)
	patched := applied(t, body, answerPatch(t, post(handler, []byte(body))))
	spans := rec.spans.Ended()
	server := spans[len(spans)-1].SpanContext()
	want := "00-" + testTraceID + "-" + server.SpanID().String() + "-01"
	if got := patched.Annotations[DefaultAnnotationKey]; got != want {
		t.Errorf("stored %q, want %q", got, want)
	}
	if got, want := patched.Spec.Containers[0].Env, []corev1.EnvVar{{Name: "TRACEPARENT", Value: want}}; !reflect.DeepEqual(got, want) {
		t.Errorf("environment %v, want %v", got, want)
	}
}

func TestTwoMutatorsInOneChainAddTheVariablesOnce(t *testing.T) {
	var decoder reviewDecoder
	var req Request
	if err := decoder.decode([]byte(podReview(pod(asks, `{"containers":[{}]}`))), &req); err != nil {
		t.Fatal(err)
	}
	resp := Response{object: &req.Object}
	for _, e := range []Environment{{}, {Always: true}} {
		if err := e.Mutate(t.Context(), &req, &resp); err != nil {
			t.Fatal(err)
		}
	}
	if patch, operations := appendPatch(nil, &req.Object, resp.changes); operations != 1 {
		t.Errorf("%d operations, want 1: %s", operations, patch)
	}
}

// The other end: a process started with these variables, as the kubelet expands
// them, reads the context with OpenTelemetry's own carrier.
func TestAProcessInTheContainerFindsTheContext(t *testing.T) {
	body := podReview(pod(asks+`,"tracehook.dev/tracestate":"vendor=$(HOME),other=$$2"`, `{"containers":[{"name":"a"}]}`))
	patch, err := environmentPatch(t, Environment{}, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range applied(t, body, []byte(patch)).Spec.Containers[0].Env {
		if strings.Contains(strings.ReplaceAll(v.Value, "$$", ""), "$") {
			t.Errorf("%s refers to other variables: %s", v.Name, v.Value)
		}
		t.Setenv(v.Name, strings.ReplaceAll(v.Value, "$$", "$"))
	}
	span := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), &envcar.Carrier{}))
	if got := formatTraceparent(span); got != testTraceparent {
		t.Errorf("the process reads %s, want %s", got, testTraceparent)
	}
	if got, want := span.TraceState().String(), "vendor=$(HOME),other=$$2"; got != want {
		t.Errorf("the process reads tracestate %s, want %s", got, want)
	}
}

// applied returns the review's pod after the patch.
func applied(t *testing.T, review string, patch []byte) corev1.Pod {
	t.Helper()
	var in struct {
		Request struct {
			Object jsontext.Value `json:"object"`
		} `json:"request"`
	}
	if err := json.Unmarshal([]byte(review), &in); err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := json.Unmarshal(applyPatch(t, in.Request.Object, patch), &pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

// Whatever pod there is: the patch can be applied, adds the variables to the containers that
// lack them, changes nothing else, and is not wanted a second time.
func FuzzEnvironmentChangesTheContainersEnvironmentAndNothingElse(f *testing.F) {
	for _, spec := range []string{
		`null`, `{}`, `{"containers":null}`, `{"containers":[null,{},{"env":null},{"env":[]}]}`,
		`{"containers":[{"env":[{"name":"TRACEPARENT","valueFrom":{}}]},{"env":[{"name":"TRACESTATE"},null,{}]}],"initContainers":[{"env":[{"name":"A\u0042"}]}]}`,
		`{"containers":[7]}`, `{"containers":{"a":1.50}}`, `{"containers":[{"env":[{"name":1}]}]}`, `{"x":1e400,"initContainers":[{"é":"\ud83d\ude00"}]}`,
	} {
		for _, metadata := range []string{`null`, `{"annotations":null}`, `{"annotations":{"tracehook.dev/inject-env":"false"}}`, `{"annotations":{"kubernetes.io/config.mirror":"x"}}`} {
			f.Add([]byte(`{"metadata":`+metadata+`,"spec":`+spec+`}`), true)
			f.Add([]byte(`{"spec":`+spec+`,"metadata":`+metadata+`}`), false)
		}
	}
	f.Fuzz(func(t *testing.T, object []byte, tracestate bool) {
		cause := Cause{Traceparent: testTraceparent}
		if tracestate {
			cause.Tracestate = `vendor="$(X)`
		}
		patch, err := storeAndInject(object, cause)
		if patch == nil && err == nil {
			return // no review
		}
		want := decodeTree(t, object)
		shaped := modelStore(want, cause) && modelInject(want, cause)
		if (err == nil) != shaped {
			t.Fatalf("error %v, want one: %t\n%s", err, !shaped, object)
		}
		if err != nil {
			return
		}
		patched := applyPatch(t, object, patch)
		if got := decodeTree(t, patched); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s\n%s\n%s\ngot  %v\nwant %v", object, patch, patched, got, want)
		}
		if again, err := storeAndInject(patched, cause); err != nil || string(again) != "[]" {
			t.Errorf("a second run wants %s (%v)\n%s", again, err, patched)
		}
	})
}

// storeAndInject is what both mutators together do to a pod whose cause is known: a
// patch, "[]" for none, nil for what is no object.
func storeAndInject(object []byte, cause Cause) ([]byte, error) {
	req, ok := readObject(object)
	if !ok {
		return nil, nil
	}
	resp := Response{object: &req.Object}
	resp.SetAnnotation(DefaultAnnotationKey, cause.Traceparent)
	if cause.Tracestate != "" {
		resp.SetAnnotation("tracehook.dev/tracestate", cause.Tracestate)
	}
	if err := (Environment{Always: true}).Mutate(context.Background(), &req, &resp); err != nil {
		return nil, err
	}
	patch, operations := appendPatch(nil, &req.Object, resp.changes)
	if operations == 0 {
		return []byte("[]"), nil
	}
	return patch, nil
}

// modelStore does on a decoded object what storing a cause means.
func modelStore(object map[string]any, cause Cause) bool {
	metadata, ok := child(object, "metadata")
	if !ok {
		return false
	}
	annotations, ok := child(metadata, "annotations")
	if !ok {
		return false
	}
	annotations[DefaultAnnotationKey] = cause.Traceparent
	if cause.Tracestate != "" {
		annotations["tracehook.dev/tracestate"] = cause.Tracestate
	}
	metadata["annotations"], object["metadata"] = annotations, metadata
	return true
}

// modelInject does on a decoded pod what the variables mean. It is not ok where the pod is none.
func modelInject(object map[string]any, cause Cause) bool {
	metadata, _ := child(object, "metadata")
	annotations, _ := child(metadata, "annotations")
	if _, mirror := annotations["kubernetes.io/config.mirror"]; mirror || annotations["tracehook.dev/inject-env"] == "false" {
		return true
	}
	spec, ok := child(object, "spec")
	if !ok {
		return false
	}
	var containers []map[string]any
	for _, field := range []string{"containers", "initContainers"} {
		list, ok := elements(spec[field])
		if !ok {
			return false
		}
		for _, element := range list {
			switch element := element.(type) {
			case nil:
			case map[string]any:
				containers = append(containers, element)
			default:
				return false
			}
		}
	}
	type addition struct {
		container map[string]any
		env       []any
	}
	var additions []addition
	copied := false
	for _, container := range containers {
		env, ok := elements(container["env"])
		if !ok {
			return false
		}
		has := map[string]bool{}
		for _, element := range env {
			if element == nil {
				continue
			}
			variable, ok := element.(map[string]any)
			if !ok {
				return false
			}
			switch name := variable["name"].(type) {
			case nil:
			case string:
				has[name] = true
				if literal, _ := variable["value"].(string); name == "TRACEPARENT" {
					other := Cause{Traceparent: literal}
					copied = copied || other.SpanContext().IsValid() && literal != cause.Traceparent
				}
			default:
				return false
			}
		}
		if has["TRACEPARENT"] {
			continue
		}
		ours := []any{map[string]any{"name": "TRACEPARENT", "value": cause.Traceparent}}
		if cause.Tracestate != "" && !has["TRACESTATE"] {
			ours = append(ours, map[string]any{"name": "TRACESTATE", "value": strings.ReplaceAll(cause.Tracestate, "$", "$$")})
		}
		additions = append(additions, addition{container, append(ours, env...)})
	}
	labels, _ := child(metadata, "labels")
	if len(containers) <= mostContainers && !copied && labels["app.kubernetes.io/managed-by"] != "kubectl-debug" {
		for _, a := range additions {
			a.container["env"] = a.env
		}
	}
	return true
}

// child is a member that is an object, or is to be one.
func child(object map[string]any, name string) (map[string]any, bool) {
	if object[name] == nil {
		return map[string]any{}, true
	}
	c, ok := object[name].(map[string]any)
	return c, ok
}

func elements(value any) ([]any, bool) {
	if value == nil {
		return nil, true
	}
	list, ok := value.([]any)
	return list, ok
}
