// Package deploy holds what puts nodeproxy onto nodes: plain manifests, a Helm
// chart, a systemd unit, and the recipes of the container image and the Debian
// package. As Go it is nothing but the manifests, for the lab and for tests.
package deploy

import "embed"

// Files are the manifests, those that clean nodes up, and the chart.
//
//go:embed manifests cleanup all:chart
var Files embed.FS
