package chart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// presets are the files for one kind of cluster each, and own-cni on top of EKS'.
func presets(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(chart, "values-*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, file := range files {
		args := []string{"--values", file}
		if filepath.Base(file) == "values-own-cni.yaml" {
			args = append([]string{"--values", filepath.Join(chart, "values-eks.yaml")}, args...)
		}
		found[strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "values-"), ".yaml")] = args
	}
	for _, name := range []string{"eks", "gke", "gke-autopilot", "aks", "openshift", "own-cni"} {
		if found[name] == nil {
			t.Errorf("there is no preset %s", name)
		}
	}
	return found
}

func TestLintFindsNothingInTheChartItsModesAndItsPresets(t *testing.T) {
	cases := presets(t)
	cases["as shipped"] = nil
	for mode := range modes {
		cases[mode] = []string{"--set", "certs.mode=" + mode}
	}
	var all string
	for _, addOn := range addOns {
		all += addOn.values + "\n"
	}
	cases["everything"] = []string{"--values", values(t, all)}
	for name, args := range cases {
		for _, version := range versions {
			out, err := run(story.Within(t, time.Minute), version, append([]string{"lint", "--strict", chart}, args...)...)
			if err != nil || !strings.Contains(out, "1 chart(s) linted, 0 chart(s) failed") {
				t.Errorf("%s, %s: %v\n%s", name, version, err, out)
			}
		}
	}
}

// What is wrong is refused before anything reaches the cluster, with the value's name. Helm tells of all at once.
func TestTheSchemaRefusesTyposAndWrongTypes(t *testing.T) {
	type wrong struct{ values, complaint string }
	var batches [][]wrong // in each, a value once
	for _, w := range []wrong{
		{"replica: 3", `additional properties 'replica' not allowed`},
		{"image: {repo: x}", `'/image'.*additional properties 'repo' not allowed`},
		{"image: {repository: 'x/tracehook:v1'}", `/image/repository`},
		{"image: {digest: abc}", `/image/digest`},
		{"image: {pullPolicy: Sometimes}", `/image/pullPolicy'.*'Always', 'IfNotPresent', 'Never'`},
		{"imagePullSecrets: [my-registry]", `/imagePullSecrets/0'.*want object`},
		{"replicas: two", `/replicas'.*want integer`},
		{"resources: {limit: {memory: 1Gi}}", `'/resources'.*additional properties 'limit' not allowed`},
		{"port: 99999", `/port`},
		{"nodeSelector: {disk: 1}", `/nodeSelector/disk'.*want string`},
		{"tolerations: {key: x}", `/tolerations'.*want array`},
		{"extraEnv: {A: b}", `/extraEnv'.*want array`},
		{"extraEnv: [{name: A, vlaue: b}]", `/extraEnv/0'.*additional properties 'vlaue' not allowed`},
		{"extraArgs: [stamp=always]", `/extraArgs/0`},
		{"hostNetwork: 'yes'", `/hostNetwork'.*want boolean`},
		{"failurePolicy: ignore", `/failurePolicy'.*'Ignore', 'Fail'`},
		{"timeoutSeconds: 31", `/timeoutSeconds`},
		{"timeoutSeconds: 1s", `/timeoutSeconds'.*want integer`},
		{"namespaceSelector: {matchLabel: {a: b}}", `'/namespaceSelector'.*additional properties 'matchLabel' not allowed`},
		{"excludeNamespaces: kube-public", `/excludeNamespaces'.*want array`},
		{"excludeNamespaces: [Kube_Public]", `/excludeNamespaces/0`},
		{"clusterName: 'a,b=c'", `/clusterName`},
		{"otlp: {endpoint: 'collector:4317'}", `/otlp/endpoint`},
		{"otlp: {protocol: http}", `/otlp/protocol'.*'grpc', 'http/protobuf'`},
		{"certs: {mode: certmanager}", `/certs/mode'.*'split', 'managed', 'cert-manager', 'files'`},
		{"certs: {leafLifetime: 7d}", `/certs/leafLifetime`},
		{"certs: {certManager: {issuerRef: {kind: Issuer}}}", `/certs/certManager/issuerRef`},
		{"mtls: {enabled: true, mode: strict}", `/mtls/mode'.*'observe', 'enforce'`},
		{`mtls: {clientName: "a\n- --certs=files"}`, `/mtls/clientName`},
		{"lineageRules: [{apiGroups: [a], resources: [b], verbs: [list]}]", `/lineageRules/0/verbs/0`},
		{"lifecycle: true", `/lifecycle'.*want object`},
		{"lifecycle: {enable: true}", `'/lifecycle'.*additional properties 'enable' not allowed`},
		{"serviceMonitor: {interval: 30}", `/serviceMonitor/interval'.*want string`},
		{"dashboards: {labels: {grafana_dashboard: 1}}", `/dashboards/labels/grafana_dashboard'.*want string`},
		{"annotationKey: 'a b'", `/annotationKey`},
		{"trust: child", `/trust'.*'parent', 'link', 'none'`},
	} {
		key, _, _ := strings.Cut(w.values, ":")
		free := slices.IndexFunc(batches, func(batch []wrong) bool {
			return !slices.ContainsFunc(batch, func(other wrong) bool { return strings.HasPrefix(other.values, key+":") })
		})
		if free < 0 {
			free, batches = len(batches), append(batches, nil)
		}
		batches[free] = append(batches[free], w)
	}
	for _, batch := range batches {
		var text string
		for _, w := range batch {
			text += w.values + "\n"
		}
		file := values(t, text)
		for _, version := range versions {
			_, err := run(story.Within(t, time.Minute), version, "template", "tracehook", chart, "--values", file)
			if err == nil {
				t.Errorf("%s takes\n%s", version, text)
				continue
			}
			for _, w := range batch {
				if !regexp.MustCompile(w.complaint).MatchString(err.Error()) {
					t.Errorf("%s, %s: %v, want %s", w.values, version, err, w.complaint)
				}
			}
		}
	}
}

// values.yaml and its schema are about the same things, so that each value that is documented is also checked.
func TestTheSchemaKnowsEachValueAndNoOther(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chart, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	shipped := readYAML(t, filepath.Join(chart, "values.yaml"))
	// What a component may say otherwise than the top, and Helm's own.
	silent := []string{"global", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName", "podLabels", "podAnnotations", "extraEnv", "resources"}
	var compare func(path string, schema, values map[string]any)
	compare = func(path string, schema, values map[string]any) {
		properties, closed := schema["properties"].(map[string]any)
		if !closed {
			return // labels and the like
		}
		if schema["additionalProperties"] != false {
			t.Errorf("%s: anything is allowed", path)
		}
		for key, value := range values {
			property, known := properties[key].(map[string]any)
			if !known {
				t.Errorf("%s.%s is not in the schema", path, key)
			} else if value, ok := value.(map[string]any); ok {
				compare(path+"."+key, property, value)
			}
		}
		for key := range properties {
			if _, shipped := values[key]; !shipped && !slices.Contains(silent, key) && len(values) > 0 && path != ".resources" && !strings.HasSuffix(path, ".resources") {
				t.Errorf("%s.%s is not in values.yaml", path, key)
			}
		}
	}
	compare("", schema, shipped)
}

// What each value does: a path into an object, and what is there then.
func TestEachValueReachesItsObject(t *testing.T) {
	const (
		serve     = "Deployment/tracehook"
		authority = "Deployment/tracehook-authority"
		lifecycle = "Deployment/tracehook-lifecycle"
		webhook   = "MutatingWebhookConfiguration/tracehook"
		container = ".spec.template.spec.containers.0"
	)
	digest := "sha256:" + strings.Repeat("ab", 32)
	for _, c := range []struct {
		values string
		want   map[string]string // object and path to JSON; "": nothing is there
	}{
		{"image: {repository: example.com:5000/tracehook, tag: v9, pullPolicy: Always}", map[string]string{
			serve + container + ".image": `"example.com:5000/tracehook:v9"`, authority + container + ".image": `"example.com:5000/tracehook:v9"`,
			serve + container + ".imagePullPolicy": `"Always"`,
		}},
		{"image: {tag: v9, digest: '" + digest + "'}", map[string]string{serve + container + ".image": `"ghcr.io/tracehook/tracehook@` + digest + `"`}},
		{"imagePullSecrets: [{name: mine}]", map[string]string{
			serve + ".spec.template.spec.imagePullSecrets": `[{"name":"mine"}]`, authority + ".spec.template.spec.imagePullSecrets": `[{"name":"mine"}]`,
		}},
		{"replicas: 5\nauthority: {replicas: 3}", map[string]string{serve + ".spec.replicas": "5", authority + ".spec.replicas": "3"}},
		{"resources: {limits: {memory: 1Gi}}", map[string]string{
			serve + container + ".resources":      `{"limits":{"memory":"1Gi"},"requests":{"cpu":"50m","memory":"64Mi"}}`,
			serve + container + ".env.GOMEMLIMIT": `{"name":"GOMEMLIMIT","value":"819MiB"}`, authority + container + ".env.GOMEMLIMIT": `{"name":"GOMEMLIMIT","value":"115MiB"}`,
		}},
		{"resources: {limits: null}", map[string]string{serve + container + ".env.GOMEMLIMIT": ""}},
		{"nodeSelector: {pool: system}\ntolerations: [{operator: Exists}]\npriorityClassName: high\nauthority: {nodeSelector: {pool: quiet}, tolerations: [], priorityClassName: ''}", map[string]string{
			serve + ".spec.template.spec.nodeSelector": `{"kubernetes.io/os":"linux","pool":"system"}`, authority + ".spec.template.spec.nodeSelector": `{"pool":"quiet"}`,
			serve + ".spec.template.spec.tolerations": `[{"operator":"Exists"}]`, authority + ".spec.template.spec.tolerations": "",
			serve + ".spec.template.spec.priorityClassName": `"high"`, authority + ".spec.template.spec.priorityClassName": "",
		}},
		{"affinity: {nodeAffinity: {}}\ntopologySpreadConstraints: [{topologyKey: rack}]", map[string]string{
			serve + ".spec.template.spec.affinity": `{"nodeAffinity":{}}`, authority + ".spec.template.spec.affinity": "",
			serve + ".spec.template.spec.topologySpreadConstraints": `[{"topologyKey":"rack"}]`,
		}},
		{"podLabels: {team: a}\npodAnnotations: {b: c}\ncommonLabels: {d: e}", map[string]string{
			serve + ".spec.template.metadata.labels.team": `"a"`, serve + ".spec.template.metadata.labels.d": `"e"`, serve + ".metadata.labels.d": `"e"`, serve + ".metadata.labels.team": "",
			serve + ".spec.template.metadata.annotations":     `{"b":"c","kubectl.kubernetes.io/default-container":"tracehook"}`,
			serve + ".spec.selector.matchLabels":              `{"app.kubernetes.io/name":"tracehook"}`,
			"ClusterRole/tracehook-lineage.metadata.labels.d": `"e"`,
		}},
		// Of a name that is there already, one is left: the API server refuses two in server-side apply.
		{"extraEnv: [{name: OTEL_SERVICE_NAME, value: mine}, {name: TOKEN, valueFrom: {secretKeyRef: {name: s, key: k}}}]", map[string]string{
			serve + container + ".env.OTEL_SERVICE_NAME": `{"name":"OTEL_SERVICE_NAME","value":"mine"}`,
			serve + container + ".env.TOKEN":             `{"name":"TOKEN","valueFrom":{"secretKeyRef":{"key":"k","name":"s"}}}`,
			authority + container + ".env.TOKEN":         `{"name":"TOKEN","valueFrom":{"secretKeyRef":{"key":"k","name":"s"}}}`,
		}},
		{"extraArgs: [--max-connections=9]\nlog: {level: debug, format: text}\ncerts: {leafLifetime: 12h, clusterDomain: example.internal}", map[string]string{
			serve + container + ".args":     `["serve","--shutdown-delay=10s","--metrics-secure","--metrics-auth","--certs=secret","--log-level=debug","--log-format=text","--max-connections=9"]`,
			authority + container + ".args": `["certs","authority","--metrics-secure","--metrics-auth","--leaf-lifetime=12h","--cluster-domain=example.internal","--log-level=debug","--log-format=text"]`,
		}},
		{"certs: {mode: managed, caLifetime: 720h, rotationSoak: 3m}", map[string]string{
			serve + container + ".args": `["serve","--shutdown-delay=10s","--metrics-secure","--metrics-auth","--certs=managed","--ca-lifetime=720h","--rotation-soak=3m"]`,
		}},
		{"stamp: always\nlineage: 'off'\ntrust: link\nmaxSampledRate: 2.5\nlifecycle: {enabled: true, extraArgs: [--max-age=2h]}", map[string]string{
			serve + container + ".args":            `["serve","--shutdown-delay=10s","--metrics-secure","--metrics-auth","--certs=secret","--trust=link","--stamp=always","--lineage=off","--max-sampled-rate=2.5"]`,
			lifecycle + container + ".args":        `["lifecycle","--metrics-secure","--metrics-auth","--trust=link","--max-age=2h"]`,
			"ClusterRole/tracehook-lineage":        "",
			"ClusterRoleBinding/tracehook-lineage": "",
		}},
		{"lineageRules: [{apiGroups: [example.org], resources: [gadgets], verbs: [get]}]", map[string]string{
			"ClusterRole/tracehook-lineage.rules.3": `{"apiGroups":["example.org"],"resources":["gadgets"],"verbs":["get"]}`,
		}},
		{"port: 8443\nmetricsPort: 9090\nhealthPort: 9091", map[string]string{
			serve + container + ".ports":                     `[{"containerPort":8443,"name":"webhook","protocol":"TCP"},{"containerPort":9091,"name":"health","protocol":"TCP"},{"containerPort":9090,"name":"metrics","protocol":"TCP"}]`,
			serve + container + ".args":                      `["serve","--shutdown-delay=10s","--metrics-secure","--metrics-auth","--certs=secret","--webhook-bind-address=:8443","--metrics-bind-address=:9090","--health-probe-bind-address=:9091"]`,
			serve + container + ".startupProbe.exec.command": `["tracehook","probe","--health-probe-bind-address=:9091"]`,
		}},
		{"hostNetwork: true", map[string]string{
			serve + ".spec.template.spec.hostNetwork": "true", serve + ".spec.template.spec.dnsPolicy": `"ClusterFirstWithHostNet"`,
			serve + container + ".ports.0": `{"containerPort":9443,"hostPort":9443,"name":"webhook","protocol":"TCP"}`,
			// A Pod more than nodes whose ports are free would never start.
			serve + ".spec.strategy.rollingUpdate":        `{"maxSurge":0,"maxUnavailable":1}`,
			authority + ".spec.template.spec.hostNetwork": "",
			// The authority shakes hands with Pods that no selector finds.
			"NetworkPolicy/tracehook-authority.spec.egress.2": `{"ports":[{"port":9443,"protocol":"TCP"}]}`,
		}},
		{"failurePolicy: Fail\ntimeoutSeconds: 2\nwebhookAnnotations: {a: b}\nenvInjection: {enabled: true}", map[string]string{
			webhook + ".webhooks.0.failurePolicy": `"Fail"`, webhook + ".webhooks.1.failurePolicy": `"Fail"`,
			webhook + ".webhooks.0.timeoutSeconds": "2", webhook + ".webhooks.1.timeoutSeconds": "2",
			webhook + ".webhooks.1.name": `"environment.tracehook.dev"`, webhook + ".metadata.annotations": `{"a":"b"}`,
			"MutatingWebhookConfiguration/tracehook-proof.metadata.annotations":      `{"a":"b"}`,
			"MutatingWebhookConfiguration/tracehook-proof.webhooks.0.timeoutSeconds": "5",
		}},
		{"excludeNamespaces: [istio-system]\nnamespaceSelector: {matchLabels: {tracehook.dev/enabled: 'true'}, matchExpressions: [{key: a, operator: Exists}]}", map[string]string{
			webhook + ".webhooks.0.namespaceSelector": `{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"NotIn","values":["kube-system","kube-node-lease","` + namespace + `","istio-system"]},` +
				`{"key":"tracehook.dev/exclude","operator":"NotIn","values":["true"]},{"key":"a","operator":"Exists"}],"matchLabels":{"tracehook.dev/enabled":"true"}}`,
		}},
		{"extraRules: [{operations: [CREATE], apiGroups: [a.b], apiVersions: [v1], resources: [c]}]\ncustomResources: {enabled: true, apiGroups: [x.y], resources: [z]}", map[string]string{
			webhook + ".webhooks.0.rules.3":           `{"apiGroups":["a.b"],"apiVersions":["v1"],"operations":["CREATE"],"resources":["c"]}`,
			webhook + ".webhooks.1.rules.0.apiGroups": `["x.y"]`, webhook + ".webhooks.1.rules.0.resources": `["z"]`,
		}},
		{"clusterName: prod-1\notlp: {endpoint: 'https://otel.example.com:443/v1', protocol: http/protobuf}", map[string]string{
			serve + container + ".env.OTEL_EXPORTER_OTLP_ENDPOINT":     `{"name":"OTEL_EXPORTER_OTLP_ENDPOINT","value":"https://otel.example.com:443/v1"}`,
			authority + container + ".env.OTEL_EXPORTER_OTLP_PROTOCOL": `{"name":"OTEL_EXPORTER_OTLP_PROTOCOL","value":"http/protobuf"}`,
		}},
		{"otlp: {endpoint: 'http://collector.observability:55680'}", map[string]string{
			"NetworkPolicy/tracehook.spec.egress.2":           `{"ports":[{"port":4317,"protocol":"TCP"},{"port":4318,"protocol":"TCP"},{"port":55680,"protocol":"TCP"}]}`,
			"NetworkPolicy/tracehook-authority.spec.egress.3": `{"ports":[{"port":4317,"protocol":"TCP"},{"port":4318,"protocol":"TCP"},{"port":55680,"protocol":"TCP"}]}`,
		}},
		{"networkPolicy: {webhookFrom: [{ipBlock: {cidr: 10.0.0.0/28}}], apiServerPorts: [8443], extraEgress: [{ports: [{port: 1}]}]}", map[string]string{
			"NetworkPolicy/tracehook.spec.ingress.0.from":     `[{"ipBlock":{"cidr":"10.0.0.0/28"}}]`,
			"NetworkPolicy/tracehook.spec.ingress.1.from":     `[{"namespaceSelector":{}}]`,
			"NetworkPolicy/tracehook.spec.egress.1":           `{"ports":[{"port":8443,"protocol":"TCP"}]}`,
			"NetworkPolicy/tracehook.spec.egress.3":           `{"ports":[{"port":1}]}`,
			"NetworkPolicy/tracehook-authority.spec.egress.4": `{"ports":[{"port":1}]}`,
		}},
		{"networkPolicy: {enabled: false}\npodDisruptionBudget: {enabled: false}\nlifecycle: {enabled: true}\naudit: {enabled: true, schedule: '@daily', extraArgs: [--fail-on=error]}", map[string]string{
			"NetworkPolicy/tracehook": "", "NetworkPolicy/tracehook-authority": "", "NetworkPolicy/tracehook-lifecycle": "", "NetworkPolicy/tracehook-audit": "", "PodDisruptionBudget/tracehook": "",
			"CronJob/tracehook-audit.spec.schedule": `"@daily"`, "CronJob/tracehook-audit.spec.jobTemplate.spec.template.spec.containers.0.args": `["certs","audit","--fail-on=warning","--timeout=4m","--fail-on=error"]`,
		}},
		{"serviceAccount: {annotations: {a: b}}\nlifecycle: {enabled: true}\naudit: {enabled: true}", map[string]string{
			"ServiceAccount/tracehook.metadata.annotations": `{"a":"b"}`, "ServiceAccount/tracehook-lifecycle.metadata.annotations": `{"a":"b"}`,
			"ServiceAccount/tracehook-authority.metadata.annotations": "", "ServiceAccount/tracehook-audit.metadata.annotations": "",
		}},
		{"mtls: {enabled: true, clientName: 'a: \"b\" # c'}", map[string]string{
			serve + container + ".args": `["serve","--shutdown-delay=10s","--metrics-secure","--metrics-auth","--certs=secret","--client-ca-file=/etc/tracehook/client-ca/ca.crt","--client-name=a: \"b\" # c","--client-auth=observe"]`,
		}},
		{"certs: {mode: cert-manager, clusterDomain: example.internal, certManager: {issuerRef: {kind: ClusterIssuer, name: internal}}}", map[string]string{
			"Certificate/tracehook.spec.issuerRef": `{"group":"cert-manager.io","kind":"ClusterIssuer","name":"internal"}`,
			"Certificate/tracehook.spec.dnsNames":  `["tracehook","tracehook.` + namespace + `","tracehook.` + namespace + `.svc","tracehook.` + namespace + `.svc.example.internal"]`,
			"Certificate/tracehook-ca":             "", "Issuer/tracehook": "", "Issuer/tracehook-self-signed": "", "ValidatingAdmissionPolicy/tracehook-authority": "",
			webhook + ".metadata.annotations": `{"cert-manager.io/inject-ca-from":"` + namespace + `/tracehook"}`,
		}},
		{"serviceMonitor: {enabled: true, labels: {release: p}, interval: 15s, scrapeTimeout: 5s}\nprometheusRule: {enabled: true, labels: {release: p}}", map[string]string{
			"ServiceMonitor/tracehook.metadata.labels.release": `"p"`, "ServiceMonitor/tracehook.spec.endpoints.0.interval": `"15s"`, "ServiceMonitor/tracehook-authority.spec.endpoints.0.scrapeTimeout": `"5s"`,
			"PrometheusRule/tracehook.metadata.labels.release": `"p"`, "ConfigMap/tracehook-dashboard": "", "ServiceMonitor/tracehook-lifecycle": "",
		}},
		{"dashboards: {enabled: true, labels: {dash: 'yes'}}", map[string]string{
			"ConfigMap/tracehook-dashboard.metadata.labels.dash": `"yes"`, "ServiceMonitor/tracehook": "", "Secret/tracehook-metrics-reader": "", "Service/tracehook-metrics": "", "PrometheusRule/tracehook": "",
		}},
	} {
		found := objects(t, mustRun(t, "helm4", "template", "tracehook", chart, "--namespace", namespace, "--values", values(t, c.values)))
		for path, want := range c.want {
			id, _, _ := strings.Cut(path, ".")
			var object any
			if found[id] != nil {
				object = found[id]
			}
			for name := range strings.SplitSeq(strings.TrimPrefix(path, id), ".") {
				object = step(object, name)
			}
			got, err := json.Marshal(object)
			if err != nil {
				t.Fatal(err)
			}
			if object == nil {
				got = nil
			}
			if string(got) != want {
				t.Errorf("%s: %s is %s, want %s", c.values, path, got, want)
			}
		}
	}
}

// step goes to a field, to an element by number, or to one by the field "name".
func step(object any, name string) any {
	switch object := object.(type) {
	case map[string]any:
		if name == "" {
			return object
		}
		if value, found := object[name]; found {
			return value
		}
		return nil
	case []any:
		for i, element := range object {
			if named, ok := element.(map[string]any); ok && named["name"] == name || name == string(rune('0'+i)) {
				return element
			}
		}
	}
	return nil
}

func TestAnotherAnnotationIsNamedWhereverItMatters(t *testing.T) {
	rendered := mustRun(t, "helm4", "template", "tracehook", chart, "--namespace", namespace, "--set", "annotationKey=example.org/trace,customResources.enabled=true,lifecycle.enabled=true")
	if strings.Contains(rendered, "tracehook.dev/traceparent") {
		t.Error("tracehook.dev/traceparent is still named")
	}
	if flags := strings.Count(rendered, "--annotation-key=example.org/trace\n"); flags != 2 {
		t.Errorf("%d programs are told", flags)
	}
	if conditions := strings.Count(rendered, "'example.org/trace'"); conditions < 10 {
		t.Errorf("conditions name it %d times", conditions)
	}
}

// Before 1.30 nothing limits an authority. The chart says what to do instead.
func TestBeforeKubernetes130TheChartRefusesRightsThatNothingLimits(t *testing.T) {
	for _, c := range []struct{ version, values, complaint string }{
		{"v1.27.9", "certs: {mode: files}", "chart requires kubeVersion: >=1.28.0-0"},
		{"v1.28.15", "{}", "certs.mode split needs Kubernetes 1.30, and this is v1.28.15.*certs.mode to cert-manager or files"},
		{"v1.29.4-gke.100", "certs: {mode: managed}", "certs.mode managed needs Kubernetes 1.30"},
		{"v1.28.15", "certs: {mode: managed, policy: false}", "choose certs.mode split"},
		{"v1.36.0", "certs: {mode: managed, policy: false}", "choose certs.mode split"},
		{"v1.28.15", "certs: {policy: false}", ""},
		{"v1.28.15", "certs: {mode: files}", ""},
		{"v1.29.4", "certs: {mode: cert-manager}", ""},
		{"v1.30.0-eks-1234", "{}", ""},
	} {
		for _, version := range versions {
			out, err := run(story.Within(t, time.Minute), version, "template", "tracehook", chart, "--kube-version", c.version, "--values", values(t, c.values))
			if c.complaint == "" {
				if err != nil {
					t.Errorf("%s, %s: %v", c.version, c.values, err)
				} else if policy := strings.Contains(out, "kind: ValidatingAdmissionPolicy\n"); policy != strings.HasPrefix(c.version, "v1.30") {
					t.Errorf("%s, %s: the policy is there: %t", c.version, c.values, policy)
				}
			} else if err == nil || !regexp.MustCompile(c.complaint).MatchString(err.Error()) {
				t.Errorf("%s, %s: %v, want %s", c.version, c.values, err, c.complaint)
			}
		}
	}
}

func TestTheKubeletsPortIsRefusedOnANodesNetwork(t *testing.T) {
	_, err := run(t.Context(), "helm4", "template", "tracehook", chart, "--set", "hostNetwork=true,port=10250")
	if err == nil || !strings.Contains(err.Error(), "with hostNetwork choose another one") {
		t.Error(err)
	}
}

// The release's tag stands in four places, which a release changes together.
func TestTheChartIsOfTheReleaseThatTheManifestsName(t *testing.T) {
	about := readYAML(t, filepath.Join(chart, "Chart.yaml"))
	release := readYAML(t, filepath.Join(deploy, "components", "release", "kustomization.yaml"))
	tag, _ := field(release["images"].([]any)[0], "newTag").(string)
	if about["appVersion"] != tag || "v"+about["version"].(string) != tag {
		t.Errorf("the chart is of version %v for %v, the manifests are of %s", about["version"], about["appVersion"], tag)
	}
	if images, _ := field(about, "annotations", "artifacthub.io/images").(string); !strings.Contains(images, "image: ghcr.io/tracehook/tracehook:"+tag+"\n") {
		t.Errorf("Artifact Hub is told of\n%s", images)
	}
}
