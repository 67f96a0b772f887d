{{- /* Names begin with the release's, so that two releases are apart in the cluster too. */}}
{{- define "nodeproxy.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Cluster-scoped names hold the namespace too: a release's name is its namespace's only. */}}
{{- define "nodeproxy.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "nodeproxy.name" .) -}}
{{- end -}}

{{- define "nodeproxy.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "nodeproxy.name" .) -}}
{{- end -}}

{{- define "nodeproxy.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "nodeproxy.labels" -}}
{{ include "nodeproxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- /* An image is named by its digest where there is one. */}}
{{- define "nodeproxy.image" -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest | quote }}
{{- else -}}
{{ printf "%s:%s" .repository .tag | quote }}
{{- end -}}
{{- end -}}

{{- /* Where the file is: a ConfigMap as kubeadm's names its kubeconfig by this path. */}}
{{- define "nodeproxy.configDir" -}}
{{- if .Values.existingConfigMap }}/var/lib/kube-proxy{{ else }}/etc/nodeproxy{{ end -}}
{{- end -}}

{{- define "nodeproxy.capabilities" -}}
drop: [ALL]
add:
- NET_ADMIN    # iptables rules, conntrack, tc, routes and neighbours
- NET_RAW      # iptables asks the kernel over a raw socket
- BPF          # maps and programs
- PERFMON      # the verifier lets programs walk the kernel's types
- SYS_ADMIN    # enter Pods' network namespaces, mount /sys/fs/bpf where it is not, cgroups before Linux 6.9
- SYS_RESOURCE # oom_score_adj below 0, memory for maps before Linux 5.11
- SYS_MODULE   # iptables-legacy loads the modules that its rules need
- DAC_OVERRIDE # root's access to files that others own
{{- end -}}

{{- define "nodeproxy.hostMounts" -}}
- {name: run, mountPath: /run/nodeproxy}
- {name: xtables-lock, mountPath: /run/xtables.lock}
- {name: modules, mountPath: /lib/modules, readOnly: true}
- {name: bpf, mountPath: /sys/fs/bpf}
- {name: cgroup, mountPath: /sys/fs/cgroup}
- {name: sysctl, mountPath: /proc/sys/net}
- {name: netns, mountPath: /run/netns, mountPropagation: HostToContainer, readOnly: true}
{{- end -}}

{{- define "nodeproxy.hostVolumes" -}}
- name: run
  hostPath: {path: /run/nodeproxy, type: DirectoryOrCreate}
- name: xtables-lock  # shared with other programs that write rules
  hostPath: {path: /run/xtables.lock, type: FileOrCreate}
- name: modules
  hostPath: {path: /lib/modules}
- name: bpf  # maps and links outlive the container
  hostPath: {path: /sys/fs/bpf}
- name: cgroup
  hostPath: {path: /sys/fs/cgroup}
- name: sysctl  # conntrack's sysctls; a container's own /proc/sys is read-only
  hostPath: {path: /proc/sys/net}
- name: netns  # names of Pods' network namespaces, in which sockets of lost backends are ended
  hostPath: {path: /run/netns, type: DirectoryOrCreate}
{{- end -}}

{{- define "nodeproxy.securityContext" -}}
readOnlyRootFilesystem: true
seccompProfile:
  type: {{ .Values.seccompProfile.type }}
{{- if eq .Values.seccompProfile.type "Localhost" }}
  localhostProfile: {{ .Values.seccompProfile.localhostProfile }}  # in the program; narrower than a runtime's default
{{- end }}
appArmorProfile: {type: Unconfined}
capabilities: {{- include "nodeproxy.capabilities" . | nindent 2 }}
{{- end -}}

{{- /* The program's own profile is used, and has to get onto the node. */}}
{{- define "nodeproxy.ownProfile" -}}
{{- if and (eq .Values.seccompProfile.type "Localhost") (eq .Values.seccompProfile.localhostProfile "nodeproxy.json") -}}true{{- end -}}
{{- end -}}

{{- /* Of containers that need nothing. */}}
{{- define "nodeproxy.unprivileged" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
seccompProfile: {type: RuntimeDefault}
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* A container that installs the profile on the node, or removes it. Given root, image,
       name and action. */}}
{{- define "nodeproxy.profileContainer" -}}
- name: {{ .name }}
  image: {{ include "nodeproxy.image" .image }}
  imagePullPolicy: {{ .image.pullPolicy }}
  args: [seccomp-profile, --{{ .action }}=/var/lib/kubelet/seccomp]
  securityContext: {{- include "nodeproxy.unprivileged" .root | nindent 4 }}
  volumeMounts:
  - {name: seccomp, mountPath: /var/lib/kubelet/seccomp}
{{- end -}}

{{- define "nodeproxy.profileVolume" -}}
- name: seccomp  # where the kubelet looks for profiles
  hostPath: {path: {{ .Values.kubeletDir | default "/var/lib/kubelet" }}/seccomp, type: DirectoryOrCreate}
{{- end -}}

{{- /* What Pods of every DaemonSet here have alike: where they run, and as whom. */}}
{{- define "nodeproxy.placing" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
priorityClassName: {{ .Values.priorityClassName }}
hostNetwork: true
dnsPolicy: Default  # the cluster's DNS is a Service, which needs nodeproxy
tolerations: {{- toYaml .Values.tolerations | nindent 2 }}
{{- end -}}

{{- /* The agent's DaemonSet: of all nodes, or of the canary's. Given root, name, component,
       image, mode, extraArgs, nodeSelector and affinity. */}}
{{- define "nodeproxy.daemonset" -}}
{{- $ := .root -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ .name }}
  namespace: {{ $.Release.Namespace }}
  labels: {{- include "nodeproxy.labels" $ | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  selector:
    matchLabels: {{- include "nodeproxy.selector" $ | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  updateStrategy:
    type: RollingUpdate
    rollingUpdate: {maxUnavailable: {{ $.Values.maxUnavailable }}}  # translation goes on while an agent is replaced
  template:
    metadata:
      labels: {{- include "nodeproxy.labels" $ | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
      annotations:
        checksum/config: {{ toYaml $.Values.config | sha256sum }}
        {{- with $.Values.podAnnotations }}{{ toYaml . | nindent 8 }}{{ end }}
    spec:
      {{- include "nodeproxy.placing" $ | nindent 6 }}
      serviceAccountName: {{ include "nodeproxy.serviceAccount" $ }}
      nodeSelector: {{- toYaml .nodeSelector | nindent 8 }}
      {{- with .affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      terminationGracePeriodSeconds: 30
      {{- if include "nodeproxy.ownProfile" $ }}
      initContainers:  # the kubelet reads the profile when it makes the next container
      {{- include "nodeproxy.profileContainer" (dict "root" $ "image" .image "name" "seccomp-profile" "action" "install") | nindent 6 }}
      {{- end }}
      containers:
      - name: nodeproxy
        image: {{ include "nodeproxy.image" .image }}
        imagePullPolicy: {{ .image.pullPolicy }}
        args:
        - run
        - --source=kubernetes
        - --mode={{ .mode }}
        - --config={{ include "nodeproxy.configDir" $ }}/config.conf
        - --hostname-override=$(NODE_NAME)
        {{- with $.Values.instance }}
        - --instance={{ . }}
        {{- end }}
        {{- if $.Values.podMonitor.enabled }}
        - --metrics-bind-address=$(HOST_IP)
        {{- end }}
        {{- range .extraArgs }}
        - {{ . | quote }}
        {{- end }}
        env:
        - name: NODE_NAME
          valueFrom:
            fieldRef: {fieldPath: spec.nodeName}
        {{- if $.Values.podMonitor.enabled }}
        - name: HOST_IP
          valueFrom:
            fieldRef: {fieldPath: status.hostIP}
        {{- end }}
        {{- if $.Values.apiServer.host }}
        - {name: KUBERNETES_SERVICE_HOST, value: {{ $.Values.apiServer.host | quote }}}
        - {name: KUBERNETES_SERVICE_PORT, value: {{ $.Values.apiServer.port | quote }}}
        {{- end }}
        {{- if $.Values.podMonitor.enabled }}
        ports:
        - {name: metrics, containerPort: 10249}
        {{- end }}
        securityContext: {{- include "nodeproxy.securityContext" $ | nindent 10 }}
        livenessProbe:
          httpGet: {path: /livez, port: {{ $.Values.healthPort }}, host: 127.0.0.1}
          initialDelaySeconds: 30
          periodSeconds: 10
          failureThreshold: 6
        readinessProbe:  # a roll-out waits for each node's kernel to hold what the cluster says
          exec: {command: [nodeproxy, status{{ with $.Values.instance }}, --instance={{ . }}{{ end }}]}
          periodSeconds: 10
          timeoutSeconds: 5
        resources: {{- toYaml $.Values.resources | nindent 10 }}
        volumeMounts:
        - {name: config, mountPath: {{ include "nodeproxy.configDir" $ }}, readOnly: true}
        {{- include "nodeproxy.hostMounts" $ | nindent 8 }}
      volumes:
      - name: config
        configMap: {name: {{ $.Values.existingConfigMap | default (include "nodeproxy.name" $) }}}
      {{- include "nodeproxy.hostVolumes" $ | nindent 6 }}
      {{- if include "nodeproxy.ownProfile" $ }}
      {{- include "nodeproxy.profileVolume" $ | nindent 6 }}
      {{- end }}
{{- end -}}
