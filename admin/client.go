package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"github.com/extip/extip/doctor"
	"github.com/extip/extip/driver"
)

// A Client asks a plugin over its control API. It may be used concurrently.
//
// Its errors are an *UnreachableError if no plugin answers, or the *Error that
// the plugin answered.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a Client for the socket at a path.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket, http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// About asks what runs.
func (c *Client) About(ctx context.Context) (about About, err error) {
	return about, c.look(ctx, "version", &about)
}

// Addresses asks for all external addresses that containers have.
func (c *Client) Addresses(ctx context.Context) ([]driver.Address, error) {
	var a Addresses
	err := c.look(ctx, "addresses", &a)
	return a.Addresses, err
}

// Networks asks for all networks of the plugin.
func (c *Client) Networks(ctx context.Context) ([]driver.NetworkInfo, error) {
	var n Networks
	err := c.look(ctx, "networks", &n)
	return n.Networks, err
}

// Reservations asks for all of them.
func (c *Client) Reservations(ctx context.Context) ([]Reservation, error) {
	var r Reservations
	err := c.look(ctx, "reservations", &r)
	return r.Reservations, err
}

// Hosts asks for the hosts that share addresses.
func (c *Client) Hosts(ctx context.Context) ([]driver.Member, error) {
	var h Hosts
	err := c.look(ctx, "hosts", &h)
	return h.Hosts, err
}

// Check asks in what the kernel differs from the records.
func (c *Client) Check(ctx context.Context) ([]string, error) {
	var d Differences
	err := c.look(ctx, "check", &d)
	return d.Differences, err
}

// Doctor asks what makes the host unfit.
func (c *Client) Doctor(ctx context.Context) ([]doctor.Finding, error) {
	var f Findings
	err := c.look(ctx, "doctor", &f)
	return f.Findings, err
}

// Trace asks how far a packet gets.
func (c *Client) Trace(ctx context.Context, question doctor.Question) ([]doctor.Step, error) {
	var s Steps
	err := c.look(ctx, "trace?"+query(question), &s)
	return s.Steps, err
}

// Live calls fn for each sighting of packets until ctx ends, which is no error,
// or the plugin goes.
func (c *Client) Live(ctx context.Context, question doctor.Question, fn func(doctor.Sighting) error) error {
	return follow(ctx, c, "live?"+query(question), fn)
}

func query(question doctor.Question) string {
	q := url.Values{"to": {question.To.String()}}
	if question.From.IsValid() {
		q.Set("from", question.From.String())
	}
	if question.Port > 0 {
		q.Set("port", strconv.Itoa(int(question.Port)))
	}
	if question.Proto > 0 {
		q.Set("proto", strconv.Itoa(int(question.Proto)))
	}
	return q.Encode()
}

// Export asks for what there should be on the host, in a format.
func (c *Client) Export(ctx context.Context, format string) (string, error) {
	var e Export
	err := c.look(ctx, "export?"+url.Values{"format": {format}}.Encode(), &e)
	return e.Text, err
}

// Attach, Detach, Move, Filter, Limit, Reserve, Unreserve and Reconcile ask for
// changes. The report is also set where only a part of one could be done.
func (c *Client) Attach(ctx context.Context, q AttachRequest) (driver.Report, error) {
	return c.change(ctx, "attach", q)
}

// Detach is described with Attach.
func (c *Client) Detach(ctx context.Context, q DetachRequest) (driver.Report, error) {
	return c.change(ctx, "detach", q)
}

// Move is described with Attach.
func (c *Client) Move(ctx context.Context, q MoveRequest) (driver.Report, error) {
	return c.change(ctx, "move", q)
}

// Filter is described with Attach.
func (c *Client) Filter(ctx context.Context, q FilterRequest) (driver.Report, error) {
	return c.change(ctx, "filter", q)
}

// Limit is described with Attach.
func (c *Client) Limit(ctx context.Context, q LimitRequest) (driver.Report, error) {
	return c.change(ctx, "limit", q)
}

// Adopt is described with Attach.
func (c *Client) Adopt(ctx context.Context, q AdoptRequest) (driver.Report, error) {
	return c.change(ctx, "adopt", q)
}

// Reserve is described with Attach.
func (c *Client) Reserve(ctx context.Context, q ReserveRequest) (driver.Report, error) {
	return c.change(ctx, "reserve", q)
}

// Unreserve is described with Attach.
func (c *Client) Unreserve(ctx context.Context, q UnreserveRequest) (driver.Report, error) {
	return c.change(ctx, "unreserve", q)
}

// Reconcile is described with Attach.
func (c *Client) Reconcile(ctx context.Context, q ReconcileRequest) (driver.Report, error) {
	return c.change(ctx, "reconcile", q)
}

// Events calls fn for each event until ctx ends, which is no error, or the
// plugin goes.
func (c *Client) Events(ctx context.Context, fn func(driver.Event) error) error {
	return follow(ctx, c, "events", fn)
}

// follow calls fn for each line of an answer that has no end.
func follow[V any](ctx context.Context, c *Client, path string, fn func(V) error) error {
	body, err := c.ask(ctx, http.MethodGet, path, nil)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	decode := json.NewDecoder(body)
	for {
		var v V
		switch err := decode.Decode(&v); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return &UnreachableError{c.socket, fmt.Errorf("it tells no more: %w", err)}
		}
		if err := fn(v); err != nil {
			return err
		}
	}
}

func (c *Client) look(ctx context.Context, path string, answer any) error {
	body, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return c.read(body, answer)
}

func (c *Client) change(ctx context.Context, path string, request any) (report driver.Report, err error) {
	b, err := json.Marshal(request)
	if err != nil {
		return report, err
	}
	body, err := c.ask(ctx, http.MethodPost, path, b)
	if err != nil {
		if e := (*Error)(nil); errors.As(err, &e) && e.Report != nil {
			report = *e.Report
		}
		return report, err
	}
	return report, c.read(body, &report)
}

// ask returns the body of a good answer, which is to be closed.
func (c *Client) ask(ctx context.Context, method, path string, request []byte) (io.ReadCloser, error) {
	// The host of the URL is of no meaning on a unix socket.
	url := fmt.Sprintf("http://extip/v%d/%s", apiVersion, path)
	q, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(request))
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(q)
	if err != nil {
		return nil, &UnreachableError{c.socket, err}
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	var answer struct {
		Error *Error `json:"error"`
	}
	if err := c.read(res.Body, &answer); err != nil || answer.Error == nil {
		return nil, &UnreachableError{c.socket, fmt.Errorf("what answers is not extip: %s", res.Status)}
	}
	return nil, answer.Error
}

func (c *Client) read(body io.ReadCloser, answer any) error {
	defer func() { _ = body.Close() }()
	if err := json.NewDecoder(body).Decode(answer); err != nil {
		return &UnreachableError{c.socket, fmt.Errorf("the answer is not understood: %w", err)}
	}
	return nil
}
