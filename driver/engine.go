package driver

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"
)

// engineTimeout ends a question to the engine: while it starts, its socket
// accepts connections that nobody answers.
const engineTimeout = 3 * time.Second

// EngineSocket asks a Docker engine over its API's socket. It may be asked
// outside of the engine's calls only: while one is under way, the engine may be
// waiting for us.
type EngineSocket struct{ client http.Client }

// NewEngineSocket returns an EngineSocket for the socket at path, which need
// not exist yet.
func NewEngineSocket(path string) *EngineSocket {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &EngineSocket{http.Client{Timeout: engineTimeout, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Networks returns the ids of all networks that the engine has.
func (s *EngineSocket) Networks(ctx context.Context) ([]string, error) {
	var list []struct{ ID string }
	if err := s.get(ctx, "/networks", &list); err != nil {
		return nil, err
	}
	ids := make([]string, len(list))
	for i, n := range list {
		ids[i] = n.ID
	}
	return ids, nil
}

// Endpoints returns the endpoints of a network that containers have, with the
// containers' names.
func (s *EngineSocket) Endpoints(ctx context.Context, network string) (map[string]string, error) {
	var n struct {
		Containers map[string]struct{ Name, EndpointID string }
	}
	if err := s.get(ctx, "/networks/"+network, &n); err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, c := range n.Containers {
		names[c.EndpointID] = c.Name
	}
	return names, nil
}

func (s *EngineSocket) get(ctx context.Context, path string, v any) error {
	// The host of the URL is of no meaning on a unix socket.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return err
	}
	res, err := s.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the engine: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the engine: %s: %s", path, res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(v); err != nil {
		return fmt.Errorf("ask the engine: %s: %w", path, err)
	}
	return nil
}
