package dataplane

import (
	"github.com/nodeproxy/nodeproxy/service"
)

// Refuser is a [Dataplane] that leaves out a Service which does not fit or which
// the kernel refuses, and programs all others.
type Refuser interface {
	// Refused says, in words, why Services were left out at the last Sync. The map
	// must not be changed. It belongs to the goroutine that calls Sync.
	Refused() map[service.Name]string
}

// ReasonRefused is the reason of a [service.Problem] for a Service that is left out.
const ReasonRefused = "NotProgrammed"

// refusedBy asks the mode beneath all that wraps it.
func refusedBy(dp Dataplane) map[service.Name]string {
	for {
		if r, ok := dp.(Refuser); ok {
			return r.Refused()
		}
		w, ok := dp.(interface{ Mode() Dataplane })
		if !ok {
			return nil
		}
		dp = w.Mode()
	}
}

// reportRefused logs each Service that is left out, once as long as the reason
// stays, and each that is programmed again.
func (s *loopState) reportRefused(now map[service.Name]string) {
	for name, why := range now {
		if s.refused[name] == why {
			continue
		}
		s.Log.Error("Service is left out; all others are programmed", "service", name.String(), "error", why)
		if s.Problem != nil {
			s.Problem(name, service.Problem{Reason: ReasonRefused, Message: why})
		}
	}
	for name := range s.refused {
		if _, still := now[name]; !still {
			s.Log.Info("Service is not left out any more", "service", name.String())
		}
	}
	s.refused = now
}
