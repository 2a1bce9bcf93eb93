{{/* Pieces of network policies. */}}

{{- define "shoal.dnsEgress" -}}
- to:
    - namespaceSelector: {}
      podSelector:
        matchLabels:
          k8s-app: kube-dns
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
    - port: redis
{{- else }}
- ports:
    - port: {{ regexFind "[0-9]+$" .Values.redis.external.address | int }}
{{- end }}
{{- end }}

{{/* Ray's pods, and the one with which KubeRay clears Ray's state from Redis at the end. */}}
{{- define "shoal.rayPeers" -}}
- podSelector:
    matchLabels:
      ray.io/cluster: {{ include "shoal.fullname" . }}
{{- end }}
