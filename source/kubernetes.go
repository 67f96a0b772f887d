package source

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// nodePatience is how long a first batch waits for this Node to be in the
	// API (kube-proxy's time); it is used whenever it comes.
	nodePatience = 30 * time.Second
	// apiBackoffMin and apiBackoffMax bound the wait between two tries to reach
	// an API server, but for half of it more at random. client-go's own go up to
	// a minute. They are forgotten two minutes after the last failure only, so a
	// watch that is dropped soon after an outage waits for the longest.
	apiBackoffMin = 200 * time.Millisecond
	apiBackoffMax = 5 * time.Second
)

// Kubernetes follows the Services, the EndpointSlices and the one Node of a
// Kubernetes API server, with kube-proxy's selectors.
//
// It is built of client-go's reflectors, the lower half of informers: their
// upper half would keep every object a second time. A list that a reflector
// had to repeat replaces the whole set. While the API server cannot be
// reached nothing is reported, so that what works stays.
type Kubernetes struct {
	Client   kubernetes.Interface
	NodeName string
	Log      *slog.Logger

	gather   *gather
	complete atomic.Bool // the first batch was handed on
	link     apiLink
	warned   sync.Map // object in words to the warnings that were logged of it
}

// Run hands what the API server holds to emit, complete at first and then by
// change, until ctx ends, whose error it returns. emit is called from one
// goroutine. Nothing is handed on before all was listed once.
func (k *Kubernetes) Run(ctx context.Context, emit func(service.Changes)) error {
	k.gather = newGather()
	k.link.log = k.Log
	// Reflectors report each failure again and again; apiLink does it once.
	quiet := klog.NewContext(ctx, logr.Discard())
	var done sync.WaitGroup
	defer done.Wait()
	for _, r := range k.reflectors() {
		done.Go(func() { r.RunWithContext(quiet) })
	}
	var patience <-chan time.Time
	withoutNode := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-patience:
			withoutNode = true
			k.Log.Warn("this Node is not in the API; going on without its zone and Pod CIDRs", "node", k.NodeName)
		case <-k.gather.wake:
		}
		if patience == nil && k.gather.withoutNode() {
			patience = time.After(nodePatience)
			k.Log.Info("waiting for this Node to be in the API", "node", k.NodeName, "patience", nodePatience)
		}
		if c, ok := k.gather.take(withoutNode); ok {
			emit(c)
			k.complete.Store(true)
		}
	}
}

// reflectors returns one reflector for each kind.
func (k *Kubernetes) reflectors() []*cache.Reflector {
	services := k.Client.CoreV1().Services(metav1.NamespaceAll)
	slices := k.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceAll)
	nodes := k.Client.CoreV1().Nodes()
	return []*cache.Reflector{
		reflectorOf(&k.link, "Services", services, &v1.Service{}, k.serviceStore(), func(o *metav1.ListOptions) {
			o.LabelSelector = "!" + labelServiceProxyName
			o.FieldSelector = fields.OneTermNotEqualSelector("spec.clusterIP", v1.ClusterIPNone).String()
		}),
		reflectorOf(&k.link, "EndpointSlices", slices, &discovery.EndpointSlice{}, k.sliceStore(), func(o *metav1.ListOptions) {
			o.LabelSelector = "!" + v1.IsHeadlessService
		}),
		reflectorOf(&k.link, "Node", nodes, &v1.Node{}, k.nodeStore(), func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, k.NodeName).String()
		}),
	}
}

// reflectorOf returns a reflector of one kind.
func reflectorOf[L listObject](link *apiLink, what string, api listWatcher[L], example any, store cache.ReflectorStore,
	selectors func(*metav1.ListOptions)) *cache.Reflector {
	lw := listWatch(link, what, api, selectors)
	logger := logr.Discard()
	return cache.NewReflectorWithOptions(lw, example, store, cache.ReflectorOptions{
		Name: what, Logger: &logger,
		Backoff: &wait.Backoff{Duration: apiBackoffMin, Cap: apiBackoffMax, Steps: 10, Factor: 2, Jitter: 0.5},
	})
}

func (k *Kubernetes) serviceStore() cache.ReflectorStore {
	g := k.gather
	return &store[service.Name, service.Service]{gather: g, kind: &g.services,
		convert: func(obj any) (key service.Name, out *service.Service) {
			in, ok := obj.(*v1.Service)
			if !ok {
				return key, nil
			}
			out, w := convertService(in)
			k.warn("Service "+out.Name.String(), w)
			return out.Name, out
		},
	}
}

func (k *Kubernetes) sliceStore() cache.ReflectorStore {
	g := k.gather
	return &store[service.Name, service.EndpointSlice]{gather: g, kind: &g.slices,
		convert: func(obj any) (key service.Name, out *service.EndpointSlice) {
			in, ok := obj.(*discovery.EndpointSlice)
			if !ok {
				return key, nil
			}
			key = service.Name{Namespace: in.Namespace, Name: in.Name}
			out, w := convertEndpointSlice(in)
			k.warn("EndpointSlice "+key.String(), w)
			return key, out
		},
	}
}

// nodeStore reports a Node that is gone as one that is being deleted: what
// still runs here keeps its zone and its Pod CIDRs, and /healthz says so.
func (k *Kubernetes) nodeStore() cache.ReflectorStore {
	g := k.gather
	var last *service.Node
	return &store[string, service.Node]{gather: g, kind: &g.nodes,
		convert: func(obj any) (key string, out *service.Node) {
			in, ok := obj.(*v1.Node)
			if !ok {
				return key, nil
			}
			out, w := convertNode(in)
			k.warn("Node "+out.Name, w)
			last = out
			return out.Name, out
		},
		farewell: func() *service.Node {
			if last == nil {
				return nil
			}
			leaving := *last
			leaving.Deleting = true
			return &leaving
		},
	}
}

// warn logs what of an object was passed over, once as long as it stays so.
func (k *Kubernetes) warn(what string, w warnings) {
	if len(w) == 0 {
		k.warned.Delete(what)
		return
	}
	text := strings.Join(w, "; ")
	if before, ok := k.warned.Swap(what, text); ok && before == text {
		return
	}
	k.Log.Warn("object holds what is not used", "object", what, "ignored", text)
}

// store is where a reflector puts its objects: it converts them and keeps none.
type store[K comparable, V any] struct {
	gather  *gather
	kind    *gathered[K, V]
	convert func(obj any) (K, *V) // nil for an object that is not used
	// farewell, if set, gives the last state of an object that is gone.
	farewell func() *V
}

// Transformer makes a reflector convert objects while a list still streams in,
// so that it never holds all of them in full.
func (s *store[K, V]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		meta, ok := obj.(metav1.Object)
		if !ok {
			return obj, nil
		}
		key, value := s.convert(obj)
		return &converted[K, V]{
			ObjectMeta: metav1.ObjectMeta{Namespace: meta.GetNamespace(), Name: meta.GetName(), ResourceVersion: meta.GetResourceVersion()},
			key:        key, value: value,
		}, nil
	}
}

// converted stands for an object in the lists of a reflector.
type converted[K comparable, V any] struct {
	metav1.ObjectMeta
	key   K
	value *V
}

func (s *store[K, V]) read(obj any) (K, *V) {
	if c, ok := obj.(*converted[K, V]); ok {
		return c.key, c.value
	}
	return s.convert(obj)
}

func (s *store[K, V]) Add(obj any) error {
	key, value := s.read(obj)
	s.gather.change(func() {
		if value == nil {
			s.kind.remove(key)
		} else {
			s.kind.set(key, value)
		}
	})
	return nil
}

func (s *store[K, V]) Update(obj any) error { return s.Add(obj) }

func (s *store[K, V]) Delete(obj any) error {
	key, _ := s.read(obj)
	s.gather.change(func() { s.gone(key) })
	return nil
}

// gone removes an object, or reports its last state.
func (s *store[K, V]) gone(key K) {
	if s.farewell != nil {
		if value := s.farewell(); value != nil {
			s.kind.set(key, value)
			return
		}
	}
	s.kind.remove(key)
}

func (s *store[K, V]) Replace(list []any, _ string) error {
	all := make(map[K]*V, len(list))
	for _, obj := range list {
		if key, value := s.read(obj); value != nil {
			all[key] = value
		}
	}
	s.gather.change(func() {
		if s.farewell != nil {
			for key := range s.kind.known {
				if value := s.farewell(); all[key] == nil && value != nil {
					all[key] = value
				}
			}
		}
		s.kind.replace(all)
	})
	return nil
}

func (s *store[K, V]) Resync() error { return nil }
