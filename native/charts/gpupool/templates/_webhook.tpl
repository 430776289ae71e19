{{- /*
SPDX-License-Identifier: Apache-2.0
*/ -}}
{{- define "gpupool.webhook.selector" -}}
app.kubernetes.io/name: {{ .Values.webhook.name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gpupool.webhook.labels" -}}
{{ include "gpupool.webhook.selector" . }}
app.kubernetes.io/component: webhook
app.kubernetes.io/version: {{ .Values.webhook.image.version | quote }}
app.kubernetes.io/part-of: gpupool
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Name of its objects that lie in no namespace. */ -}}
{{- define "gpupool.webhook.clusterName" -}}
{{ .Release.Name }}-{{ .Values.webhook.name }}
{{- end }}

{{- /* What both webhooks have alike; takes (root, path). */ -}}
{{- define "gpupool.webhook.common" -}}
{{- $root := index . 0 -}}
clientConfig:
  service:
    name: {{ $root.Values.webhook.name }}
    namespace: {{ $root.Values.basic.namespace }}
    path: {{ index . 1 }}
    port: 443
admissionReviewVersions: [v1]
sideEffects: None
failurePolicy: Ignore
matchPolicy: Equivalent
timeoutSeconds: {{ $root.Values.webhook.timeoutSeconds }}
namespaceSelector:
  matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values: {{- toYaml (concat (list $root.Values.basic.namespace) $root.Values.webhook.exemptNamespaces | uniq) | nindent 8 }}
{{- end }}

{{- /* CEL: the pod asks for a resource of ours or carries an annotation that only we may write. */ -}}
{{- define "gpupool.webhook.involved" -}}
{{- $ask := "has(c.resources) && (has(c.resources.limits) && c.resources.limits.exists(r, r.startsWith(\"huawei.com/vgpu-\")) || has(c.resources.requests) && c.resources.requests.exists(r, r.startsWith(\"huawei.com/vgpu-\")))" -}}
{{- printf "object.spec.containers.exists(c, %s)" $ask -}}
{{- printf " || has(object.spec.initContainers) && object.spec.initContainers.exists(c, %s)" $ask -}}
{{- printf " || has(object.metadata.annotations) && %s.exists(k, k in object.metadata.annotations)" (include "gpupool.webhook.annotations" .) -}}
{{- end }}

{{- /* CEL: an update that adds, changes or removes one of them. */ -}}
{{- define "gpupool.webhook.changed" -}}
{{- $value := "(has(%s.metadata.annotations) && k in %s.metadata.annotations ? %s.metadata.annotations[k] : \"\")" -}}
{{- printf "%s.exists(k, %s != %s)" (include "gpupool.webhook.annotations" .) (printf $value "object" "object" "object") (printf $value "oldObject" "oldObject" "oldObject") -}}
{{- end }}

{{- /* The annotations of docs/interfaces.md section 7, and upstream's others. */ -}}
{{- define "gpupool.webhook.annotations" -}}
["flexai.io/vgpu-shape", "flexai.io/class", "flexai.io/vgpu-type", "flexai.io/intra-bandwidth", "huawei.com/vgpu-ids-new", "huawei.com/vgpu-node", "huawei.com/bind-time", "huawei.com/vgpu-devices-to-allocate", "huawei.com/bind-phase"]
{{- end }}

{{- define "gpupool.webhook.runtimeClass" -}}
{{- $named := .Values.webhook.runtimeClassName -}}
{{- eq $named "auto" | ternary (include "gpupool.runtimeClass" .) $named -}}
{{- end }}
