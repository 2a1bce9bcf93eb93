{{/* Names and labels. */}}

{{- define "shoal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters, so that every suffix, and what KubeRay adds to it, stays within 63. */}}
{{- define "shoal.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains (include "shoal.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "shoal.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Which release a series is of, in a Prometheus that scrapes several. */}}
{{- define "shoal.release" -}}
{{- printf "%s/%s" .Release.Namespace (include "shoal.fullname" .) }}
{{- end }}

{{- define "shoal.selectorLabels" -}}
app.kubernetes.io/name: {{ include "shoal.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "shoal.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "shoal.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Call with (dict "root" $ "role" "router"). */}}
{{- define "shoal.roleLabels" -}}
{{ include "shoal.selectorLabels" .root }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "shoal.serviceAccount" -}}
{{- if .root.Values.serviceAccount.create }}
{{- printf "%s-%s" (include "shoal.fullname" .root) .role }}
{{- else }}
{{- default "default" .root.Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Call with (dict "root" $ "image" .Values.image.router). */}}
{{- define "shoal.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{- define "shoal.redisSecret" -}}
{{- default (printf "%s-redis" (include "shoal.fullname" .)) .Values.redis.existingSecret }}
{{- end }}

{{- define "shoal.redisAddress" -}}
{{- if eq .Values.redis.mode "external" }}
{{- .Values.redis.external.address }}
{{- else }}
{{- printf "%s-redis:6379" (include "shoal.fullname" .) }}
{{- end }}
{{- end }}

{{- define "shoal.modelClaim" -}}
{{- if eq .Values.model.source "hostPath" }}
{{- printf "%s-models" (include "shoal.fullname" .) }}
{{- else }}
{{- .Values.model.pvc.claimName }}
{{- end }}
{{- end }}

{{- define "shoal.tlsSecret" -}}
{{- default (printf "%s-tls" (include "shoal.fullname" .)) .Values.tls.existingSecret }}
{{- end }}

{{- define "shoal.internalSecret" -}}
{{- default (printf "%s-internal" (include "shoal.fullname" .)) .Values.tls.internalSecret }}
{{- end }}
