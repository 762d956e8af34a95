package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"

	"github.com/extip/extip/driver"
)

// Codes of errors. They stay; the messages beside them are for people.
const (
	CodeBadRequest = "bad_request"
	CodeForbidden  = "forbidden"
	CodeNotFound   = "not_found"
	CodeNotAllowed = "method_not_allowed"
	CodeTooLarge   = "too_large"
	CodeRefused    = "refused"
	CodeBusy       = "busy"
	CodeTimeout    = "timeout"
	CodeInternal   = "internal"
)

// statuses are the HTTP statuses of the codes.
var statuses = map[string]int{
	CodeBadRequest: http.StatusBadRequest,
	CodeForbidden:  http.StatusForbidden,
	CodeNotFound:   http.StatusNotFound,
	CodeNotAllowed: http.StatusMethodNotAllowed,
	CodeTooLarge:   http.StatusRequestEntityTooLarge,
	CodeRefused:    http.StatusConflict,
	CodeBusy:       http.StatusServiceUnavailable,
	CodeTimeout:    http.StatusGatewayTimeout,
	CodeInternal:   http.StatusInternalServerError,
}

// Error is what the API answers instead of what was asked for.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	// Report is what was done all the same, of a change that failed.
	Report *driver.Report `json:"report,omitempty"`
}

func (e *Error) Error() string { return e.Message }

func failure(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// An UnreachableError says that no plugin answers on the socket.
type UnreachableError struct {
	Socket string
	Err    error
}

func (e *UnreachableError) Error() string {
	hint := "is `extip serve` running?"
	if errors.Is(e.Err, fs.ErrPermission) {
		hint = "it is for root and the group of --admin-group"
	}
	return fmt.Sprintf("the plugin can't be reached on %s: %v; %s", e.Socket, innermost(e.Err), hint)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// innermost is a network error without the address that it is about.
func innermost(err error) error {
	if e := (*net.OpError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	if e := (*os.SyscallError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	if e := (*url.Error)(nil); errors.As(err, &e) {
		err = e.Err
	}
	return err
}
