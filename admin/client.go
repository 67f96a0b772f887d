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
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrNoAgent means that no agent answers on the socket.
var ErrNoAgent = errors.New("no agent answers")

// answerPatience bounds the wait for an agent that is looked for.
const answerPatience = time.Second

// Answering returns the instances whose agents answer on this machine, sorted. It is
// empty where the directory of sockets cannot be read.
func Answering() []string { return answering(Dir) }

func answering(dir string) (out []string) {
	sockets, _ := filepath.Glob(filepath.Join(dir, "*.sock")) // the pattern is right
	slices.Sort(sockets)
	for _, socket := range sockets {
		conn, err := net.DialTimeout("unix", socket, answerPatience)
		if err != nil {
			continue // of an agent that was killed
		}
		conn.Close()
		out = append(out, strings.TrimSuffix(filepath.Base(socket), ".sock"))
	}
	return out
}

// noAgent says that none answers on a socket, and which others do.
func noAgent(socket string) error {
	others := answering(filepath.Dir(socket))
	if len(others) == 0 {
		return fmt.Errorf("%w on %s", ErrNoAgent, socket)
	}
	more := ""
	if n := len(others) - maxNamed; n > 0 {
		others, more = others[:maxNamed], fmt.Sprintf(" or one of %d more", n)
	}
	for i, name := range others {
		others[i] = "--instance " + name
	}
	return fmt.Errorf("%w on %s (one does with %s%s)", ErrNoAgent, socket, strings.Join(others, " or "), more)
}

// Get asks the agent that serves a socket, and decodes its answer.
func Get(ctx context.Context, socket, path string, query url.Values, into any) error {
	return ask(ctx, http.MethodGet, socket, path, query, into)
}

// Post tells the agent that serves a socket to do something, and waits for it.
func Post(ctx context.Context, socket, path string) error {
	return ask(ctx, http.MethodPost, socket, path, nil, &struct{}{})
}

func ask(ctx context.Context, method, socket, path string, query url.Values, into any) error {
	resp, err := request(ctx, method, socket, path, query)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("read answer of agent: %w", err)
	}
	return nil
}

// Stream hands over the objects that an agent sends, one a line, until ctx ends
// or the agent does. ready is called when the agent has begun.
func Stream[T any](ctx context.Context, socket, path string, ready func(), do func(T)) error {
	resp, err := request(ctx, http.MethodGet, socket, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	ready()
	for lines := json.NewDecoder(resp.Body); ; {
		var v T
		err := lines.Decode(&v)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("the agent has ended")
		case err != nil:
			return fmt.Errorf("read answer of agent: %w", err)
		}
		do(v)
	}
}

// request sends a request, and returns an answer that says that all is well.
func request(ctx context.Context, method, socket, path string, query url.Values) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	u := url.URL{Scheme: "http", Host: "agent", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask agent: %w", err)
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, noAgent(socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: only root may ask the agent: use sudo", fs.ErrPermission)
	case err != nil:
		return nil, fmt.Errorf("ask agent: %w", err)
	case resp.StatusCode == http.StatusOK:
		return resp, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("ask agent: %w", err)
	}
	return nil, errors.New(strings.TrimSpace(string(body)))
}
