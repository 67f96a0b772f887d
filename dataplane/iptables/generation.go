package iptables

import "github.com/nodeproxy/nodeproxy/dataplane/netevents"

// generation returns a number that changes with every change of rules of this back
// end, and whether it has one: the legacy one has not.
func (k *kernel) generation() (uint32, bool) {
	if k.backend != BackendNFT {
		return 0, false
	}
	return netevents.RulesGeneration()
}
