{{- define "disagfusion.labels" -}}
app.kubernetes.io/name: disagfusion
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
disagfusion/member: {{ .name }}
{{- end }}

{{- define "disagfusion.podSecurity" -}}
{runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
{{- end }}

{{- define "disagfusion.containerSecurity" -}}
{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end }}

{{- define "disagfusion.image" -}}
imagePullPolicy: {{ .Values.images.pullPolicy }}
{{- end }}

{{- define "disagfusion.max" -}}
{{ if gt (int .max) 0 }}{{ int .max }}{{ else }}{{ int .min }}{{ end }}
{{- end }}
