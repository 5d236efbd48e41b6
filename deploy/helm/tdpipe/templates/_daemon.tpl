{{/*
A pod of a daemon. The arguments are the context and the role: "daemon" on one host, "leader" and
"worker" in a group of several; only a worker has no HTTP server.
*/}}
{{- define "tdpipe.daemonPod" -}}
{{- $ := index . 0 -}}{{- $role := index . 1 -}}{{- $serves := ne $role "worker" -}}
metadata:
  labels:
    {{- include "tdpipe.selector" (list $ "daemon") | nindent 4 }}
    {{- with $.Values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    # Pods are replaced when settings or keys change.
    checksum/config: {{ toYaml (list $.Values.config $.Values.apiKeys) | sha256sum }}
    {{- with $.Values.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "tdpipe.serviceAccount" $ }}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: {{ include "tdpipe.gracePeriod" $ }}
  securityContext: {{- include "tdpipe.podSecurity" $ | nindent 4 }}
  {{- with include "tdpipe.scheduling" $ }}{{ . | nindent 2 }}{{ end }}
  {{- with $.Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  containers:
    - name: tdpipe
      image: {{ include "tdpipe.image" (list $ $.Values.gpusPerHost) }}
      imagePullPolicy: {{ $.Values.image.pullPolicy }}
      securityContext: {{- include "tdpipe.containerSecurity" $ | nindent 8 }}
      args:
        - serve
        {{- with $.Values.model }}
        - {{ . | quote }}
        {{- end }}
        - --config=/etc/tdpipe/config.yaml
        - --port=8000
        - --pipeline-parallel-size={{ $.Values.stages }}
        - --shutdown-timeout={{ $.Values.shutdownTimeout }}
        {{- if $.Values.tls.existingSecret }}
        - --ssl-certfile=/etc/tdpipe-tls/tls.crt
        - --ssl-keyfile=/etc/tdpipe-tls/tls.key
        {{- end }}
        {{- if and (include "tdpipe.hasKeys" $) $.Values.serviceMonitor.enabled }}
        - --open-paths=/metrics
        {{- end }}
        {{- if eq $role "leader" }}
        - --nnodes={{ $.Values.hosts }}
        - --node-rank=0
        # Its own address by number: it listens there, and its name may not be known yet.
        - --master-addr=$(POD_IP)
        {{- else if eq $role "worker" }}
        - --nnodes={{ $.Values.hosts }}
        - --node-rank=$(LWS_WORKER_INDEX)
        - --master-addr=$(LWS_LEADER_ADDRESS)
        - --headless
        {{- end }}
        {{- range $.Values.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      env:
        - {name: TDPIPE_DEVICE, value: {{ ternary "cuda" "cpu" (gt (int $.Values.gpusPerHost) 0) }}}
        {{- if eq $role "leader" }}
        - name: POD_IP
          valueFrom: {fieldRef: {fieldPath: status.podIP}}
        {{- end }}
        {{- if ne $role "daemon" }}
        - name: TDPIPE_CLUSTER_SECRET
          valueFrom: {secretKeyRef: {name: {{ include "tdpipe.clusterSecret" $ }}, key: secret}}
        {{- end }}
        {{- if and $serves (include "tdpipe.hasKeys" $) }}
        - name: TDPIPE_API_KEY
          valueFrom: {secretKeyRef: {name: {{ include "tdpipe.keysSecret" $ }}, key: keys}}
        {{- end }}
        {{- with $.Values.huggingFace.existingSecret }}
        - name: HF_TOKEN
          valueFrom: {secretKeyRef: {name: {{ . }}, key: token}}
        {{- end }}
        {{- with $.Values.extraEnv }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- if $serves }}
      ports:
        - {name: http, containerPort: 8000}
      startupProbe:
        {{- include "tdpipe.httpGet" (list $ "/ready") | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 4
        failureThreshold: {{ div (add $.Values.probes.startupSeconds 4) 5 }}
      # Fails only when the daemon has given up; it restarts lost stages itself, and keeps requests.
      livenessProbe:
        {{- include "tdpipe.httpGet" (list $ "/live") | nindent 8 }}
        periodSeconds: 10
        timeoutSeconds: 4
        failureThreshold: 3
      readinessProbe:
        {{- include "tdpipe.httpGet" (list $ "/ready") | nindent 8 }}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 1
      {{- if gt (int $.Values.preStopSeconds) 0 }}
      lifecycle:
        preStop: {exec: {command: [sleep, {{ $.Values.preStopSeconds | quote }}]}}
      {{- end }}
      {{- else }}
      lifecycle:
        preStop:
          exec:
            command:
              - python3
              - -c
              - |
                {{- include "tdpipe.waitForLeader" $ | nindent 16 }}
      {{- end }}
      resources: {{- include "tdpipe.resources" $ | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/tdpipe, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        - {name: data, mountPath: /home/tdpipe/.local/share/tdpipe}
        - {name: cache, mountPath: /home/tdpipe/.cache/huggingface}
        {{- if $.Values.persistence.models.existingClaim }}
        - {name: models, mountPath: /models, readOnly: true}
        {{- end }}
        {{- if $.Values.tls.existingSecret }}
        - {name: tls, mountPath: /etc/tdpipe-tls, readOnly: true}
        {{- end }}
        {{- with $.Values.extraVolumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    - name: config
      configMap: {name: {{ include "tdpipe.fullname" $ }}}
    - name: tmp
      emptyDir: {}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $.Values.sharedMemory }}}
    {{- include "tdpipe.volume" (list $ "data" (ternary $.Values.persistence.data (dict "enabled" false "existingClaim" "") $serves)) | nindent 4 }}
    {{- include "tdpipe.volume" (list $ "cache" $.Values.persistence.cache) | nindent 4 }}
    {{- with $.Values.persistence.models.existingClaim }}
    - name: models
      persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
    {{- end }}
    {{- with $.Values.tls.existingSecret }}
    - name: tls
      secret: {secretName: {{ . }}}
    {{- end }}
    {{- with $.Values.extraVolumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}

{{- define "tdpipe.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if gt (int .Values.gpusPerHost) 0 -}}
{{- $limits := set (get $resources "limits" | default dict) "nvidia.com/gpu" (int .Values.gpusPerHost) -}}
{{- $resources = set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}
