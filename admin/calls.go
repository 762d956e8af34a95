package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/extip/extip/doctor"
	"github.com/extip/extip/driver"
)

// apiVersion is in the path of every call. Within one version fields and calls
// are added, and nothing else changes.
const apiVersion = 1

// A call is a line of the API.
type call struct {
	method, path string
	// request and answer are what is sent and what comes back, as zero
	// values; request is nil for calls that send nothing.
	request, answer any
	// handle returns the answer. stream is set instead of it where that has
	// no end.
	handle func(*Server, *http.Request) (any, error)
	stream func(*Server, http.ResponseWriter, *http.Request) error
}

func (c call) pattern() string { return fmt.Sprintf("%s /v%d/%s", c.method, apiVersion, c.path) }

// calls is the whole API.
func calls() []call {
	return []call{
		look("version", func(s *Server) (About, error) { return s.about, nil }),
		look("addresses", func(s *Server) (Addresses, error) {
			addresses, err := s.plugin.Counted()
			if err != nil {
				s.log.WithError(err).Warn("counters of addresses are missing")
			}
			return Addresses{list(addresses)}, nil
		}),
		look("networks", func(s *Server) (Networks, error) { return Networks{list(s.plugin.NetworkInfos())}, nil }),
		look("reservations", func(s *Server) (Reservations, error) {
			records, err := s.plugin.Reservations()
			answer := Reservations{[]Reservation{}}
			for _, r := range records {
				answer.Reservations = append(answer.Reservations, Reservation{r.Name, list(r.Addresses), r.Created})
			}
			return answer, err
		}),
		look("hosts", func(s *Server) (Hosts, error) {
			members, err := s.plugin.Members()
			for i, m := range members {
				members[i].MACs = list(m.MACs)
			}
			return Hosts{list(members)}, err
		}),
		look("check", func(s *Server) (Differences, error) {
			lines, err := s.plugin.Check()
			return Differences{list(lines)}, err
		}),
		inquire("doctor", func(ctx context.Context, p Plugin, _ url.Values) (Findings, error) {
			found, err := p.Doctor(ctx)
			return Findings{list(found)}, err
		}),
		inquire("trace", func(ctx context.Context, p Plugin, q url.Values) (Steps, error) {
			question, err := questionOf(q)
			if err != nil {
				return Steps{}, err
			}
			steps, err := p.Trace(ctx, question)
			return Steps{list(steps)}, err
		}),
		{method: http.MethodGet, path: "live", answer: doctor.Sighting{}, stream: (*Server).live},
		inquire("export", func(_ context.Context, p Plugin, q url.Values) (Export, error) {
			text, err := p.Export(q.Get("format"))
			return Export{text}, err
		}),
		{method: http.MethodGet, path: "events", answer: driver.Event{}, stream: (*Server).events},
		change("attach", func(ctx context.Context, p Plugin, q AttachRequest) (driver.Report, error) {
			if q.Endpoint == "" {
				return driver.Report{}, failure(CodeBadRequest, "endpoint: it is missing")
			}
			return p.Attach(ctx, q.Endpoint, q.Addresses, q.DryRun)
		}),
		change("detach", func(ctx context.Context, p Plugin, q DetachRequest) (driver.Report, error) {
			if err := valid("address", q.Address); err != nil {
				return driver.Report{}, err
			}
			return p.Detach(ctx, q.Address, q.DryRun)
		}),
		change("move", func(ctx context.Context, p Plugin, q MoveRequest) (driver.Report, error) {
			if q.Endpoint == "" {
				return driver.Report{}, failure(CodeBadRequest, "endpoint: it is missing")
			}
			if err := valid("address", q.Address); err != nil {
				return driver.Report{}, err
			}
			return p.Move(ctx, q.Address, q.Endpoint, q.Drain, q.DryRun)
		}),
		change("filter", func(_ context.Context, p Plugin, q FilterRequest) (driver.Report, error) {
			if q.Endpoint == "" || q.Ports+q.Allow == "" {
				return driver.Report{}, failure(CodeBadRequest, "endpoint, and ports or allow: they are needed")
			}
			return p.SetFilter(q.Endpoint, q.Ports, q.Allow, q.DryRun)
		}),
		change("limit", func(_ context.Context, p Plugin, q LimitRequest) (driver.Report, error) {
			if q.Endpoint == "" || q.Limit == "" {
				return driver.Report{}, failure(CodeBadRequest, "endpoint and limit: both are needed")
			}
			return p.SetLimit(q.Endpoint, q.Limit, q.DryRun)
		}),
		change("reserve", func(_ context.Context, p Plugin, q ReserveRequest) (driver.Report, error) {
			if q.Name == "" || len(q.Addresses) == 0 {
				return driver.Report{}, failure(CodeBadRequest, "name and addresses: both are needed")
			}
			return p.Reserve(q.Name, q.Addresses, q.DryRun)
		}),
		change("unreserve", func(_ context.Context, p Plugin, q UnreserveRequest) (driver.Report, error) {
			if q.Name == "" {
				return driver.Report{}, failure(CodeBadRequest, "name: it is missing")
			}
			return p.Unreserve(q.Name, q.DryRun)
		}),
		change("adopt", func(ctx context.Context, p Plugin, q AdoptRequest) (driver.Report, error) {
			return p.Adopt(ctx, q.DryRun)
		}),
		change("reconcile", func(_ context.Context, p Plugin, q ReconcileRequest) (driver.Report, error) {
			if q.DryRun {
				lines, err := p.Check()
				return driver.Report{Done: lines}, err
			}
			lines, err := p.Reconcile("operator")
			return driver.Report{Done: lines}, err
		}),
	}
}

// look is a call that changes nothing.
func look[A any](path string, fn func(*Server) (A, error)) call {
	var answer A
	return call{
		method: http.MethodGet, path: path, answer: answer,
		handle: func(s *Server, _ *http.Request) (any, error) { return fn(s) },
	}
}

// inquire is a call that changes nothing, and takes its question from the query.
func inquire[A any](path string, fn func(context.Context, Plugin, url.Values) (A, error)) call {
	var answer A
	return call{
		method: http.MethodGet, path: path, answer: answer,
		handle: func(s *Server, r *http.Request) (any, error) { return fn(r.Context(), s.plugin, r.URL.Query()) },
	}
}

// questionOf reads a trace's question from a query: to, and port, proto, a
// protocol's number, and from, if they are given.
func questionOf(q url.Values) (question doctor.Question, err error) {
	if question.To, err = netip.ParseAddr(q.Get("to")); err != nil {
		return question, failure(CodeBadRequest, "to: %q is no address", q.Get("to"))
	}
	if text := q.Get("from"); text != "" {
		if question.From, err = netip.ParseAddr(text); err != nil {
			return question, failure(CodeBadRequest, "from: %q is no address", text)
		}
	}
	for _, number := range []struct {
		name string
		bits int
		to   func(uint64)
	}{{"port", 16, func(n uint64) { question.Port = uint16(n) }}, {"proto", 8, func(n uint64) { question.Proto = uint8(n) }}} {
		text := q.Get(number.name)
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, number.bits)
		if err != nil {
			return question, failure(CodeBadRequest, "%s: %q is no number, or too large", number.name, text)
		}
		number.to(n)
	}
	return question, nil
}

// change is a call that does, one line of the log each.
func change[Q any](path string, fn func(context.Context, Plugin, Q) (driver.Report, error)) call {
	var request Q
	return call{
		method: http.MethodPost, path: path, request: request, answer: driver.Report{},
		handle: func(s *Server, r *http.Request) (any, error) {
			var q Q
			if err := decode(r.Body, &q); err != nil {
				return nil, err
			}
			start := time.Now()
			report, err := fn(r.Context(), s.plugin, q)
			report.Done, report.Left = list(report.Done), list(report.Left)
			log := s.log.WithField("call", path).WithField("uid", peerOf(r.Context()).uid)
			if text, err := json.Marshal(q); err == nil {
				log = log.WithField("request", string(text))
			}
			log = log.WithField("ms", float64(time.Since(start).Microseconds())/1000)
			if err != nil {
				log.WithError(err).Error("refused")
				return nil, refused(err, report)
			}
			log.WithField("done", len(report.Done)).WithField("left", len(report.Left)).Info("done")
			return report, nil
		},
	}
}

// list is never nil: in JSON an empty list is [], not null.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func valid(name string, a netip.Addr) error {
	if !a.IsValid() {
		return failure(CodeBadRequest, "%s: it is missing", name)
	}
	return nil
}

// decode reads a request: one value, with no fields but ours, so that whoever
// misspells one is told.
func decode(body io.Reader, into any) error {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		_, err = d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = errors.New("more than one value")
		}
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return failure(CodeTooLarge, "the request has more than %d bytes", tooLarge.Limit)
	}
	return failure(CodeBadRequest, "the request is not understood: %v", err)
}

// refused gives an error of the plugin its code.
func refused(err error, report driver.Report) *Error {
	e := &Error{Code: CodeRefused, Message: err.Error()}
	switch known := (*Error)(nil); {
	case errors.As(err, &known):
		return known
	case errors.Is(err, context.DeadlineExceeded):
		e.Code = CodeTimeout
	}
	if len(report.Done) > 0 {
		e.Report = &report
	}
	return e
}

// events sends an event a line until the reader or the plugin goes.
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	events, stop := s.plugin.Events()
	defer stop()
	send, err := stream(w)
	if err != nil {
		return err
	}
	for {
		select {
		case <-r.Context().Done():
			return nil
		case e, ok := <-events:
			if !ok {
				return nil
			}
			if err := send(e); err != nil {
				return err
			}
		}
	}
}

// live sends a sighting a line until the reader or the plugin goes. What can't be
// done is answered as an error if it shows before the first.
func (s *Server) live(w http.ResponseWriter, r *http.Request) error {
	const patience = 2 * time.Second // until it shows that the last reader is gone
	select {
	case s.following <- struct{}{}:
		defer func() { <-s.following }()
	case <-r.Context().Done():
		return nil
	case <-time.After(patience):
		answerError(w, failure(CodeBusy, "packets are followed for somebody else now"))
		return nil
	}
	question, err := questionOf(r.URL.Query())
	var send func(any) error
	if err == nil {
		err = s.plugin.Live(r.Context(), question, func(seen doctor.Sighting) (err error) {
			if send == nil {
				if send, err = stream(w); err != nil {
					return err
				}
			}
			return send(seen)
		})
	}
	if err != nil && send == nil {
		answerError(w, refused(err, driver.Report{}))
		return nil
	}
	return err
}

// stream begins an answer that has no end, and returns what sends a line of it.
func stream(w http.ResponseWriter) (send func(any) error, err error) {
	out, encode := http.NewResponseController(w), json.NewEncoder(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	return func(v any) error {
		if err := out.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		return errors.Join(encode.Encode(v), out.Flush())
	}, out.Flush()
}
