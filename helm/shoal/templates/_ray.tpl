{{/* What the head and the workers mount. */}}

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
