package source

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// ClientOptions tell how to reach the API server, under kube-proxy's names.
type ClientOptions struct {
	Kubeconfig         string // path; with Master empty too, the Pod's ServiceAccount is used
	Master             string // URL, overrides the kubeconfig's
	ContentType        string // of what is sent; empty means protobuf
	AcceptContentTypes string // of what is received; empty means protobuf, then JSON
	QPS                float32
	Burst              int
	UserAgent          string
}

// Config returns the client configuration that the options ask for.
func (o ClientOptions) Config() (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	switch {
	case o.Kubeconfig == "" && o.Master == "":
		cfg, err = rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("find the API server: %w (give --kubeconfig or --master outside of a cluster)", err)
		}
	default:
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: o.Kubeconfig},
			&clientcmd.ConfigOverrides{ClusterInfo: clientcmdapi.Cluster{Server: o.Master}}).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("read kubeconfig %q: %w", o.Kubeconfig, err)
		}
	}
	cfg.ContentType, cfg.AcceptContentTypes = o.ContentType, o.AcceptContentTypes
	if cfg.ContentType == "" {
		cfg.ContentType = runtime.ContentTypeProtobuf
	}
	if cfg.AcceptContentTypes == "" && cfg.ContentType == runtime.ContentTypeProtobuf {
		cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	cfg.QPS, cfg.Burst, cfg.UserAgent = o.QPS, o.Burst, o.UserAgent
	return cfg, nil
}

// Client returns a client of the API server. It does not talk to it yet.
func (o ClientOptions) Client() (kubernetes.Interface, error) {
	cfg, err := o.Config()
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client of %s: %w", cfg.Host, err)
	}
	return client, nil
}
