{{/*
The chart has no manifests of its own: manifests/ holds copies of deploy/base and deploy/components. What a
kustomization.yaml there patches, and what values ask for, is said here. e2e/chart compares every field with what
kustomize renders.

The templates that end in "set" change the object that they are given and write nothing.
*/}}

{{/*
All objects of one directory of manifests/.
In: root; directory; skip, names (or Kind/names) that are left out; annotations of all. Out: YAML documents.
*/}}
{{- define "tracehook.directory" -}}
{{- $root := .root -}}
{{- $skip := default list .skip -}}
{{- range $path, $_ := $root.Files.Glob (printf "manifests/%s/*.yaml" .directory) -}}
{{- $text := $root.Files.Get $path | replace "tracehook.dev/traceparent" $root.Values.annotationKey -}}
{{- range $document := splitList "\n---\n" $text -}}
{{- $object := fromYaml $document -}}
{{- if not $object.metadata -}}{{- /* fromYaml does not fail: it returns the error as an object. */ -}}
{{- fail (printf "read %s of the chart: no Kubernetes object: %v" $path $object) -}}
{{- end -}}
{{- if not (or (has $object.metadata.name $skip) (has (printf "%s/%s" $object.kind $object.metadata.name) $skip)) -}}
{{- include "tracehook.set" (dict "root" $root "object" $object "directory" $.directory) -}}
{{- with $.annotations -}}
{{- $_ := set $object.metadata "annotations" (mustMerge (default dict $object.metadata.annotations) .) -}}
{{- end -}}
{{ printf "---\n%s\n" (toYaml $object) }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the release, its namespace and the values mean for an object, whichever it is. */}}
{{- define "tracehook.set" -}}
{{- $root := .root -}}
{{- $object := .object -}}
{{- $metadata := $object.metadata -}}
{{- $labels := dict "app.kubernetes.io/part-of" "tracehook" "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $labels "app.kubernetes.io/instance" $root.Release.Name -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- if eq .directory "base" -}}
{{- $_ := mustMerge $labels (dict "app.kubernetes.io/name" "tracehook" "app.kubernetes.io/component" "admission-webhook") -}}
{{- end -}}
{{- $_ := set $metadata "labels" (mustMerge $labels (default dict $metadata.labels) $root.Values.commonLabels) -}}
{{- if hasKey $metadata "namespace" -}}
{{- $_ := set $metadata "namespace" $root.Release.Namespace -}}
{{- end -}}
{{- range $subject := default list $object.subjects -}}
{{- $_ := set $subject "namespace" $root.Release.Namespace -}}
{{- end -}}
{{- if and (eq $object.kind "ServiceAccount") (has $metadata.name (list "tracehook" "tracehook-lifecycle")) -}}
{{- with $root.Values.serviceAccount.annotations -}}
{{- $_ := set $metadata "annotations" (mustDeepCopy .) -}}
{{- end -}}
{{- end -}}
{{- if eq $object.kind "MutatingWebhookConfiguration" -}}
{{- include "tracehook.webhooks.set" . -}}
{{- else if eq $object.kind "NetworkPolicy" -}}
{{- include "tracehook.networkpolicy.set" . -}}
{{- else if eq $object.kind "Deployment" -}}
{{- include "tracehook.deployment.set" . -}}
{{- else if eq $object.kind "CronJob" -}}
{{- $_ := set $object.spec "schedule" $root.Values.audit.schedule -}}
{{- $_ := set $object.spec.jobTemplate "metadata" (dict "labels" (dict "app.kubernetes.io/part-of" "tracehook")) -}}
{{- include "tracehook.pod.set" (dict "root" $root "template" $object.spec.jobTemplate.spec.template "values" $root.Values.audit) -}}
{{- else if and (eq $object.kind "Certificate") (eq $metadata.name "tracehook") -}}
{{- include "tracehook.certificate.set" . -}}
{{- else if eq $object.kind "ServiceMonitor" -}}
{{- $_ := set $metadata "labels" (mustMerge $metadata.labels $root.Values.serviceMonitor.labels) -}}
{{- range $endpoint := $object.spec.endpoints -}}
{{- $_ := set $endpoint "interval" $root.Values.serviceMonitor.interval -}}
{{- $_ := set $endpoint "scrapeTimeout" $root.Values.serviceMonitor.scrapeTimeout -}}
{{- end -}}
{{- else if eq $object.kind "PrometheusRule" -}}
{{- $_ := set $metadata "labels" (mustMerge $metadata.labels $root.Values.prometheusRule.labels) -}}
{{- else if and (eq $object.kind "ClusterRole") (eq $metadata.name "tracehook-lineage") -}}
{{- $_ := set $object "rules" (concat $object.rules $root.Values.lineageRules) -}}
{{- else if and (eq $object.kind "ClusterRole") (eq $metadata.name "tracehook-check") (semverCompare "<1.30.0-0" $root.Capabilities.KubeVersion.Version) -}}
{{- /* No policy limits its creates to dry runs there. The check says what it could not do. */ -}}
{{- $rules := list -}}
{{- range $rule := $object.rules -}}
{{- if not (has "create" $rule.verbs) -}}{{- $rules = append $rules $rule -}}{{- end -}}
{{- end -}}
{{- $_ := set $object "rules" $rules -}}
{{- end -}}
{{- end -}}

{{/*
The webhooks of a MutatingWebhookConfiguration. There is no caBundle, and of the proof no path: who holds the CA writes
both, and Helm, which has not written them, leaves them alone.
*/}}
{{- define "tracehook.webhooks.set" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $object := .object -}}
{{- $annotations := mustDeepCopy $values.webhookAnnotations -}}
{{- if eq $object.metadata.name "tracehook" -}}
{{- range $name, $component := dict "env-injection" $values.envInjection "custom-resources" $values.customResources -}}
{{- if $component.enabled -}}
{{- $patch := $root.Files.Get (printf "manifests/%s/webhook.yaml" $name) | replace "tracehook.dev/traceparent" $values.annotationKey | fromYamlArray -}}
{{- $webhook := (first $patch).value -}}
{{- if eq $name "custom-resources" -}}
{{- $rule := first $webhook.rules -}}
{{- $_ := set $rule "apiGroups" $component.apiGroups -}}
{{- $_ := set $rule "resources" $component.resources -}}
{{- end -}}
{{- $_ := set $object "webhooks" (append $object.webhooks $webhook) -}}
{{- end -}}
{{- end -}}
{{- $webhook := first $object.webhooks -}}
{{- $_ := set $webhook "rules" (concat $webhook.rules $values.extraRules) -}}
{{- range $webhook := $object.webhooks -}}
{{- $_ := set $webhook "failurePolicy" $values.failurePolicy -}}
{{- $_ := set $webhook "timeoutSeconds" $values.timeoutSeconds -}}
{{- $selector := $webhook.namespaceSelector -}}
{{- range $expression := $selector.matchExpressions -}}
{{- if eq $expression.key "kubernetes.io/metadata.name" -}}
{{- /* Helm makes a namespace without labels. */ -}}
{{- $_ := set $expression "values" (concat $expression.values (list $root.Release.Namespace) $values.excludeNamespaces | uniq) -}}
{{- end -}}
{{- end -}}
{{- with $values.namespaceSelector.matchExpressions -}}
{{- $_ := set $selector "matchExpressions" (concat $selector.matchExpressions .) -}}
{{- end -}}
{{- with $values.namespaceSelector.matchLabels -}}
{{- $_ := set $selector "matchLabels" (mustMerge (default dict $selector.matchLabels) .) -}}
{{- end -}}
{{- end -}}
{{- if eq $values.certs.mode "cert-manager" -}}
{{- $_ := set $annotations "cert-manager.io/inject-ca-from" (printf "%s/tracehook" $root.Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- range $webhook := $object.webhooks -}}
{{- $_ := set $webhook.clientConfig.service "namespace" $root.Release.Namespace -}}
{{- end -}}
{{- if $annotations -}}
{{- $_ := set $object.metadata "annotations" $annotations -}}
{{- end -}}
{{- end -}}

{{- define "tracehook.certificate.set" -}}
{{- $root := .root -}}
{{- $spec := .object.spec -}}
{{- $service := printf "tracehook.%s" $root.Release.Namespace -}}
{{- $_ := set $spec "dnsNames" (list "tracehook" $service (printf "%s.svc" $service) (printf "%s.svc.%s" $service $root.Values.certs.clusterDomain)) -}}
{{- with $root.Values.certs.certManager.issuerRef -}}
{{- $_ := set $spec "issuerRef" (mustMerge (mustDeepCopy .) (dict "group" "cert-manager.io" "kind" "Issuer")) -}}
{{- end -}}
{{- end -}}

{{- define "tracehook.networkpolicy.set" -}}
{{- $values := .root.Values -}}
{{- $name := .object.metadata.name -}}
{{- $spec := .object.spec -}}
{{- range $rule := default list $spec.ingress -}}
{{- $port := (first $rule.ports).port | toString -}}
{{- if and (eq $port "webhook") $values.networkPolicy.webhookFrom -}}
{{- $_ := set $rule "from" $values.networkPolicy.webhookFrom -}}
{{- end -}}
{{- end -}}
{{- range $rule := $spec.egress -}}
{{- $port := 0 -}}
{{- with $rule.ports -}}{{- $port = (first .).port | int -}}{{- end -}}
{{- if eq $port 443 -}}
{{- $ports := list -}}
{{- range $port := $values.networkPolicy.apiServerPorts -}}
{{- $ports = append $ports (dict "port" $port "protocol" "TCP") -}}
{{- end -}}
{{- $_ := set $rule "ports" $ports -}}
{{- else if eq $port 4317 -}}
{{- $own := (urlParse $values.otlp.endpoint).host | regexFind ":[0-9]+$" | trimPrefix ":" | default "0" | int -}}
{{- if not (has $own (list 0 4317 4318)) -}}
{{- $_ := set $rule "ports" (append $rule.ports (dict "port" $own "protocol" "TCP")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if ne $name "tracehook-audit" -}}{{- /* which may call everything */ -}}
{{- if and (eq $name "tracehook") (eq $values.certs.mode "managed") -}}
{{- /* Who leads shakes hands with every replica before an old certificate is given up. */ -}}
{{- $replicas := dict "podSelector" (dict "matchLabels" (dict "app.kubernetes.io/name" "tracehook")) -}}
{{- $_ := set $spec "egress" (append $spec.egress (dict "to" (list $replicas) "ports" (list (dict "port" "webhook" "protocol" "TCP")))) -}}
{{- end -}}
{{- if $values.hostNetwork -}}
{{- /* No selector finds Pods on a node's network, nor the names of their ports. */ -}}
{{- range $rule := $spec.egress -}}
{{- if $rule.to -}}
{{- $_ := unset $rule "to" -}}
{{- $_ := set $rule "ports" (list (dict "port" $values.port "protocol" "TCP")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $spec "egress" (concat $spec.egress $values.networkPolicy.extraEgress) -}}
{{- end -}}
{{- end -}}
