package source

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// listWatcher is the part of a typed client that a reflector needs.
type listWatcher[L listObject] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// listObject is a list as a typed client returns it.
type listObject = runtime.Object

// listWatch returns what a reflector reads one kind with. Each outcome is told
// to link.
func listWatch[L listObject](link *apiLink, what string, api listWatcher[L], selectors func(*metav1.ListOptions)) cache.ListerWatcher {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			selectors(&opts)
			list, err := api.List(ctx, opts)
			link.outcome(ctx, "list", what, err)
			if err != nil {
				return nil, err
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			selectors(&opts)
			w, err := api.Watch(ctx, opts)
			link.outcome(ctx, "watch", what, err)
			return w, err
		},
	}
}

// apiLink tells in the log, once for each time, that the API server cannot be
// used, and that it can again. It is safe for concurrent use.
type apiLink struct {
	log *slog.Logger

	mu      sync.Mutex
	since   time.Time         // when the first of failing failed
	failing map[string]string // kinds that cannot be read, with the error
}

// outcome takes in how a call for objects of a kind went.
func (l *apiLink) outcome(ctx context.Context, verb, what string, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || errors.Is(err, context.Canceled) {
		return // our end, or a matter of course
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		err = apiError(verb, what, err)
	}
	before, failed := l.failing[what]
	switch {
	case err != nil:
		if l.failing == nil {
			l.failing = map[string]string{}
		}
		if len(l.failing) == 0 {
			l.since = time.Now()
		}
		// Where the server is away all kinds fail alike, and one line is enough;
		// where a permission is missing each kind has its own.
		if len(l.failing) == 0 || isRefusal(err) && before != err.Error() {
			l.log.Error("API server cannot be used; keeping the current rules", "error", err)
		}
		l.failing[what] = err.Error()
	case failed:
		delete(l.failing, what)
		if len(l.failing) == 0 {
			l.log.Info("API server can be used again", "after", time.Since(l.since).Round(time.Millisecond))
		}
	}
}
