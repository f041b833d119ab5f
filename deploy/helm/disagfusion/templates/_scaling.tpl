{{- define "disagfusion.keda" }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .full }}
  labels: {{- include "disagfusion.labels" .about | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ .full }}}
  minReplicaCount: {{ .pool.min }}
  maxReplicaCount: {{ include "disagfusion.max" .pool }}
  cooldownPeriod: {{ .root.Values.scaling.settleSeconds }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior: {{- include "disagfusion.behaviour" . | nindent 8 }}
  triggers:
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: {{ .root.Values.scaling.prometheus }}
        query: {{ include "disagfusion.wanted" . | quote }}
        threshold: "1"
{{- end }}

{{- /* Servers that the pool should have: as the gateways predict, or for what its servers do and what waits for one of them. */ -}}
{{- define "disagfusion.wanted" -}}
{{- $scaling := .root.Values.scaling -}}
{{- if .pool.pool -}}
sum(disagfusion_pool_servers_wanted{pool='{{ .pool.pool }}'}) * {{ .pool.share }}
{{- else -}}
(sum(rate(disagfusion_server_busy_seconds_total{server=~'{{ .full }}-[a-z0-9]+-[a-z0-9]{5}'}[2m])) or vector(0)) / {{ $scaling.busyShare }} + (sum(disagfusion_backlog_seconds{model='{{ .pool.model }}',stage=~'{{ join "|" .pool.roles }}'}) or vector(0)) / {{ $scaling.backlogSeconds }}
{{- end }}
{{- end }}

{{- /* One server at a time goes, and only after a while without need: it drains, and its successor loads weights. */ -}}
{{- define "disagfusion.behaviour" -}}
scaleUp:
  stabilizationWindowSeconds: 0
scaleDown:
  stabilizationWindowSeconds: {{ .root.Values.scaling.settleSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end }}
