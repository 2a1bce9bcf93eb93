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
- name: SHOAL_CLUSTER__REDIS_URL_FILE
  value: /etc/shoal/redis/url
- name: HOME
  value: /tmp
{{- with .Values.tracing.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{/* How the command line in a pod is known to a router, and knows it. */}}
{{- define "shoal.callerEnvironment" -}}
{{- if .Values.tls.enabled }}
- name: SHOAL_CA
  value: /etc/shoal/tls/ca.crt
{{- end }}
{{- if .Values.tls.clientCertificates }}
- name: SHOAL_CERTIFICATE
  value: /etc/shoal/tls/tls.crt
- name: SHOAL_KEY
  value: /etc/shoal/tls/tls.key
{{- end }}
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
    {{- if .only }}
    - --exclude=*
    - --include={{ .only }}
    {{- end }}
    # What is published beside the checkpoint holds all of it twice more.
    - --exclude=original/*
    - --exclude=metal/*
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

{{/* Where a router, or the controller in the head's pod, writes its audit trail. */}}
{{- define "shoal.auditMounts" -}}
{{- if .Values.audit.enabled }}
- name: audit
  mountPath: /var/lib/shoal/audit
{{- if .Values.audit.keySecret }}
- name: audit-keys
  mountPath: /etc/shoal/audit
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "shoal.auditVolumes" -}}
{{- if .Values.audit.enabled }}
- name: audit
{{- if eq .Values.audit.volume "claim" }}
  persistentVolumeClaim:
    claimName: {{ .Values.audit.claimName | quote }}
{{- else }}
  emptyDir:
    sizeLimit: {{ .Values.audit.sizeLimit | quote }}
{{- end }}
{{- if .Values.audit.keySecret }}
- name: audit-keys
  secret:
    secretName: {{ .Values.audit.keySecret | quote }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end }}

{{/* Secrets and settings as files. Call with (dict "root" $ "role" "router"): only routers get what is theirs. */}}
{{- define "shoal.fileMounts" -}}
{{- $v := .root.Values }}
- name: config
  mountPath: /etc/shoal/shoal.toml
  subPath: shoal.toml
  readOnly: true
- name: redis
  mountPath: /etc/shoal/redis
  readOnly: true
{{- if $v.redis.external.caSecret }}
- name: redis-ca
  mountPath: /etc/shoal/redis-ca
  readOnly: true
{{- end }}
{{- if $v.tls.enabled }}
- name: internal
  mountPath: /etc/shoal/internal
  readOnly: true
{{- if eq .role "router" }}
- name: tls
  mountPath: /etc/shoal/tls
  readOnly: true
{{- end }}
{{- end }}
{{- if and $v.auth.existingSecret (eq .role "router") }}
- name: keys
  mountPath: /etc/shoal/keys
  readOnly: true
{{- end }}
{{- if eq .role "router" }}
{{- include "shoal.auditMounts" .root }}
{{- range $index, $file := $v.router.files }}
- name: files-{{ $index }}
  mountPath: {{ $file.path }}
  readOnly: true
{{- end }}
{{- end }}
- name: models
  mountPath: /models
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- end }}

{{- define "shoal.fileVolumes" -}}
{{- $v := .root.Values }}
- name: config
  configMap:
    name: {{ include "shoal.fullname" .root }}-config
- name: redis
  secret:
    secretName: {{ include "shoal.redisSecret" .root | quote }}
    defaultMode: 0440
{{- if $v.redis.external.caSecret }}
- name: redis-ca
  secret:
    secretName: {{ $v.redis.external.caSecret | quote }}
    defaultMode: 0440
{{- end }}
{{- if $v.tls.enabled }}
- name: internal
  secret:
    secretName: {{ include "shoal.internalSecret" .root | quote }}
    defaultMode: 0440
{{- if eq .role "router" }}
- name: tls
  secret:
    secretName: {{ include "shoal.tlsSecret" .root | quote }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- if and $v.auth.existingSecret (eq .role "router") }}
- name: keys
  secret:
    secretName: {{ $v.auth.existingSecret | quote }}
    defaultMode: 0440
{{- end }}
{{- if eq .role "router" }}
{{- include "shoal.auditVolumes" .root }}
{{- range $index, $file := $v.router.files }}
- name: files-{{ $index }}
{{- if eq (default "Secret" $file.kind) "Secret" }}
  secret:
    secretName: {{ $file.name | quote }}
    defaultMode: 0440
{{- else }}
  configMap:
    name: {{ $file.name | quote }}
{{- end }}
{{- end }}
{{- end }}
{{ include "shoal.modelVolume" .root }}
{{- end }}
