{{/* The settings that routers, workers and the controller share, as TOML. The chart's own keys win over `config`. */}}
{{/* cluster.insecure: the ranks' exchange has no encryption of its own, with tls.enabled neither; policies guard it. */}}
{{- define "shoal.toml" -}}
{{- $common := dict
    "cluster" (dict
      "model" (printf "/models/%s" .Values.model.name)
      "namespace" (include "shoal.fullname" .)
      "ray_address" "127.0.0.1:6379"
      "state_dir" "/tmp/shoal"
      "log_format" "json"
      "admin_port" 8078
      "insecure" true)
    "autoscale" (dict)
    "worker" (dict
      "device" .Values.worker.device
      "threads" (int .Values.worker.threads)
      "first_port" (int .Values.worker.grpcPort)
      "metrics_host" "0.0.0.0"
      "metrics_port" (int .Values.worker.metricsPort))
    "router" (dict
      "model_dir" (printf "/models/%s" .Values.model.name)
      "model_name" .Values.model.name
      "host" "0.0.0.0"
      "port" 50051
      "http_host" "0.0.0.0"
      "http_port" 8000
      "metrics_host" "0.0.0.0"
      "metrics_port" 9464
      "insecure" (not (and .Values.tls.enabled .Values.auth.required))
      "drain_seconds" (int .Values.router.drainSeconds)
      "redis_wait_seconds" 240)
    "access" (dict "required" .Values.auth.required)
    "limits" (dict)
    "audit" (dict)
    "safeguards" (dict)
    "tls" (dict) }}
{{- if .Values.auth.existingSecret }}
{{- $_ := set $common.access "keys_file" "/etc/shoal/keys/keys.json" }}
{{- end }}
{{- if .Values.audit.enabled }}
{{- $_ := set $common.audit "directory" "/var/lib/shoal/audit" }}
{{- if .Values.audit.keySecret }}
{{- $_ := set $common.audit "key_file" "/etc/shoal/audit/chain" }}
{{- $_ := set $common.audit "encryption_key_file" "/etc/shoal/audit/encryption" }}
{{- end }}
{{- end }}
{{- if .Values.tls.enabled }}
{{- $_ := set $common "tls" (dict
    "certificate" "/etc/shoal/tls/tls.crt"
    "key" "/etc/shoal/tls/tls.key"
    "internal_ca" "/etc/shoal/internal/ca.crt"
    "internal_certificate" "/etc/shoal/internal/tls.crt"
    "internal_key" "/etc/shoal/internal/tls.key") }}
{{- end }}
{{- if and .Values.tls.enabled .Values.tls.clientCertificates }}
{{- $_ := set $common.tls "client_ca" "/etc/shoal/tls/ca.crt" }}
{{- end }}
{{- range $section := list "cluster" "autoscale" "worker" "router" "access" "limits" "audit" "safeguards" "tls" }}
[{{ $section }}]
{{- $merged := merge (dict) (get $common $section) (get $.Values.config $section | default dict) }}
{{- range $key := keys $merged | sortAlpha }}
{{ $key }} = {{ get $merged $key | toJson }}
{{- end }}
{{ end }}
{{- end }}
