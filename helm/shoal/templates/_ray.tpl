{{/* What the head and the workers mount. */}}

{{- define "shoal.rayMounts" -}}
- name: config
  mountPath: /etc/shoal/shoal.toml
  subPath: shoal.toml
  readOnly: true
- name: redis
  mountPath: /etc/shoal/redis
  readOnly: true
- name: models
  mountPath: /models
  readOnly: true
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- end }}

{{- define "shoal.rayVolumes" -}}
- name: config
  configMap:
    name: {{ include "shoal.fullname" . }}-config
- name: redis
  secret:
    secretName: {{ include "shoal.redisSecret" . | quote }}
    defaultMode: 0440
{{ include "shoal.modelVolume" . }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.worker.scratchSize | quote }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.worker.shmSize | quote }}
{{- end }}
