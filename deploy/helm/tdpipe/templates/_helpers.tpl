{{- define "tdpipe.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Pods of a group are called NAME-GROUP-NUMBER, which may have 63 characters. */}}
{{- define "tdpipe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tdpipe.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tdpipe.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "tdpipe.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels by which pods are selected; the argument is a list of the context and the component. */}}
{{- define "tdpipe.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "tdpipe.name" $ }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The arguments are the context and the number of GPUs. */}}
{{- define "tdpipe.image" -}}
{{- $ := index . 0 -}}
{{- $variant := ternary "cuda" "cpu" (gt (int (index . 1)) 0) -}}
{{- printf "%s:%s" $.Values.image.repository ($.Values.image.tag | default (printf "%s-%s" $.Chart.AppVersion $variant)) -}}
{{- end }}

{{- define "tdpipe.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "tdpipe.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{- define "tdpipe.hasKeys" -}}
{{- if or .Values.apiKeys.existingSecret .Values.apiKeys.keys }}true{{ end -}}
{{- end }}

{{- define "tdpipe.keysSecret" -}}
{{- .Values.apiKeys.existingSecret | default (printf "%s-keys" (include "tdpipe.fullname" .)) -}}
{{- end }}

{{- define "tdpipe.clusterSecret" -}}
{{- .Values.cluster.existingSecret | default (printf "%s-cluster" (include "tdpipe.fullname" .)) -}}
{{- end }}

{{- define "tdpipe.isScaledByRouter" -}}
{{- if and .Values.router.enabled (eq .Values.router.actuator "kubernetes") }}true{{ end -}}
{{- end }}

{{/* The drain, what comes before it, and 20 s for the daemon to end what is left. */}}
{{- define "tdpipe.gracePeriod" -}}
{{- add (ceil .Values.shutdownTimeout) .Values.preStopSeconds 20 -}}
{{- end }}

{{/*
A worker goes on while its leader drains: a group is stopped as a whole, and the open requests of the
leader need all stages. The address is looked up once, since a pod that ends may lose its name.
*/}}
{{- define "tdpipe.waitForLeader" -}}
import os, socket, time
end = time.monotonic() + {{ add (ceil .Values.shutdownTimeout) .Values.preStopSeconds }}
try:
    leader = socket.gethostbyname(os.environ["LWS_LEADER_ADDRESS"])
    while time.monotonic() < end:
        socket.create_connection((leader, 8000), 2).close()
        time.sleep(0.5)
except OSError:
    pass  # it has ended
{{- end }}

{{- define "tdpipe.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tdpipe.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* A probe of this path; the arguments are the context and the path. */}}
{{- define "tdpipe.httpGet" -}}
{{- $ := index . 0 -}}
httpGet:
  path: {{ index . 1 }}
  port: http
  scheme: {{ ternary "HTTPS" "HTTP" (ne $.Values.tls.existingSecret "") }}
{{- end }}

{{/* A volume: a claim of ours, another one, or an empty folder. Arguments: context, name, settings. */}}
{{- define "tdpipe.volume" -}}
{{- $ := index . 0 -}}{{- $name := index . 1 -}}{{- $store := index . 2 -}}
- name: {{ $name }}
{{- if $store.existingClaim }}
  persistentVolumeClaim: {claimName: {{ $store.existingClaim }}}
{{- else if $store.enabled }}
  persistentVolumeClaim: {claimName: {{ include "tdpipe.fullname" $ }}-{{ $name }}}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}

{{- define "tdpipe.scheduling" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
