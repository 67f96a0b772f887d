package forward

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/proxy"
)

// Target is what a path of the API server's proxy names.
type Target struct {
	Kind      string // services or pods
	Namespace string
	Name      string
	Port      string // a number or a name; empty for the only one
	TLS       bool
}

// String is the target as it stands in a path.
func (t Target) String() string {
	name := t.Name
	if t.TLS {
		name = "https:" + name
	}
	if t.Port != "" {
		name += ":" + t.Port
	}
	return "/api/v1/namespaces/" + t.Namespace + "/" + t.Kind + "/" + name + "/proxy"
}

// ParsePath reads /api/v1/namespaces/NAMESPACE/services/[https:]NAME[:PORT]/proxy/REST,
// and the same with pods.
func ParsePath(path string) (t Target, rest string, err error) {
	parts := strings.SplitN(strings.TrimPrefix(path, "/api/v1/namespaces/"), "/", 5)
	if !strings.HasPrefix(path, "/api/v1/namespaces/") || len(parts) < 4 || parts[3] != "proxy" || parts[1] != "services" && parts[1] != "pods" {
		return t, "", fmt.Errorf("path %s: use /api/v1/namespaces/NAMESPACE/services/[https:]NAME[:PORT]/proxy/, or pods", path)
	}
	t = Target{Namespace: parts[0], Kind: parts[1]}
	words := strings.Split(parts[2], ":")
	switch {
	case len(words) == 1:
		t.Name = words[0]
	case len(words) == 2:
		t.Name, t.Port = words[0], words[1]
		if t.Name == "https" || t.Name == "http" { // without a port
			t.TLS, t.Name, t.Port = t.Name == "https", words[1], ""
		}
	case len(words) == 3 && (words[0] == "http" || words[0] == "https" || words[0] == ""):
		t.TLS, t.Name, t.Port = words[0] == "https", words[1], words[2]
	default:
		return t, "", fmt.Errorf("%s: use [https:]NAME[:PORT]", parts[2])
	}
	rest = "/"
	if len(parts) == 5 {
		rest += parts[4]
	}
	return t, rest, nil
}

// NotFoundError says in words that what a request names does not exist.
type NotFoundError struct{ What string }

// Error implements error.
func (e NotFoundError) Error() string { return e.What }

// Proxy answers requests under the API server's paths for the proxies of
// Services and Pods. Find chooses an endpoint. As the API server does, it does
// not look at the certificates of https: endpoints, and links of HTML pages that
// lead to the endpoint are made to lead here.
type Proxy struct {
	Find func(*http.Request, Target) (netip.AddrPort, error)
}

// ServeHTTP implements [http.Handler]. A name in the Host header other than
// localhost is refused, and so is what a page of another origin makes a browser
// ask, websockets too: else a page of the web could reach Services (DNS rebinding,
// cross-site requests).
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !isLocalName(r.Host) {
		http.Error(w, "ask by address or as localhost", http.StatusForbidden)
		return
	}
	if isCrossSite(r) {
		http.Error(w, "requests of another site's page are refused", http.StatusForbidden)
		return
	}
	target, rest, err := ParsePath(r.URL.EscapedPath())
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	to, err := p.Find(r, target)
	if missing := (NotFoundError{}); errors.As(err, &missing) {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	path, err := url.PathUnescape(rest)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	scheme := map[bool]string{true: "https", false: "http"}[target.TLS]
	(&httputil.ReverseProxy{
		// It also leads redirects within the endpoint here again.
		Transport: &proxy.Transport{PathPrepend: target.String(), RoundTripper: transport},
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.Host = scheme, to.String(), ""
			pr.Out.URL.Path, pr.Out.URL.RawPath = path, rest
			pr.SetXForwarded()
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		},
	}).ServeHTTP(w, r)
}

var transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 4, ForceAttemptHTTP2: true}

// isCrossSite reports whether a browser asks for a page of another origin: by its
// own word (Sec-Fetch-Site of Fetch Metadata), or by the Origin of RFC 6454, which
// a websocket's handshake always has. What is no browser sends neither.
func isCrossSite(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	default:
		return true
	}
	for _, origin := range r.Header.Values("Origin") {
		if u, err := url.Parse(origin); err != nil || !strings.EqualFold(u.Host, r.Host) { // "null" has no host
			return true
		}
	}
	return false
}

func isLocalName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil
}
