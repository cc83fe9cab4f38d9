{{- define "flyball.labels" -}}
app.kubernetes.io/name: flyball
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "flyball.selector" -}}
app.kubernetes.io/name: flyball
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "flyball.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- /* Where the pod's own service-account token is; named so that processes are told and do not assume. */}}
{{- define "flyball.serviceAccountDirectory" -}}
/var/run/secrets/kubernetes.io/serviceaccount
{{- end }}

{{- define "flyball.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
