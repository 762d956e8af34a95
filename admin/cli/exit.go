package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
)

// What extip exits with.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
)

// A usageError is a command line that is not understood.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// usage returns an error about a verb's arguments or flags.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...) + fmt.Sprintf("; see %s --help", cmd.CommandPath())}
}

// errDifference makes the exit code 1 where everything is printed already.
var errDifference = errors.New("")

// ExitCode is what a program exits with whose command returned err.
func ExitCode(err error) int {
	wrong, unreachable := (*usageError)(nil), (*admin.UnreachableError)(nil)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &wrong):
		return exitUsage
	case errors.As(err, &unreachable):
		return exitUnreachable
	default:
		return exitFailed
	}
}
