// Package service says what a cluster's Services are, as far as a node proxy
// reads them, and works out what one node must translate.
//
// [State] holds the objects, [Config] what this node was told, and
// [Resolver] joins them into a [Table]. Everything here is pure: no clock, no
// kernel, no Kubernetes client, and nothing imported but the standard library.
// The rules are those of the Service API as kube-proxy keeps them.
package service
