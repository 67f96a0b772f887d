package source

import (
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// values warns of what the API server would refuse, or what has no meaning, and
// which would be taken for something else without a word.
func (w *warnings) values(in *v1.Service) {
	spec := &in.Spec
	oneOf(w, "spec.type", spec.Type, v1.ServiceTypeClusterIP, v1.ServiceTypeNodePort, v1.ServiceTypeLoadBalancer, v1.ServiceTypeExternalName)
	oneOf(w, "spec.externalTrafficPolicy", spec.ExternalTrafficPolicy, v1.ServiceExternalTrafficPolicyCluster, v1.ServiceExternalTrafficPolicyLocal)
	if p := spec.InternalTrafficPolicy; p != nil {
		oneOf(w, "spec.internalTrafficPolicy", *p, v1.ServiceInternalTrafficPolicyCluster, v1.ServiceInternalTrafficPolicyLocal)
	}
	oneOf(w, "spec.sessionAffinity", spec.SessionAffinity, v1.ServiceAffinityNone, v1.ServiceAffinityClientIP)
	if len(in.Status.LoadBalancer.Ingress) > 0 && spec.Type != v1.ServiceTypeLoadBalancer {
		w.add("status.loadBalancer.ingress", "its addresses are served, but spec.type is %s, for which no controller keeps them true: use LoadBalancer", orDefault(spec.Type))
	}
	if spec.LoadBalancerIP != "" && len(in.Status.LoadBalancer.Ingress) == 0 {
		w.add("spec.loadBalancerIP", "asks a load balancer for an address, and is none by itself: status.loadBalancer.ingress says what there is")
	}
}

func orDefault(t v1.ServiceType) v1.ServiceType {
	if t == "" {
		return v1.ServiceTypeClusterIP
	}
	return t
}

// oneOf warns of a value that is not empty and none of those that there are.
func oneOf[T ~string](w *warnings, field string, value T, known ...T) {
	if value == "" || slices.Contains(known, value) {
		return
	}
	var names []string
	for _, k := range known {
		names = append(names, string(k))
	}
	last := len(names) - 1
	w.add(field, "%q: use %s or %s", value, strings.Join(names[:last], ", "), names[last])
}
