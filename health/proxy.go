package health

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// Proxy answers /healthz and /livez as kube-proxy does (docs/kube-proxy.md,
// "Health servers"): load balancers ask the one whether to send traffic to this node,
// the kubelet asks the other whether the process is to be started again.
type Proxy struct {
	Syncs *SyncHealth
	// Eligible tells whether load balancers may use this node.
	Eligible func() bool
	// Probe, if set, is what the last look at the data path itself found; nil
	// if all was well.
	Probe func() error
	// Answered, if set, is told of each answer, for metrics.
	Answered func(path string, code int)
}

// familyHealth is the health of one family, as kube-proxy prints it.
type familyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// proxyHealth is the answer, as kube-proxy prints it.
type proxyHealth struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyHealth `json:"status,omitempty"`
}

// Handler serves both paths.
func (p *Proxy) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		h := p.health(time.Now())
		eligible := p.Eligible()
		h.NodeEligible = &eligible
		p.answer(w, "/healthz", h, h.Healthy && eligible)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		h := p.health(time.Now())
		p.answer(w, "/livez", h, h.Healthy)
	})
	return mux
}

// Healthy reports whether the proxy itself is well.
func (p *Proxy) Healthy() bool { return p.health(time.Now()).Healthy }

// health joins what is known. One sync serves both families, so they are alike.
func (p *Proxy) health(now time.Time) proxyHealth {
	healthy, updated := p.Syncs.Healthy(now)
	if p.Probe != nil && !updated.IsZero() && p.Probe() != nil {
		healthy = false
	}
	h := proxyHealth{LastUpdated: updated, CurrentTime: now, Healthy: healthy}
	if !updated.IsZero() {
		h.Status = map[string]familyHealth{}
		for _, f := range service.Families {
			h.Status[f.String()] = familyHealth{updated, healthy}
		}
	}
	return h
}

func (p *Proxy) answer(w http.ResponseWriter, path string, h proxyHealth, well bool) {
	code := http.StatusServiceUnavailable
	if well {
		// kube-proxy's meaning: all is up to date as of now.
		code, h.LastUpdated = http.StatusOK, h.CurrentTime
	}
	if p.Answered != nil {
		p.Answered(path, code)
	}
	text, err := json.Marshal(h)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	w.Write(text)
}
