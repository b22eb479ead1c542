{{/* What values mean for Deployments and their Pods. */}}

{{- define "tracehook.deployment.set" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $spec := .object.spec -}}
{{- $name := .object.metadata.name -}}
{{- $own := $values -}}
{{- $args := list -}}
{{- if eq $name "tracehook" -}}
{{- $args = include "tracehook.serve.args" $root | fromYamlArray -}}
{{- else if eq $name "tracehook-authority" -}}
{{- $own = $values.authority -}}
{{- $args = include "tracehook.authority.args" $root | fromYamlArray -}}
{{- else -}}
{{- $own = $values.lifecycle -}}
{{- $args = include "tracehook.lifecycle.args" $root | fromYamlArray -}}
{{- end -}}
{{- $_ := set $spec "replicas" $own.replicas -}}
{{- include "tracehook.pod.set" (dict "root" $root "template" $spec.template "values" $own "args" $args) -}}
{{- if eq $name "tracehook" -}}
{{- $_ := set $spec.template.metadata "labels" (mustMerge $spec.template.metadata.labels (dict "app.kubernetes.io/name" "tracehook" "app.kubernetes.io/component" "admission-webhook")) -}}
{{- include "tracehook.serve.set" . -}}
{{- end -}}
{{- end -}}

{{/* The ports, volumes and network of the Pods that serve. */}}
{{- define "tracehook.serve.set" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $spec := .object.spec -}}
{{- $pod := $spec.template.spec -}}
{{- $container := first $pod.containers -}}
{{- $ports := dict "webhook" $values.port "metrics" $values.metricsPort "health" $values.healthPort -}}
{{- range $port := $container.ports -}}
{{- $_ := set $port "containerPort" (get $ports $port.name) -}}
{{- end -}}
{{- if ne (int $values.healthPort) 8081 -}}
{{- $probe := $container.startupProbe.exec -}}
{{- $_ := set $probe "command" (append $probe.command (printf "--health-probe-bind-address=:%d" (int $values.healthPort))) -}}
{{- end -}}
{{- $mounts := list -}}
{{- if $values.mtls.enabled -}}
{{- $mounts = append $mounts "mtls" -}}
{{- end -}}
{{- if has $values.certs.mode (list "files" "cert-manager") -}}
{{- $mounts = append $mounts "certs-files" -}}
{{- end -}}
{{- range $directory := $mounts -}}
{{- $from := ($root.Files.Get (printf "manifests/%s/deployment.yaml" $directory) | fromYaml).spec.template.spec -}}
{{- $_ := set $pod "volumes" (concat (default list $pod.volumes) $from.volumes) -}}
{{- $_ := set $container "volumeMounts" (concat (default list $container.volumeMounts) (first $from.containers).volumeMounts) -}}
{{- end -}}
{{- if $values.hostNetwork -}}
{{- $_ := set $pod "hostNetwork" true -}}
{{- $_ := set $pod "dnsPolicy" "ClusterFirstWithHostNet" -}}
{{- range $port := $container.ports -}}
{{- $_ := set $port "hostPort" $port.containerPort -}}
{{- end -}}
{{- /* A replacement beside the old Pod would need a node whose ports are free. */ -}}
{{- $_ := set $spec.strategy "rollingUpdate" (dict "maxUnavailable" 1 "maxSurge" 0) -}}
{{- end -}}
{{- end -}}

{{/*
What all Pods have in common.
In: root; template, of a Pod; values, of the component, whose own win over the top's; args to add.
*/}}
{{- define "tracehook.pod.set" -}}
{{- $values := .root.Values -}}
{{- $own := .values -}}
{{- $pod := .template.spec -}}
{{- $container := first $pod.containers -}}
{{- /* A component says what is different. Affinity, spread and arguments of the Pods that serve mean no others. */ -}}
{{- $v := dict "affinity" $own.affinity "topologySpreadConstraints" $own.topologySpreadConstraints "extraArgs" $own.extraArgs "resources" $own.resources -}}
{{- range $key := list "nodeSelector" "tolerations" "priorityClassName" "podLabels" "podAnnotations" "extraEnv" -}}
{{- $_ := set $v $key (ternary (get $own $key) (get $values $key) (hasKey $own $key)) -}}
{{- end -}}
{{- $labels := dict "app.kubernetes.io/part-of" "tracehook" -}}
{{- $_ := set .template.metadata "labels" (mustMerge $labels (default dict .template.metadata.labels) $v.podLabels $values.commonLabels) -}}
{{- with $v.podAnnotations -}}
{{- $_ := set $.template.metadata "annotations" (mustMerge (default dict $.template.metadata.annotations) .) -}}
{{- end -}}
{{- with $values.imagePullSecrets }}{{- $_ := set $pod "imagePullSecrets" . -}}{{- end -}}
{{- with $v.priorityClassName }}{{- $_ := set $pod "priorityClassName" . -}}{{- end -}}
{{- with $v.tolerations }}{{- $_ := set $pod "tolerations" . -}}{{- end -}}
{{- with $v.affinity }}{{- $_ := set $pod "affinity" . -}}{{- end -}}
{{- with $v.topologySpreadConstraints }}{{- $_ := set $pod "topologySpreadConstraints" . -}}{{- end -}}
{{- $_ := set $pod "nodeSelector" $v.nodeSelector -}}
{{- $_ := set $container "image" (include "tracehook.image" .root) -}}
{{- $_ := set $container "imagePullPolicy" $values.image.pullPolicy -}}
{{- with $v.resources }}{{- $_ := set $container "resources" . -}}{{- end -}}
{{- $_ := set $container "args" (concat $container.args (default list .args) (default list $v.extraArgs)) -}}
{{- include "tracehook.env.set" (dict "values" $values "container" $container "extra" $v.extraEnv) -}}
{{- end -}}

{{/* Where spans go, which cluster this is, how much memory Go may use, and what the user adds. */}}
{{- define "tracehook.env.set" -}}
{{- $values := .values -}}
{{- $container := .container -}}
{{- $replaced := list -}}
{{- range $variable := .extra }}{{- $replaced = append $replaced $variable.name -}}{{- end -}}
{{- $env := list -}}
{{- range $variable := default list $container.env -}}
{{- $name := $variable.name -}}
{{- if eq $name "OTEL_EXPORTER_OTLP_ENDPOINT" -}}
{{- $_ := set $variable "value" $values.otlp.endpoint -}}
{{- else if eq $name "OTEL_EXPORTER_OTLP_PROTOCOL" -}}
{{- $_ := set $variable "value" $values.otlp.protocol -}}
{{- else if and (eq $name "OTEL_RESOURCE_ATTRIBUTES") $values.clusterName -}}
{{- $_ := set $variable "value" (printf "%s,k8s.cluster.name=%s" $variable.value $values.clusterName) -}}
{{- else if eq $name "GOMEMLIMIT" -}}
{{- $_ := set $variable "value" (include "tracehook.gomemlimit" (dict "shipped" $variable.value "resources" $container.resources)) -}}
{{- end -}}
{{- if not (or (has $name $replaced) (and (eq $name "GOMEMLIMIT") (not $variable.value))) -}}
{{- $env = append $env $variable -}}
{{- end -}}
{{- end -}}
{{- $env = concat $env .extra -}}
{{- if $env }}{{- $_ := set $container "env" $env -}}{{- end -}}
{{- end -}}

{{/*
What the manifests have for a limit that is theirs, 80 % of another one, and nothing where there is none or it is in
other units than Mi and Gi: the rest is for what is not Go's.
*/}}
{{- define "tracehook.gomemlimit" -}}
{{- $limit := dig "limits" "memory" "" .resources | toString -}}
{{- $shipped := dict "100MiB" "128Mi" "115MiB" "128Mi" "220MiB" "256Mi" -}}
{{- if eq $limit (get $shipped .shipped) -}}
{{- .shipped -}}
{{- else if regexMatch "^[0-9]+(Mi|Gi)$" $limit -}}
{{- $factor := ternary 1024 1 (hasSuffix "Gi" $limit) -}}
{{- printf "%dMiB" (div (mul (regexFind "^[0-9]+" $limit | int) $factor 8) 10) -}}
{{- end -}}
{{- end -}}

{{- define "tracehook.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "tracehook.serve.args" -}}
{{- $values := .Values -}}
{{- if eq $values.certs.mode "split" }}
- --certs=secret
{{- else if eq $values.certs.mode "managed" }}
- --certs=managed
{{- include "tracehook.authority.args" . }}
{{- else }}
- --webhook-configuration=tracehook
{{- end }}
{{- if ne (int $values.port) 9443 }}
- --webhook-bind-address=:{{ $values.port }}
{{- end }}
{{- if ne (int $values.metricsPort) 8080 }}
- --metrics-bind-address=:{{ $values.metricsPort }}
{{- end }}
{{- if ne (int $values.healthPort) 8081 }}
- --health-probe-bind-address=:{{ $values.healthPort }}
{{- end }}
{{- if $values.mtls.enabled }}
- --client-ca-file=/etc/tracehook/client-ca/ca.crt
- {{ printf "--client-name=%s" $values.mtls.clientName | toJson }}
- --client-auth={{ $values.mtls.mode }}
{{- end }}
{{- include "tracehook.context.args" . }}
{{- if ne $values.stamp "sampled" }}
- --stamp={{ $values.stamp }}
{{- end }}
{{- if ne $values.lineage "link" }}
- --lineage={{ $values.lineage }}
{{- end }}
{{- if $values.maxSampledRate }}
- --max-sampled-rate={{ $values.maxSampledRate }}
{{- end }}
{{- include "tracehook.log.args" . }}
{{- end -}}

{{- define "tracehook.authority.args" -}}
{{- $certs := .Values.certs }}
{{- with $certs.caLifetime }}
- --ca-lifetime={{ . }}
{{- end }}
{{- with $certs.leafLifetime }}
- --leaf-lifetime={{ . }}
{{- end }}
{{- with $certs.rotationSoak }}
- --rotation-soak={{ . }}
{{- end }}
{{- if ne $certs.clusterDomain "cluster.local" }}
- --cluster-domain={{ $certs.clusterDomain }}
{{- end }}
{{- if eq $certs.mode "split" }}
{{- include "tracehook.log.args" . }}
{{- end }}
{{- end -}}

{{- define "tracehook.lifecycle.args" -}}
{{- include "tracehook.context.args" . }}
{{- include "tracehook.log.args" . }}
{{- end -}}

{{/* What serve and lifecycle have to agree on. */}}
{{- define "tracehook.context.args" -}}
{{- if ne .Values.annotationKey "tracehook.dev/traceparent" }}
- --annotation-key={{ .Values.annotationKey }}
{{- end }}
{{- if ne .Values.trust "parent" }}
- --trust={{ .Values.trust }}
{{- end }}
{{- end -}}

{{- define "tracehook.log.args" -}}
{{- if ne .Values.log.level "info" }}
- --log-level={{ .Values.log.level }}
{{- end }}
{{- if ne .Values.log.format "json" }}
- --log-format={{ .Values.log.format }}
{{- end }}
{{- end -}}
