{{/* What pods have in common: the restricted Pod Security Standard, volumes, environment. */}}

{{- define "shoal.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.securityContext.runAsUser | int64 }}
runAsGroup: {{ .Values.securityContext.runAsGroup | int64 }}
fsGroup: {{ .Values.securityContext.runAsGroup | int64 }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "shoal.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "shoal.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where shoal.toml is, and what must not be in it: variables that end in _FILE name files with the value. */}}
{{- define "shoal.environment" -}}
- name: SHOAL_CONFIG
  value: /etc/shoal/shoal.toml
- name: HOME
  value: /tmp
{{- end }}

{{- define "shoal.modelVolume" -}}
{{- if eq .Values.model.source "objectStore" }}
- name: models
  emptyDir:
    sizeLimit: {{ .Values.model.objectStore.sizeLimit | quote }}
{{- else }}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "shoal.modelClaim" . | quote }}
    readOnly: true
{{- end }}
{{- end }}

{{/* Copies the checkpoint from an object store. Call with (dict "root" $ "only" "*.json"), "" for all files. */}}
{{- define "shoal.modelCopier" -}}
{{- $store := .root.Values.model.objectStore }}
- name: copy-model
  image: {{ $store.image | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [aws]
  args:
    - s3
    - sync
    - --no-progress
    {{- with $store.endpoint }}
    - {{ printf "--endpoint-url=%s" . | quote }}
    {{- end }}
    {{- with .only }}
    - --exclude=*
    - --include={{ . }}
    {{- end }}
    - {{ $store.uri | quote }}
    - {{ printf "/models/%s" .root.Values.model.name | quote }}
  env:
    - name: HOME
      value: /tmp
  {{- with $store.existingSecret }}
  envFrom:
    - secretRef:
        name: {{ . | quote }}
  {{- end }}
  resources:
    requests: {cpu: 250m, memory: 512Mi}
    limits: {cpu: "2", memory: 2Gi}
  securityContext:
    {{- include "shoal.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
{{- end }}
