{{/* Pieces of network policies. Ports of others are numbers: not every network plugin resolves names on the way out. */}}

{{- define "shoal.dnsEgress" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- define "shoal.redisEgress" -}}
{{- if eq .Values.redis.mode "bundled" }}
- to:
    - podSelector:
        matchLabels:
          {{- include "shoal.roleLabels" (dict "root" . "role" "redis") | nindent 10 }}
  ports:
    - port: 6379
{{- else }}
- ports:
    - port: {{ regexFind "[0-9]+$" .Values.redis.external.address | int }}
{{- end }}
{{- end }}

{{/* Where checkpoints are copied from, and where traces go. */}}
{{- define "shoal.outsideEgress" -}}
{{- if eq .Values.model.source "objectStore" }}
- ports:
    - port: {{ include "shoal.urlPort" (default "https://s3" .Values.model.objectStore.endpoint) }}
{{- end }}
{{- with .Values.tracing.endpoint }}
- ports:
    - port: {{ include "shoal.urlPort" . }}
{{- end }}
{{- end }}

{{/* The port of a URL, said or usual. */}}
{{- define "shoal.urlPort" -}}
{{- $said := regexFind ":[0-9]+" (regexFind "^https?://[^/]*" .) | trimPrefix ":" }}
{{- default (ternary "443" "80" (hasPrefix "https:" .)) $said }}
{{- end }}

{{/* Ray's pods, and the one with which KubeRay clears Ray's state from Redis at the end. */}}
{{- define "shoal.rayPeers" -}}
- podSelector:
    matchLabels:
      ray.io/cluster: {{ include "shoal.fullname" . | quote }}
{{- end }}
