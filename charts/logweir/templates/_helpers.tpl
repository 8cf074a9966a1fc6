{{- define "logweir.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What pods are selected by; never anything that may change. Takes (dict "root" $ "component" ...). */}}
{{- define "logweir.selector" -}}
app.kubernetes.io/name: logweir
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "logweir.labels" -}}
{{ include "logweir.selector" . }}
app.kubernetes.io/part-of: logweir
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of a pod: they must not change with the version, or upgrades would restart what they need not. */}}
{{- define "logweir.podLabels" -}}
{{ include "logweir.selector" . }}
app.kubernetes.io/part-of: logweir
{{- end -}}

{{/* Takes an image's values, merged over the release's. */}}
{{- define "logweir.image" -}}
{{- $where := .repository -}}
{{- if .registry -}}{{- $where = printf "%s/%s" .registry (regexReplaceAll "^[^/]*[.:][^/]*/" .repository "") -}}{{- end -}}
{{- if .digest -}}{{ $where }}@{{ .digest }}{{- else -}}{{ $where }}:{{ .tag }}{{- end -}}
{{- end -}}

{{- define "logweir.imageOf" -}}
{{- $over := default dict .over -}}
{{- $all := deepCopy .root.Values.image -}}
{{- if $over.tag }}{{ $_ := set $all "digest" "" }}{{ end -}}
{{- include "logweir.image" (mergeOverwrite $all (dict "tag" (default .root.Chart.AppVersion .root.Values.image.tag)) $over) -}}
{{- end -}}

{{- define "logweir.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "logweir.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Of a container: image and what all have. Takes root, and over: an image's own values. */}}
{{- define "logweir.container" -}}
image: {{ include "logweir.imageOf" . }}
imagePullPolicy: {{ default .root.Values.image.pullPolicy (default dict .over).pullPolicy }}
securityContext:
  {{- include "logweir.containerSecurity" . | nindent 2 }}
{{- end -}}

{{/* Of a pod: where it may run. Takes root, component and its values. */}}
{{- define "logweir.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "logweir.selector" . | nindent 8 }}
  {{- end }}
{{- end -}}

{{- define "logweir.env" -}}
{{- with .extraEnv }}
env:
  {{- range $name, $value := . }}
  - name: {{ $name }}
    value: {{ $value | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Volume with what is needed to reach a server. Takes root, name (postgres or redis), keys to log in,
     and settings that may be missing. */}}
{{- define "logweir.serverVolume" -}}
{{- $fullname := include "logweir.fullname" .root -}}
{{- $bundled := .root.Values.evaluation.enabled -}}
{{- $values := ternary dict (index .root.Values .name) $bundled -}}
{{- $secret := ternary (printf "%s-%s" $fullname .name) (toString $values.existingSecret) $bundled -}}
{{- $given := list -}}
{{- range prepend .settings "host" -}}
{{- if not (has (toString (index $values .)) (list "" "<nil>")) }}{{ $given = append $given . }}{{ end -}}
{{- end -}}
{{- $needed := .keys -}}
{{- if not (has "host" $given) }}{{ $needed = prepend $needed "host" }}{{ end -}}
{{- $ca := dig "caSecret" "name" "" $values -}}
{{- /* A source without items would bring all keys, and with them the superuser's password. */}}
{{- $optional := without .settings "host" -}}
{{- range $given }}{{ $optional = without $optional . }}{{ end -}}
{{- if not $ca }}{{ $optional = append $optional "ca.crt" }}{{ end }}
- name: {{ .name }}
  projected:
    defaultMode: 0440
    sources:
      {{- with $needed }}
      - secret:
          name: {{ $secret }}
          items:
            {{- range . }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
      {{- end }}
      {{- with $optional }}
      - secret:
          name: {{ $secret }}
          optional: true
          items:
            {{- range . }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
      {{- end }}
      {{- with $given }}
      - configMap:
          name: {{ $fullname }}-operator
          items:
            {{- range . }}
            - {key: {{ $.name }}.{{ . }}, path: {{ . }}}
            {{- end }}
      {{- end }}
      {{- with $ca }}
      - secret:
          name: {{ . }}
          items:
            - {key: {{ $values.caSecret.key }}, path: ca.crt}
      {{- end }}
{{- end -}}

{{/* Rules of what the operator may do to its resources and their children. */}}
{{- define "logweir.operatorRules" -}}
- apiGroups: [logweir.dev]
  resources: [logtenants, logpipelines]
  verbs: [list, watch, patch]
- apiGroups: [logweir.dev]
  resources: [logtenants/status, logpipelines/status]
  verbs: [patch]
- apiGroups: [logweir.dev]
  resources: [logtenants/finalizers, logpipelines/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [secrets, serviceaccounts, services{{ if .Values.features.namespaceQuota }}, resourcequotas{{ end }}]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [ingresses, networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
{{- if .Values.features.httpRoutes }}
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- if .Values.features.keda }}
- apiGroups: [keda.sh]
  resources: [scaledobjects, triggerauthentications]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- if .Values.features.monitoring }}
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors, prometheusrules]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}

{{- define "logweir.checkValues" -}}
{{- if and .Values.operator.enabled (not .Values.evaluation.enabled) -}}
{{- if not .Values.postgres.existingSecret -}}
{{- fail "postgres.existingSecret is needed: the Secret of your PostgreSQL (or, to try Logweir out, evaluation.enabled=true)" -}}
{{- end -}}
{{- if not .Values.redis.existingSecret -}}
{{- fail "redis.existingSecret is needed: the Secret of your Redis (or, to try Logweir out, evaluation.enabled=true)" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.evaluation.enabled (or .Values.postgres.existingSecret .Values.redis.existingSecret) -}}
{{- fail "evaluation.enabled brings its own databases: leave out postgres.existingSecret and redis.existingSecret, or evaluation.enabled" -}}
{{- end -}}
{{- if and .Values.features.monitoring (not .Values.networkPolicy.monitoringNamespace) -}}
{{- fail "features.monitoring needs networkPolicy.monitoringNamespace: where Prometheus runs, or its scrapes are dropped and every pipeline alerts" -}}
{{- end -}}
{{- if and (eq .Values.scope.mode "Namespaced") (not .Values.scope.namespaces) -}}
{{- fail "scope.mode Namespaced needs scope.namespaces" -}}
{{- end -}}
{{- if and (eq .Values.scope.mode "Cluster") .Values.scope.namespaces -}}
{{- fail "scope.namespaces are for scope.mode Namespaced" -}}
{{- end -}}
{{- end -}}

{{/* Changes when what the operator reads once at its start changes. */}}
{{- define "logweir.configChecksum" -}}
{{- list .Values.cluster .Values.image .Values.imagePullSecrets .Values.scope .Values.features .Values.networkPolicy .Values.operator.lease .Values.operator.resyncSeconds .Values.operator.spreadSeconds .Values.operator.workers .Values.logFormat .Values.postgres .Values.redis .Values.evaluation.enabled | toJson | sha256sum | trunc 16 -}}
{{- end -}}
