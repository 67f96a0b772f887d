package health

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"
)

// docs/kube-proxy.md, "Health servers", to the letter.
func TestHealthzAndLivez(t *testing.T) {
	updated := time.Now().Add(-time.Hour)
	late := NewSyncHealth(time.Minute)
	late.Synced(updated)
	late.Queued(time.Now().Add(-2 * time.Minute))
	synced := NewSyncHealth(time.Minute)
	synced.Synced(updated)
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		syncs          *SyncHealth
		eligible       bool
		probe          error
		healthz, livez int
		healthy        bool
	}{
		"at first":       {NewSyncHealth(time.Minute), true, broken, 200, 200, true},
		"synced":         {synced, true, nil, 200, 200, true},
		"not eligible":   {synced, false, nil, 503, 200, true},
		"late":           {late, true, nil, 503, 503, false},
		"data path dead": {synced, true, broken, 503, 503, false},
	} {
		var answered []int
		p := &Proxy{Syncs: test.syncs, Eligible: func() bool { return test.eligible }, Probe: func() error { return test.probe },
			Answered: func(_ string, code int) { answered = append(answered, code) }}
		for path, code := range map[string]int{"/healthz": test.healthz, "/livez": test.livez} {
			before := time.Now()
			w := httptest.NewRecorder()
			p.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			if w.Code != code || w.Header().Get("Content-Type") != "application/json" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: %s: %d, want %d; %v", name, path, w.Code, code, w.Header())
			}
			var body map[string]any
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
				t.Fatal(err)
			}
			eligible, has := body["nodeEligible"]
			if has != (path == "/healthz") || has && eligible != test.eligible || body["healthy"] != test.healthy {
				t.Errorf("%s: %s: %s", name, path, w.Body)
			}
			last, err := time.Parse(time.RFC3339Nano, body["lastUpdated"].(string))
			if err != nil || code == 200 && last.Before(before.Add(-time.Millisecond)) || code == 503 && !last.Equal(updated.Round(0)) {
				t.Errorf("%s: %s: lastUpdated %s: %v", name, path, last, err)
			}
			if _, has := body["status"]; has != (name != "at first") {
				t.Errorf("%s: %s: %s", name, path, w.Body)
			}
		}
		slices.Sort(answered)
		if want := []int{min(test.healthz, test.livez), max(test.healthz, test.livez)}; !slices.Equal(answered, want) {
			t.Errorf("%s: answers %v, want %v", name, answered, want)
		}
	}
}
