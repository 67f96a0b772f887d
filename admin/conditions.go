package admin

import (
	"fmt"
	"strings"
	"time"
)

// Condition is one aspect of how an agent is, as conditions of Kubernetes objects
// are.
type Condition struct {
	Type string `json:"type"`
	// Status is True, which is good for each type, False, or Unknown.
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// The conditions.
const (
	// Ready means that the node serves what the source said: Synced and DataPath are
	// true, and no change has waited for too long.
	Ready = "Ready"
	// SourceReached means that the source can be read now.
	SourceReached = "SourceReached"
	// Synced means that the kernel was given all of it.
	Synced = "Synced"
	// DataPath means that probes go through our rules or programs.
	DataPath = "DataPath"
	// NothingIgnored means that every object is served as it is written.
	NothingIgnored = "NothingIgnored"
)

// syncPatience is how long a sync may run before it counts as one that hangs.
const syncPatience = 30 * time.Second

// SetConditions works the conditions out of what else the Status says.
func (s *Status) SetConditions(now time.Time) {
	source := s.sourceCondition()
	synced := s.syncedCondition(now)
	path := condition(DataPath, s.DataPath == "", "ProbesPass", "ProbesFail", s.DataPath)
	ready := Condition{Ready, "True", "Serving", ""}
	for _, c := range []Condition{synced, path} {
		if c.Status != "True" && ready.Status == "True" {
			ready = Condition{Ready, "False", c.Reason, c.Message}
		}
	}
	if ready.Status == "True" && !s.Healthy {
		ready = Condition{Ready, "False", "ChangesWait", "a change has waited for longer than two sync periods"}
	}
	if ready.Reason == "NothingListed" {
		ready.Message = source.Message
	}
	s.Conditions = []Condition{ready, source, synced, path, s.ignoredCondition()}
}

// Condition returns the condition of a type; its Status is Unknown if there is none.
func (s *Status) Condition(kind string) Condition {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return Condition{Type: kind, Status: "Unknown"}
}

func condition(kind string, good bool, yes, no, message string) Condition {
	if good {
		return Condition{kind, "True", yes, ""}
	}
	return Condition{kind, "False", no, message}
}

func (s *Status) sourceCondition() Condition {
	return condition(SourceReached, s.SourceProblem == "", "Followed", "CannotRead", s.SourceProblem)
}

func (s *Status) syncedCondition(now time.Time) Condition {
	switch {
	case s.Syncing != nil && now.Sub(*s.Syncing) > syncPatience:
		return Condition{Synced, "False", "SyncHangs", fmt.Sprintf("a sync has been running for %s", now.Sub(*s.Syncing).Round(time.Second))}
	case s.LastSync == nil:
		return Condition{Synced, "False", "NothingListed", "the source has not said yet what there is"}
	case s.LastSync.Error != "":
		return Condition{Synced, "False", "SyncFailed", s.LastSync.Error}
	}
	return Condition{Synced, "True", "KernelUpToDate", ""}
}

// maxNamed bounds the list in a condition's message; all are in Problems and Ignored.
const maxNamed = 3

func (s *Status) ignoredCondition() Condition {
	var all []string
	for _, p := range s.Problems {
		all = append(all, p.Service+": "+p.Message)
	}
	all = append(all, s.Ignored...)
	message := strings.Join(all[:min(maxNamed, len(all))], "; ")
	if more := len(all) - maxNamed; more > 0 {
		message += fmt.Sprintf("; and %d more", more)
	}
	if s.Uncounted && len(all) == 0 {
		return Condition{NothingIgnored, "Unknown", "NotCounted", ""}
	}
	return condition(NothingIgnored, len(all) == 0, "AllServed", "PartsIgnored", message)
}
