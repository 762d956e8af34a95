package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	// maxBody bounds a request, in bytes: some thousand addresses.
	maxBody = 64 << 10
	// Connections that send nothing, or read nothing, are closed after these.
	readTimeout  = 10 * time.Second
	writeTimeout = 10 * time.Second
	idleTimeout  = time.Minute
	// callTimeout bounds a change. The longest is an attach where addresses
	// are probed as RFC 5227 wants it: 7 s.
	callTimeout = 30 * time.Second
	// maxCalls and maxStreams are how many calls, and readers of events, there
	// are at once at most; maxConns bounds the connections.
	maxCalls   = 16
	maxStreams = 16
	maxConns   = 64
	// ending is how long calls under way may take when the plugin stops.
	ending = 5 * time.Second
)

// A Server answers the API.
type Server struct {
	plugin Plugin
	about  About
	access Access
	log    logrus.FieldLogger
	// calls and streams hold a token for each that is under way.
	calls, streams chan struct{}
	// following holds one for whoever follows packets.
	following chan struct{}
}

// NewServer returns a Server for a plugin, for those whom access lets in.
func NewServer(p Plugin, about About, access Access, log logrus.FieldLogger) *Server {
	about.API = apiVersion
	return &Server{
		plugin: p, about: about, access: access, log: log,
		calls: make(chan struct{}, maxCalls), streams: make(chan struct{}, maxStreams), following: make(chan struct{}, 1),
	}
}

// Serve answers on l, a unix socket, until ctx ends; then calls under way may
// finish, for a few seconds.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withPeer,
		ConnState:         limit(maxConns),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("admin: serve: %w", err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), ending)
	defer cancel()
	err := server.Shutdown(last)
	<-failed
	if errors.Is(err, context.DeadlineExceeded) {
		return server.Close()
	}
	return err
}

// limit closes connections that are more than n.
func limit(n int64) func(net.Conn, http.ConnState) {
	var open atomic.Int64
	return func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if open.Add(1) > n {
				_ = c.Close() // the server notices, and says that it is closed
			}
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
}

// handler is the API's table as HTTP.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	methods := map[string]string{}
	for _, c := range calls() {
		mux.Handle(c.pattern(), s.serve(c))
		methods[fmt.Sprintf("/v%d/%s", apiVersion, c.path)] = c.method
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if allowed, ok := methods[r.URL.Path]; ok {
			w.Header().Set("Allow", allowed)
			answerError(w, failure(CodeNotAllowed, "%s wants %s, not %s", r.URL.Path, allowed, r.Method))
			return
		}
		answerError(w, failure(CodeNotFound, "%s: no such call in version %d of the API", r.URL.Path, apiVersion))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := peerOf(r.Context()); !s.access.admits(p) {
			s.log.WithField("uid", p.uid).WithField("pid", p.pid).Warn("the control API was refused")
			answerError(w, failure(CodeForbidden, "uid %d may not use the control API: root may, and the group of --admin-group", p.uid))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// serve makes an HTTP handler of a call: it bounds how many, how large and how
// long, and writes the answer.
func (s *Server) serve(c call) http.HandlerFunc {
	slots := s.calls
	if c.stream != nil {
		slots = s.streams
	}
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			answerError(w, failure(CodeBusy, "%d such calls are under way, which is the most", cap(slots)))
			return
		}
		if c.stream != nil {
			if err := c.stream(s, w, r); err != nil {
				s.log.WithError(err).Debug("a reader of events went")
			}
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
		defer cancel()
		answer, err := c.handle(s, r.WithContext(ctx))
		if err != nil {
			known := (*Error)(nil)
			if !errors.As(err, &known) {
				s.log.WithField("call", c.path).WithError(err).Error("failed")
				known = failure(CodeInternal, "%v", err)
			}
			answerError(w, known)
			return
		}
		reply(w, http.StatusOK, answer)
	}
}

// answerError answers with an error, as {"error": {...}}.
func answerError(w http.ResponseWriter, e *Error) {
	reply(w, statuses[e.Code], struct {
		Error *Error `json:"error"`
	}{e})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.WriteHeader(status)
	// An error means that whoever asked is gone.
	_ = json.NewEncoder(w).Encode(v)
}
