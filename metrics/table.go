package metrics

import (
	"maps"

	"github.com/nodeproxy/nodeproxy/service"
)

// contribution is what one Service, or all of them, add to the gauges.
type contribution struct {
	services, backends int
	noLocal            [2][2]int // by family, then internal and external
	problems           map[string]int
}

// policyLabels are the values of traffic_policy, in the order of noLocal.
var policyLabels = [2]string{"internal", "external"}

// count keeps the gauges that follow from the Table, at a cost in proportion to
// what has changed.
func (m *Metrics) count(s Sync) {
	before := maps.Clone(m.sums.problems)
	if s.Full {
		m.seen, m.sums = make(map[service.Name]contribution, len(s.Table.Services)), contribution{}
		for name, res := range s.Table.Services {
			m.replace(name, contributionOf(res))
		}
	}
	for _, name := range s.Changed {
		if res := s.Table.Services[name]; res != nil {
			m.replace(name, contributionOf(res))
		} else {
			m.replace(name, contribution{})
		}
	}
	m.services.Set(float64(m.sums.services))
	m.endpoints.Set(float64(m.sums.backends))
	for _, f := range service.Families {
		for i, policy := range policyLabels {
			m.noLocal.WithLabelValues(f.String(), policy).Set(float64(m.sums.noLocal[f][i]))
		}
	}
	for reason := range before {
		if m.sums.problems[reason] == 0 {
			m.problems.WithLabelValues(reason).Set(0)
		}
	}
	for reason, n := range m.sums.problems {
		m.problems.WithLabelValues(reason).Set(float64(n))
	}
}

// replace takes a Service's new contribution in place of its old one.
func (m *Metrics) replace(name service.Name, c contribution) {
	m.sums.add(m.seen[name], -1)
	m.sums.add(c, 1)
	if c.services == 0 && len(c.problems) == 0 {
		delete(m.seen, name)
	} else {
		m.seen[name] = c
	}
}

func (c *contribution) add(o contribution, sign int) {
	c.services += sign * o.services
	c.backends += sign * o.backends
	for f := range c.noLocal {
		for i := range c.noLocal[f] {
			c.noLocal[f][i] += sign * o.noLocal[f][i]
		}
	}
	for reason, n := range o.problems {
		if c.problems == nil {
			c.problems = map[string]int{}
		}
		if c.problems[reason] += sign * n; c.problems[reason] == 0 {
			delete(c.problems, reason)
		}
	}
}

// contributionOf counts one Service. A route that drops says that there are
// usable endpoints, and none that the policy allows here.
func contributionOf(res *service.Resolved) contribution {
	c := contribution{}
	if res.Served() {
		c.services = 1
	}
	for _, p := range res.Problems {
		if c.problems == nil {
			c.problems = map[string]int{}
		}
		c.problems[p.Reason]++
	}
	for i := range res.Ports {
		sp := &res.Ports[i]
		c.backends += max(len(sp.Backends[service.ListCluster]), len(sp.Backends[service.ListLocal]))
		var dropped [2]bool
		for j := range sp.Frontends {
			f := &sp.Frontends[j]
			if f.Kind == service.ClusterIP {
				dropped[0] = dropped[0] || f.Routes[service.FromPod].Action == service.Drop
			} else {
				dropped[1] = dropped[1] || f.Routes[service.FromOutside].Action == service.Drop
			}
		}
		for k, yes := range dropped {
			if yes {
				c.noLocal[sp.Family][k]++
			}
		}
	}
	return c
}
