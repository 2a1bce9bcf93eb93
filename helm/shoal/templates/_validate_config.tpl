{{/* Settings of `config` that contradict each other, or name what no pod has. The product would refuse them at its start. */}}
{{- define "shoal.validateConfig" -}}
{{- $v := .Values }}
{{- $worker := $v.config.worker }}
{{- $router := $v.config.router }}
{{- $spares := dig "spares" 0 $v.config.cluster | int }}
{{- if ne (mod $spares (int $v.worker.ranksPerPod)) 0 }}
{{- fail (printf "config.cluster.spares is %d, which worker.ranksPerPod (%d) does not divide: spare workers have pods of their own" $spares (int $v.worker.ranksPerPod)) }}
{{- end }}
{{- $tokens := dig "max_batch_tokens" 512 $worker | int64 }}
{{- $sequences := dig "max_batch_size" 32 $worker | int64 }}
{{- if lt $tokens $sequences }}
{{- fail (printf "config.worker.max_batch_tokens is %d, fewer than config.worker.max_batch_size (%d): each running sequence needs one token per step" $tokens $sequences) }}
{{- end }}
{{- $kv := dig "kv_tokens" 65536 $worker | int64 }}
{{- $block := dig "block_size" 16 $worker | int64 }}
{{- if lt $kv $block }}
{{- fail (printf "config.worker.kv_tokens is %d, which does not hold one block of config.worker.block_size (%d)" $kv $block) }}
{{- end }}
{{- $before := 0 }}
{{- range dig "preferred_step_sizes" list $worker }}
{{- if le (int64 .) (int64 $before) }}
{{- fail "config.worker.preferred_step_sizes must be ascending" }}
{{- end }}
{{- $before = . }}
{{- end }}
{{- if and (dig "int8_activations" false $worker) (ne $v.worker.device "cpu") }}
{{- fail (printf "config.worker.int8_activations is true, but worker.device is %s: 8-bit activations are for CPUs" $v.worker.device) }}
{{- end }}
{{- $golden := dig "golden" "" $worker }}
{{- if and $golden (not (hasPrefix "/models/" $golden)) }}
{{- fail (printf "config.worker.golden is %s: workers see nothing outside of /models" $golden) }}
{{- end }}
{{- $grow := $v.config.autoscale }}
{{- $least := dig "least" 1 $grow | int64 }}
{{- $most := dig "most" 4 $grow | int64 }}
{{- if lt $most $least }}
{{- fail (printf "config.autoscale.most is %d, fewer than config.autoscale.least (%d)" $most $least) }}
{{- end }}
{{- if dig "enabled" false $grow }}
{{- if or (lt (int64 $v.expertParallel.groups) $least) (gt (int64 $v.expertParallel.groups) $most) }}
{{- fail (printf "expertParallel.groups is %d, outside of config.autoscale.least (%d) to config.autoscale.most (%d)" (int64 $v.expertParallel.groups) $least $most) }}
{{- end }}
{{- if eq $v.worker.topology.mode "require" }}
{{- fail "worker.topology.mode is require, but config.autoscale.enabled is true: a further group would have to fit into the domain of the first" }}
{{- end }}
{{- end }}
{{- $ttl := dig "session_ttl_seconds" 86400 $router | int64 }}
{{- $longest := dig "max_session_ttl_seconds" 2592000 $router | int64 }}
{{- if gt $ttl $longest }}
{{- fail (printf "config.router.session_ttl_seconds is %d, more than config.router.max_session_ttl_seconds (%d)" $ttl $longest) }}
{{- end }}
{{- if and (eq (dig "usual" "hash" $v.config.audit) "encrypt") (not $v.audit.keySecret) }}
{{- fail "config.audit.usual is encrypt: audit.keySecret must hold the key" }}
{{- end }}
{{- $jwks := dig "jwks" "" $v.config.access }}
{{- if $jwks }}
{{- range $key, $usual := dict "issuer" "" "audience" "" "tenant_claim" "tenant" "role_claim" "role" }}
{{- if not (dig $key $usual $v.config.access) }}
{{- fail (printf "config.access.%s must be given with config.access.jwks" $key) }}
{{- end }}
{{- end }}
{{- if not $v.auth.required }}
{{- fail "config.access.jwks is given, but auth.required is false: nobody would be asked for a token" }}
{{- end }}
{{- end }}
{{- $asked := dict "config.access.jwks" (ternary $jwks "" (hasPrefix "https:" $jwks)) "config.safeguards.moderation_url" (dig "moderation_url" "" $v.config.safeguards) }}
{{- range $key, $url := $asked }}
{{- if and $url $v.networkPolicy.enabled (not $v.networkPolicy.routerEgress) }}
{{- fail (printf "%s is asked over the network: networkPolicy.routerEgress must let routers out" $key) }}
{{- end }}
{{- end }}
{{- $files := dict
    "config.limits.tenants_file" (dig "tenants_file" "" $v.config.limits)
    "config.access.jwks" (ternary "" $jwks (hasPrefix "https:" $jwks))
    "config.access.jwks_ca" (dig "jwks_ca" "" $v.config.access)
    "config.safeguards.moderation_key_file" (dig "moderation_key_file" "" $v.config.safeguards) }}
{{- range $key, $path := $files }}
{{- if $path }}
{{- $there := false }}
{{- range $v.router.files }}
{{- if hasPrefix (printf "%s/" .path) $path }}{{ $there = true }}{{ end }}
{{- end }}
{{- if not $there }}
{{- fail (printf "%s is %s, which no pod has: mount it with router.files" $key $path) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
