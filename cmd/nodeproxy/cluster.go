package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/nodeproxy/nodeproxy/source"
)

// sourceKubernetes is the --source that means the API server.
const sourceKubernetes = "kubernetes"

// filePrefix begins a --source that means manifests.
const filePrefix = "file:"

// registerClient adds the flags that say how to reach the API server, which
// are kube-proxy's.
func registerClient(f *pflag.FlagSet, o *source.ClientOptions) {
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig of the API server, with --source kubernetes (default: the Pod's ServiceAccount)")
	f.StringVar(&o.Master, "master", "", "URL of the API server; overrides the kubeconfig's")
	f.StringVar(&o.ContentType, "kube-api-content-type", "application/vnd.kubernetes.protobuf", "content type of requests to the API server")
	f.Float32Var(&o.QPS, "kube-api-qps", 5, "most requests a second to the API server")
	f.IntVar(&o.Burst, "kube-api-burst", 10, "requests to the API server beyond --kube-api-qps that may come at once")
}

// inCluster reports whether this process runs in a Pod.
func inCluster() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" }

// chooseSource fills in --source where it was not given, and returns what is
// wrong with it.
func (o *runOptions) chooseSource() error {
	if o.source == "" && (inCluster() || o.client.Kubeconfig != "" || o.client.Master != "") {
		o.source = sourceKubernetes
	}
	switch {
	case o.source == sourceKubernetes:
		if !inCluster() && o.client.Kubeconfig == "" && o.client.Master == "" {
			return errors.New("--source kubernetes needs --kubeconfig or --master outside of a cluster")
		}
	case o.source == "":
		return errors.New("--source is missing: use --source file:PATH, a manifest file or a directory of them, or --kubeconfig")
	case !strings.HasPrefix(o.source, filePrefix) || o.source == filePrefix:
		return fmt.Errorf("--source %q: use kubernetes or file:PATH", o.source)
	}
	return nil
}

// openSource returns where Services come from, and the API server's client,
// which is nil where there is none.
func (o *runOptions) openSource(nodeName string, log *slog.Logger) (changeSource, kubernetes.Interface, error) {
	if path, ok := strings.CutPrefix(o.source, filePrefix); ok {
		return &source.File{Path: path, MaxSize: o.maxManifest, NodeName: nodeName, Log: log}, nil, nil
	}
	klog.SetSlogLogger(log) // client-go's
	o.client.UserAgent = "nodeproxy/" + versionNumber()
	client, err := o.client.Client()
	if err != nil {
		return nil, nil, err
	}
	return &source.Kubernetes{Client: client, NodeName: nodeName, Log: log}, client, nil
}
