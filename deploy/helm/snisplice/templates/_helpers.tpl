{{- define "snisplice.selector" -}}
app.kubernetes.io/name: snisplice
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "snisplice.labels" -}}
{{ include "snisplice.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Where the node itself reaches the admin address. */}}
{{- define "snisplice.probeHost" -}}
{{- $address := .Values.admin.address -}}
{{- if eq $address "0.0.0.0" }}127.0.0.1{{ else if eq $address "::" }}::1{{ else }}{{ $address }}{{ end }}
{{- end }}

{{/* The configuration file. */}}
{{- define "snisplice.toml" -}}
{{- $address := .Values.admin.address -}}
[gateway]
admin = "{{ if contains ":" $address }}[{{ $address }}]{{ else }}{{ $address }}{{ end }}:{{ int .Values.admin.port }}"
state_dir = {{ .Values.stateDir | quote }}
bpffs = {{ .Values.bpffs | quote }}
drain_timeout = "{{ int .Values.drainSeconds }}s"
{{- with trim .Values.gateway }}
{{ . }}
{{- end }}

[gateway_api]
from = "cluster"
controller = {{ .Values.controller | quote }}
mode = {{ .Values.mode | quote }}
{{- with .Values.addresses }}
addresses = {{ toJson . }}
{{- end }}
{{- if ne .Values.mode "node" }}
attach = {{ .Values.attach | quote }}
{{- end }}
{{- with .Values.loadBalancerClass }}
load_balancer_class = {{ . | quote }}
{{- end }}
{{- with .Values.namespaces }}
namespaces = {{ toJson . }}
{{- end }}
{{- with .Values.istio }}
istio = {{ toJson . }}
{{- end }}
{{- if .Values.autoPassthrough }}
auto_passthrough = true
{{- end }}
{{- with trim .Values.gatewayApi }}
{{ . }}
{{- end }}
{{- end }}
