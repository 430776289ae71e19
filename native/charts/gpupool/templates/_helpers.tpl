{{- /*
SPDX-License-Identifier: Apache-2.0
*/ -}}
{{- define "gpupool.labels" -}}
app.kubernetes.io/name: {{ .Values.gpuDevicePlugin.name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.gpuDevicePlugin.image.version | quote }}
app.kubernetes.io/part-of: gpupool
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "gpupool.selector" -}}
app.kubernetes.io/name: {{ .Values.gpuDevicePlugin.name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Role node_labels makes both. */ -}}
{{- define "gpupool.runtimeClass" -}}
{{- eq .Values.runtimeType "docker" | ternary "flexai-xpu-docker" "flexai-xpu" -}}
{{- end }}
