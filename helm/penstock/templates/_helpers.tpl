{{- define "penstock.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for suffixes such as -cleanup-wait. */}}
{{- define "penstock.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else if contains (include "penstock.name" .) .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "penstock.name" .) | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "penstock.selector" -}}
app.kubernetes.io/name: {{ include "penstock.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "penstock.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: penstock
{{ include "penstock.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "penstock.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "penstock.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "penstock.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where the containerd of each distribution has its files. */}}
{{- define "penstock.places" -}}
kubernetes:
  config: /etc/containerd/config.toml
  dropIn: ""
  socket: /run/containerd/containerd.sock
  root: /var/lib/containerd
  units: containerd
  hostsDir: /etc/containerd/certs.d
k3s:
  config: /var/lib/rancher/k3s/agent/etc/containerd/config.toml
  dropIn: /var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/penstock.toml
  socket: /run/k3s/containerd/containerd.sock
  root: /var/lib/rancher/k3s/agent/containerd
  units: k3s k3s-agent
  hostsDir: /var/lib/rancher/k3s/agent/etc/containerd/certs.d
rke2:
  config: /var/lib/rancher/rke2/agent/etc/containerd/config.toml
  dropIn: /var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.d/penstock.toml
  socket: /run/k3s/containerd/containerd.sock
  root: /var/lib/rancher/rke2/agent/containerd
  units: rke2-server rke2-agent
  hostsDir: /var/lib/rancher/rke2/agent/etc/containerd/certs.d
{{- end -}}

{{/* What holds for this release: `containerd.*`, else what the distribution has. As YAML. */}}
{{- define "penstock.place" -}}
{{- $places := include "penstock.places" . | fromYaml -}}
{{- $place := get $places .Values.node.distribution -}}
{{- range $key, $usual := $place }}
{{ $key }}: {{ get $.Values.containerd $key | default $usual | quote }}
{{- end }}
snapshots: {{ printf "%s/io.containerd.snapshotter.v1.penstock" (.Values.containerd.root | default $place.root) | quote }}
{{- end -}}

{{/* The agent's config file: what was asked for, and what the chart decides (the schema refuses that in `config`). */}}
{{- define "penstock.config" -}}
{{- $place := include "penstock.place" . | fromYaml -}}
{{- $ours := dict
  "snapshotter" (dict "enable" true "root" $place.snapshots)
  "images" (dict "containerd" $place.socket)
  "fetch" (dict "hosts_dirs" $place.hostsDir)
  "log" (dict "format" "json") -}}
{{- if .Values.node.cacheDir -}}
{{- $_ := set $ours "cache" (dict "dir" .Values.node.cacheDir) -}}
{{- end -}}
{{- if .Values.credentials.secrets -}}
{{- $dirs := list -}}
{{- range .Values.credentials.secrets -}}
{{- $dirs = append $dirs (printf "/etc/penstock/secrets/registry-%s" .) -}}
{{- end -}}
{{- $_ := set $ours "credentials" (dict "secret_dirs" $dirs) -}}
{{- end -}}
{{- if .Values.api.port -}}
{{- $_ := set $ours "listen" (printf "0.0.0.0:%d" (int .Values.api.port)) -}}
{{- $api := dict "token_file" "/etc/penstock/secrets/api/token" -}}
{{- if .Values.api.tlsSecret -}}
{{- $_ := set $api "tls_cert" "/etc/penstock/secrets/tls/tls.crt" -}}
{{- $_ := set $api "tls_key" "/etc/penstock/secrets/tls/tls.key" -}}
{{- else -}}
{{- $_ := set $api "plain_token" true -}}
{{- end -}}
{{- $_ := set $ours "api" $api -}}
{{- end -}}
{{- if .Values.traces.tokenSecret -}}
{{- $_ := set $ours "traces" (dict "token_file" "/etc/penstock/secrets/traces/token") -}}
{{- end -}}
# Written by the Helm chart: change its value `config` instead.
{{ mergeOverwrite (deepCopy .Values.config) $ours | toToml | trim }}
{{- end -}}

{{/* The systemd unit: that of the repository's packaging/, with the program and containerd where they are here. */}}
{{- define "penstock.unit" -}}
{{- $place := include "penstock.place" . | fromYaml -}}
{{- $before := list -}}
{{- range splitList " " $place.units -}}
{{- $before = append $before (printf "%s.service" .) -}}
{{- end -}}
{{- .Files.Get "files/penstock.service"
  | replace "/usr/local/bin/penstock" (printf "%s/penstock" .Values.node.binDir)
  | replace "Before=containerd.service" (printf "Before=%s" (join " " $before))
  | replace "RequiresMountsFor=/var/lib/penstock /var/lib/containerd" (printf "RequiresMountsFor=%s" (join " " (compact (list "/var/lib/penstock" $place.root .Values.node.cacheDir)))) -}}
{{- end -}}

{{/* What files/node.sh is told. */}}
{{- define "penstock.nodeEnv" -}}
{{- $place := include "penstock.place" . | fromYaml -}}
- name: MODE
  value: {{ .Values.mode }}
- name: BIN_DIR
  value: {{ .Values.node.binDir }}
- name: CACHE_DIR
  value: {{ .Values.node.cacheDir | default "/var/lib/penstock/cache" }}
- name: MODULES
  value: {{ join " " .Values.node.modules | quote }}
- name: CONFIGURE
  value: {{ .Values.containerd.configure | quote }}
- name: RESTART
  value: {{ .Values.containerd.restart | quote }}
- name: CONTAINERD_CONFIG
  value: {{ $place.config }}
- name: CONTAINERD_DROP_IN
  value: {{ $place.dropIn | quote }}
- name: CONTAINERD_UNITS
  value: {{ $place.units | quote }}
- name: CONTAINERD_RELEASE
  value: {{ .Values.containerd.release | quote }}
- name: RUNTIME_CLASS
  value: {{ .Values.containerd.runtimeClass | quote }}
- name: FORCE
  value: {{ .Values.containerd.force | quote }}
- name: REMOVE_STATE
  value: {{ .Values.uninstall.removeState | quote }}
{{- end -}}

{{/* May do what root may on the node, in the node's own directories. */}}
{{- define "penstock.hostSecurity" -}}
privileged: true
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
{{- end -}}

{{/* Secrets, in the layout of /etc/penstock/secrets. */}}
{{- define "penstock.secrets" -}}
{{- with .Values.api.tokenSecret }}
- secret:
    name: {{ . }}
    items:
      - key: token
        path: api/token
{{- end }}
{{- with .Values.traces.tokenSecret }}
- secret:
    name: {{ . }}
    items:
      - key: token
        path: traces/token
{{- end }}
{{- with .Values.api.tlsSecret }}
- secret:
    name: {{ . }}
    items:
      - key: tls.crt
        path: tls/tls.crt
      - key: tls.key
        path: tls/tls.key
{{- end }}
{{- range .Values.credentials.secrets }}
- secret:
    name: {{ . }}
    items:
      - key: .dockerconfigjson
        path: registry-{{ . }}/.dockerconfigjson
{{- end }}
{{- end -}}

{{- define "penstock.probe" -}}
exec:
  command: [/usr/local/bin/penstock, version, --socket, /run/penstock/penstock.sock]
periodSeconds: {{ .Values.probes.periodSeconds }}
timeoutSeconds: {{ .Values.probes.timeoutSeconds }}
{{- end -}}
