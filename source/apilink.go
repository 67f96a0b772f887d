package source

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// apiError says in one short line why a call to the API server failed, and what to do.
// verb and what name the call, such as list and Services. The error stays wrapped.
func apiError(verb, what string, err error) error {
	var call *url.Error
	if !errors.As(err, &call) {
		if isRefusal(err) {
			return &shortError{fmt.Sprintf("%s %s: %v; apply the agent's RBAC rules (deploy/manifests/rbac.yaml) or check --kubeconfig", verb, what, err), err}
		}
		return fmt.Errorf("%s %s: %w", verb, what, err)
	}
	return &shortError{fmt.Sprintf("cannot reach the API server at %s: %s; retrying, current rules are kept; check %s", serverOf(call.URL), causeOf(call), remedy(call)), err}
}

// shortError says less than the error that it stands for.
type shortError struct {
	text string
	err  error
}

// Error implements error.
func (e *shortError) Error() string { return e.text }

// Unwrap gives the whole error.
func (e *shortError) Unwrap() error { return e.err }

// serverOf is a URL without path and query.
func serverOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
}

// causeOf is the innermost error, without the addresses that those around it repeat.
func causeOf(call *url.Error) string {
	if call.Timeout() {
		return "no answer in time"
	}
	var err error = call
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return strings.TrimPrefix(err.Error(), "tls: ")
}

// remedy is what to check where a call did not get an answer.
func remedy(call *url.Error) string {
	text := call.Err.Error()
	switch {
	case strings.Contains(text, "x509") || strings.Contains(text, "tls:") || strings.Contains(text, "HTTPS client"):
		return "the certificates and the scheme in --kubeconfig or --master"
	case strings.Contains(text, "lookup"):
		return "the host name in --kubeconfig or --master, and this node's DNS"
	}
	return "that it runs, and the address in --kubeconfig or --master"
}

// isRefusal reports whether the server is there, and does not let us in.
func isRefusal(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)
}
