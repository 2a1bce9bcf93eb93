{{/* What the head and the workers mount, and their environment. */}}

{{- define "shoal.rayEnvironment" -}}
{{ include "shoal.environment" . }}
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
# What workers and the controller say goes where the container's does, not into files that end with the pod.
- name: RAY_LOG_TO_STDERR
  value: "1"
- name: RAY_BACKEND_LOG_LEVEL
  value: warning
# A rank is never the one to kill when memory is short: the kernel knows better who took it.
- name: RAY_memory_monitor_refresh_ms
  value: "0"
# Whoever ends the pod has emptied it: `shoal drain`. Ray would wait for actors that never end by themselves.
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: "0"
{{- end }}

{{- define "shoal.rayMounts" -}}
{{ include "shoal.fileMounts" (dict "root" . "role" "ray") }}
- name: shm
  mountPath: /dev/shm
{{- end }}

{{- define "shoal.rayVolumes" -}}
{{ include "shoal.fileVolumes" (dict "root" . "role" "ray") }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.worker.scratchSize | quote }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.worker.shmSize | quote }}
{{- end }}
