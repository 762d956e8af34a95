package doctor

import (
	"fmt"
	"strings"
)

// columns is the width of a terminal.
const columns = 80

// Report is findings for a terminal of 80 columns. Remedies are not broken, so
// that they can be copied.
func Report(findings []Finding) string {
	var out strings.Builder
	for _, f := range findings {
		text := f.Seen
		if f.Why != "" {
			text += ": " + f.Why
		}
		write(&out, fmt.Sprintf("%-4s %-10s ", f.Level, f.Check), text)
		if f.Remedy != "" {
			out.WriteString("     " + f.Remedy + "\n")
		}
	}
	return out.String()
}

// write writes a text behind a head, in as many lines as it takes.
func write(out *strings.Builder, head, text string) {
	indent := strings.Repeat(" ", len(head))
	line := head
	empty := true
	for _, word := range strings.Fields(text) {
		if !empty && len([]rune(line))+1+len([]rune(word)) > columns {
			out.WriteString(strings.TrimRight(line, " ") + "\n")
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	out.WriteString(strings.TrimRight(line, " ") + "\n")
}
