package main

import (
	"context"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"

	"github.com/nodeproxy/nodeproxy/service"
)

// eventWriter writes Events to the API server, with kube-proxy's reasons and
// actions (docs/kube-proxy.md, "Events"). Without an API server it writes
// none. Its methods may be used concurrently and do not wait.
type eventWriter struct {
	recorder    events.EventRecorder
	broadcaster events.EventBroadcaster
	node        *v1.ObjectReference
}

const (
	actionStart  = "StartKubeProxy"
	actionListen = "Listen"
	actionServe  = "Serve"
)

func newEventWriter(client kubernetes.Interface, nodeName string) *eventWriter {
	w := &eventWriter{node: nodeReference(nodeName)}
	if client != nil {
		w.broadcaster = events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
		w.recorder = w.broadcaster.NewRecorder(scheme.Scheme, "nodeproxy")
	}
	return w
}

// run says that the agent was started, and sends events until ctx ends.
func (w *eventWriter) run(ctx context.Context) error {
	if w.broadcaster == nil {
		return nil
	}
	if err := w.broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	// Not earlier: without somebody who sends it, an Event is thrown away.
	w.recorder.Eventf(w.node, nil, v1.EventTypeNormal, "Starting", actionStart, "")
	<-ctx.Done()
	w.broadcaster.Shutdown()
	return nil
}

// serverFailed returns what reports that one of the two servers cannot start.
func (w *eventWriter) serverFailed(reason string) func(error) {
	return func(err error) {
		if w.recorder != nil {
			w.recorder.Eventf(w.node, nil, v1.EventTypeWarning, reason, actionStart, "%v", err)
		}
	}
}

// notServed reports a part of a Service that is not served. kube-proxy has no
// such Event.
func (w *eventWriter) notServed(name service.Name, p service.Problem) {
	if w.recorder != nil {
		w.recorder.Eventf(serviceReference(name), w.node, v1.EventTypeWarning, p.Reason, actionServe, "%s", p.Message)
	}
}

func serviceReference(name service.Name) *v1.ObjectReference {
	return &v1.ObjectReference{Kind: "Service", APIVersion: "v1", Namespace: name.Namespace, Name: name.Name}
}

func (w *eventWriter) healthCheckFailed(name service.Name, err error) {
	if w.recorder != nil {
		w.recorder.Eventf(serviceReference(name), nil, v1.EventTypeWarning, "FailedToStartServiceHealthcheck", actionListen, "%v", err)
	}
}
