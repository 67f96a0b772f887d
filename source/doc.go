// Package source turns what describes a cluster, manifest files or the
// Kubernetes API, into changes of a [service.State].
package source
