package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
)

// ErrNoAgent means that no agent answers on the socket.
var ErrNoAgent = errors.New("no agent answers")

// Get asks the agent that serves a socket, and decodes its answer.
func Get(ctx context.Context, socket, path string, query url.Values, into any) error {
	return ask(ctx, http.MethodGet, socket, path, query, into)
}

// Post tells the agent that serves a socket to do something, and waits for it.
func Post(ctx context.Context, socket, path string) error {
	return ask(ctx, http.MethodPost, socket, path, nil, &struct{}{})
}

func ask(ctx context.Context, method, socket, path string, query url.Values, into any) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	u := url.URL{Scheme: "http", Host: "agent", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w on %s", ErrNoAgent, socket)
	case err != nil:
		return fmt.Errorf("ask agent: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read answer of agent: %w", err)
	}
	return nil
}
