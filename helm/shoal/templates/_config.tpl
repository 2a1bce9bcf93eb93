{{/* The settings that routers, workers and the controller share, as TOML. The chart's own keys win over `config`. */}}
{{- define "shoal.toml" -}}
{{- $common := dict
    "cluster" (dict
      "model" (printf "/models/%s" .Values.model.name)
      "namespace" (include "shoal.fullname" .)
      "ray_address" "auto"
      "state_dir" "/tmp/shoal"
      "log_format" "json"
      "insecure" true)
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
      "insecure" true
      "drain_seconds" (int .Values.router.drainSeconds)) }}
{{- range $section := list "cluster" "worker" "router" }}
[{{ $section }}]
{{- $merged := merge (dict) (get $common $section) (get $.Values.config $section) }}
{{- range $key := keys $merged | sortAlpha }}
{{ $key }} = {{ get $merged $key | toJson }}
{{- end }}
{{ end }}
{{- end }}
