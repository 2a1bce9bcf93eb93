{{/* Values that contradict each other are refused here, with the key's name. What one value may be says the schema. */}}
{{- define "shoal.validate" -}}
{{- if not (regexMatch "^[a-z]" (include "shoal.fullname" .)) }}
{{- fail (printf "the name %s begins with a digit, which no Service may: set fullnameOverride" (include "shoal.fullname" .)) }}
{{- end }}
{{- $v := .Values }}
{{- $size := int $v.expertParallel.size }}
{{- $per := int $v.worker.ranksPerPod }}
{{- if ne (mod $size $per) 0 }}
{{- fail (printf "expertParallel.size is %d, which worker.ranksPerPod (%d) does not divide: a pod holds the ranks of one group only" $size $per) }}
{{- end }}
{{- if hasKey $v.worker.extendedResources $v.worker.gpuResource }}
{{- fail (printf "worker.extendedResources names %s, which is worker.gpuResource: a pod gets as many as worker.ranksPerPod" $v.worker.gpuResource) }}
{{- end }}
{{- if and (eq $v.redis.mode "external") (or (not $v.redis.existingSecret) (not $v.redis.external.address)) }}
{{- fail "redis.mode is external: redis.existingSecret (keys url and password) and redis.external.address (host:port) must be given" }}
{{- end }}
{{- if and (eq $v.model.source "objectStore") (not $v.model.objectStore.uri) }}
{{- fail "model.source is objectStore: model.objectStore.uri must be given" }}
{{- end }}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) }}
{{- fail "gateway.enabled is true: gateway.parentRefs must name a Gateway" }}
{{- end }}
{{- range $host := $v.gateway.grpcHostnames }}
{{- if has $host $v.gateway.httpHostnames }}
{{- fail (printf "gateway.grpcHostnames and gateway.httpHostnames both name %s: a listener takes one kind of route per host" $host) }}
{{- end }}
{{- end }}
{{- if and $v.gateway.enabled (or (not $v.gateway.grpcHostnames) (not $v.gateway.httpHostnames)) }}
{{- fail "gateway.enabled is true: gateway.grpcHostnames and gateway.httpHostnames must be given, and differ" }}
{{- end }}
{{- if and $v.tls.enabled (eq $v.router.service.appProtocol "kubernetes.io/h2c") }}
{{- fail "router.service.appProtocol is kubernetes.io/h2c, which is in the clear, but tls.enabled is true" }}
{{- end }}
{{- if eq (int $v.router.service.grpcPort) (int $v.router.service.httpPort) }}
{{- fail (printf "router.service.httpPort is %d, as is router.service.grpcPort: they must differ" (int $v.router.service.httpPort)) }}
{{- end }}
{{- if and $v.router.autoscaling.enabled (lt (int $v.router.autoscaling.maxReplicas) (int $v.router.replicas)) }}
{{- fail (printf "router.autoscaling.maxReplicas is %d, fewer than router.replicas (%d)" (int $v.router.autoscaling.maxReplicas) (int $v.router.replicas)) }}
{{- end }}
{{- $grpc := int $v.worker.grpcPort }}
{{- $metrics := int $v.worker.metricsPort }}
{{- if and (lt $grpc (add $metrics $per | int)) (lt $metrics (add $grpc $per | int)) }}
{{- fail (printf "worker.metricsPort (%d) and worker.grpcPort (%d) overlap: each takes worker.ranksPerPod (%d) ports" $metrics $grpc $per) }}
{{- end }}
{{- if and $v.tls.enabled (not $v.tls.certManager.enabled) (or (not $v.tls.existingSecret) (not $v.tls.internalSecret)) }}
{{- fail "tls.enabled is true: tls.existingSecret and tls.internalSecret must be given, or tls.certManager.enabled" }}
{{- end }}
{{- if and $v.tls.certManager.enabled (or (not $v.tls.enabled) (not $v.tls.certManager.issuerName)) }}
{{- fail "tls.certManager.enabled is true: tls.enabled must be true and tls.certManager.issuerName be given" }}
{{- end }}
{{- if and $v.tls.clientCertificates (not $v.tls.enabled) }}
{{- fail "tls.clientCertificates is true: tls.enabled must be true" }}
{{- end }}
{{- if and $v.auth.existingSecret (not $v.auth.required) }}
{{- fail "auth.existingSecret names keys, but auth.required is false: nobody would be asked for one" }}
{{- end }}
{{- if and $v.audit.enabled (not $v.audit.volume) }}
{{- fail "audit.enabled is true: audit.volume must say where the trail is written, emptyDir or claim" }}
{{- end }}
{{- if and $v.audit.volume (not $v.audit.enabled) }}
{{- fail (printf "audit.volume is %s, but audit.enabled is false: nothing would be written there" $v.audit.volume) }}
{{- end }}
{{- if ne (eq $v.audit.volume "claim") (ne $v.audit.claimName "") }}
{{- fail "audit.claimName must be given with audit.volume claim, and only then" }}
{{- end }}
{{- if and $v.audit.keySecret (not $v.audit.enabled) }}
{{- fail "audit.keySecret is given, but audit.enabled is false" }}
{{- end }}
{{- if $v.networkPolicy.enabled }}
{{- $outside := list }}
{{- if $v.ingress.enabled }}{{ $outside = append $outside "ingress.enabled is true" }}{{ end }}
{{- if $v.gateway.enabled }}{{ $outside = append $outside "gateway.enabled is true" }}{{ end }}
{{- if ne $v.router.service.type "ClusterIP" }}{{ $outside = append $outside (printf "router.service.type is %s" $v.router.service.type) }}{{ end }}
{{- if and $outside (not $v.networkPolicy.clients) }}
{{- fail (printf "%s, but networkPolicy.clients lets in nobody from outside of the namespace: name who calls" (join " and " $outside)) }}
{{- end }}
{{- if and $v.metrics.serviceMonitor.enabled (not $v.networkPolicy.prometheus) }}
{{- fail "metrics.serviceMonitor.enabled is true: networkPolicy.prometheus must name who scrapes" }}
{{- end }}
{{- end }}
{{- $paths := list }}
{{- range $v.router.files }}
{{- if has .path $paths }}
{{- fail (printf "router.files mounts %s twice" .path) }}
{{- end }}
{{- $paths = append $paths .path }}
{{- end }}
{{- if and (not $v.serviceAccount.create) (not $v.serviceAccount.name) }}
{{- fail "serviceAccount.create is false: serviceAccount.name must name an existing one" }}
{{- end }}
{{- range $key, $env := dict "worker" $v.worker.env "head" $v.head.env "router" $v.router.env }}
{{- $names := list }}
{{- range $env }}
{{- if has .name $names }}
{{- fail (printf "%s.env sets %s twice" $key .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- end }}
{{- range $key, $resources := dict "worker" $v.worker.resources "head" $v.head.resources "router" $v.router.resources "redis.bundled" $v.redis.bundled.resources }}
{{- range $kind, $wanted := $resources.requests }}
{{- $limit := get $resources.limits $kind }}
{{- if not $limit }}
{{- fail (printf "%s.resources.limits.%s is missing: there is a request" $key $kind) }}
{{- end }}
{{- if gt (include "shoal.thousandths" $wanted | int64) (include "shoal.thousandths" $limit | int64) }}
{{- fail (printf "%s.resources.requests.%s is %s, more than its limit %s" $key $kind $wanted $limit) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A quantity in thousandths of its unit, so that cores and bytes alike are whole numbers. */}}
{{- define "shoal.thousandths" -}}
{{- $units := dict "m" 1 "" 1000 "k" 1000000 "M" 1000000000 "G" 1000000000000 "T" 1000000000000000 "Ki" 1024000 "Mi" 1048576000 "Gi" 1073741824000 "Ti" 1099511627776000 }}
{{- mul (regexFind "^[0-9]+" . | int64) (get $units (regexFind "[A-Za-z]*$" .)) }}
{{- end }}
