// Package controlplane runs a real API server in a lab: etcd and
// kube-apiserver, with RBAC, and keeps the lab's objects there.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/nodeproxy/nodeproxy/lab"
)

const (
	place      = "control-plane"
	apiserver  = "kube-apiserver" // as a program and as a process of the lab
	etcd       = "etcd"
	adminToken = "admin"
	// readyTimeout bounds the start of both programs.
	readyTimeout = 3 * time.Minute
)

// Server is an API server in a lab's place control-plane. It is a [lab.Store].
type Server struct {
	// Client may do everything, without a rate limit.
	Client kubernetes.Interface
	// Config is what Client was made of: it dials in the lab.
	Config *rest.Config

	lab   *lab.Lab
	bin   string
	dir   string
	url   string
	files map[string][]object // what was applied, by file
}

// CheckPrograms reports whether the directory bin holds what [Start] starts. The error
// says what to do.
func CheckPrograms(bin string) error {
	for _, name := range []string{etcd, apiserver} {
		if _, err := exec.LookPath(filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("--kube-bin %q: it holds no program %s: make kube builds it in bin/kube", bin, name)
		}
	}
	return nil
}

// Start starts etcd and kube-apiserver from the directory bin, makes the
// ServiceAccount of deploy/ with its RBAC, and writes a kubeconfig of it. All
// of it goes when the lab does.
func Start(ctx context.Context, l *lab.Lab, bin string) (*Server, error) {
	s := &Server{lab: l, bin: bin, dir: filepath.Join(l.StateDir(), place), files: map[string][]object{}}
	s.url = "https://" + net.JoinHostPort(lab.MustPlace(place).IPv4.String(), "6443")
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of the control plane: %w", err)
	}
	if err := s.writeCredentials(); err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(s.path("tls.crt"))
	if err != nil {
		return nil, err
	}
	s.Config = &rest.Config{Host: s.url, BearerToken: adminToken, TLSClientConfig: rest.TLSClientConfig{CAData: ca}, QPS: -1, Dial: s.Dial,
		WarningHandler: rest.NoWarnings{}}
	if s.Client, err = kubernetes.NewForConfig(s.Config); err != nil {
		return nil, fmt.Errorf("make a client of the lab's API server: %w", err)
	}
	if _, err := l.Start(place, etcd, s.etcdArgv()...); err != nil {
		return nil, err
	}
	if err := s.StartAPI(ctx); err != nil {
		return nil, err
	}
	return s, errors.Join(s.allocateLabRanges(ctx), s.applyDeploy(ctx), s.writeKubeconfig(ctx))
}

// StartAPI starts kube-apiserver, which [Server.StopAPI] may have stopped, and
// waits until it is ready.
func (s *Server) StartAPI(ctx context.Context) error {
	p, err := s.lab.Start(place, apiserver, s.apiArgv()...)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(readyTimeout); ; time.Sleep(50 * time.Millisecond) {
		err := s.Client.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		switch {
		case err == nil:
			return nil
		case !p.Running(), time.Now().After(deadline), ctx.Err() != nil:
			return fmt.Errorf("start kube-apiserver: %w; see %s", err, s.lab.LogPath(apiserver))
		}
	}
}

// StopAPI stops kube-apiserver; etcd keeps what there is.
func (s *Server) StopAPI() error { return s.lab.Kill(apiserver) }

// Dial dials as a process of the place control-plane does.
func (s *Server) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = s.lab.Do(place, func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) etcdArgv() []string {
	return []string{filepath.Join(s.bin, etcd), "--data-dir", s.path("etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn"}
}

func (s *Server) apiArgv() []string {
	return []string{filepath.Join(s.bin, apiserver),
		"--etcd-servers", "http://127.0.0.1:2379",
		"--bind-address", "0.0.0.0", "--secure-port", "6443", "--advertise-address", lab.MustPlace(place).IPv4.String(),
		"--tls-cert-file", s.path("tls.crt"), "--tls-private-key-file", s.path("tls.key"),
		"--token-auth-file", s.path("tokens.csv"), "--authorization-mode", "Node,RBAC",
		"--service-account-issuer", s.url, "--service-account-key-file", s.path("sa.key"),
		"--service-account-signing-key-file", s.path("sa.key"),
		// The first address of a range is the Service kubernetes's: the lab's
		// own range is added as a ServiceCIDR, whose addresses are all free.
		"--service-cluster-ip-range", "10.95.0.0/24,fd00:10:95::/112",
		"--endpoint-reconciler-type", "none", "--disable-admission-plugins", "ServiceAccount",
		"--allow-privileged", // as kubeadm sets it: kube-proxy's Pods are
		"--enable-priority-and-fairness=false", "--profiling=false"}
}

// writeCredentials makes the serving certificate, the key that signs tokens of
// ServiceAccounts, and the administrator's token.
func (s *Server) writeCredentials() error {
	p := lab.MustPlace(place)
	cert, key, err := certutil.GenerateSelfSignedCertKey(p.IPv4.String(), ips(p.Addrs()), []string{"kubernetes.default.svc"})
	if err != nil {
		return fmt.Errorf("make a certificate for the lab's API server: %w", err)
	}
	signing, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return fmt.Errorf("make a key for ServiceAccounts: %w", err)
	}
	for name, data := range map[string][]byte{
		"tls.crt": cert, "tls.key": key, "sa.key": signing,
		"tokens.csv": []byte(adminToken + ",admin,admin,system:masters\n"),
	} {
		if err := os.WriteFile(s.path(name), data, 0o600); err != nil {
			return fmt.Errorf("write credentials of the lab's API server: %w", err)
		}
	}
	return nil
}

func ips(addrs []netip.Addr) []net.IP {
	var out []net.IP
	for _, a := range addrs {
		out = append(out, a.AsSlice())
	}
	return out
}

// Kubeconfig is the path of a kubeconfig with the identity of deploy/'s
// ServiceAccount.
func (s *Server) Kubeconfig() string { return s.path("kubeconfig") }

// AdminKubeconfig is the path of a kubeconfig that may do everything.
func (s *Server) AdminKubeconfig() string { return AdminKubeconfig(s.lab) }

// AdminKubeconfig is the path of [Server.AdminKubeconfig] of the API server that some
// process has started in a lab.
func AdminKubeconfig(l *lab.Lab) string {
	return filepath.Join(l.StateDir(), place, "admin.kubeconfig")
}

// AgentArgs implements [lab.Store].
func (s *Server) AgentArgs(string) []string {
	return []string{"--source", "kubernetes", "--kubeconfig", s.Kubeconfig()}
}

// writeKubeconfig asks for a token of the ServiceAccount, as the kubelet does
// for a Pod of it.
func (s *Server) writeKubeconfig(ctx context.Context) error {
	token, err := s.Client.CoreV1().ServiceAccounts("kube-system").CreateToken(ctx, "nodeproxy",
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("ask for a token of the ServiceAccount: %w", err)
	}
	for path, token := range map[string]string{s.Kubeconfig(): token.Status.Token, s.AdminKubeconfig(): adminToken} {
		cfg := clientcmdapi.NewConfig()
		cfg.Clusters["lab"] = &clientcmdapi.Cluster{Server: s.url, CertificateAuthorityData: s.Config.CAData}
		cfg.AuthInfos["lab"] = &clientcmdapi.AuthInfo{Token: token}
		cfg.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "lab"}
		cfg.CurrentContext = "lab"
		if err := clientcmd.WriteToFile(*cfg, path); err != nil {
			return fmt.Errorf("write kubeconfig: %w", err)
		}
	}
	return nil
}
