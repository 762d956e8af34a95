package driver

import "fmt"

// A Report says what a change has changed, a line each, or with a dry run what
// it would; and what was left as it is, and why.
type Report struct {
	Done []string `json:"done"`
	Left []string `json:"left"`
}

// plural is a count of things: "1 event was", "2 events were".
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
