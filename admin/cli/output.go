package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// terminalWidth is 0 if f is no terminal.
func terminalWidth(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if size.Col == 0 {
		return 80 // as a serial console
	}
	return int(size.Col)
}

func writeJSON(out io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", b)
	return err
}

// A column of a table.
type column struct {
	title string
	// least is to how many characters the column may be cut, 0 if it may not
	// be.
	least int
	// spare is in which turn the column is left out where even that is not
	// enough; 0 means never.
	spare int
}

const gap = 2 // columns of space between two

// table writes rows in as few columns as they need, or as width has, unless
// that is 0. paint may colour a cell of the column of the same title.
func table(out io.Writer, width int, columns []column, rows [][]string, paint func(title, cell string) string) {
	use := make([]int, len(columns)) // columns of the terminal; 0: left out
	for i, c := range columns {
		use[i] = utf8.RuneCountInString(c.title)
		for _, row := range rows {
			use[i] = max(use[i], utf8.RuneCountInString(row[i]))
		}
	}
	if width > 0 {
		fit(width, columns, use)
	}
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	for n, row := range append([][]string{titles}, rows...) {
		var b strings.Builder
		pad := 0
		for i, cell := range row {
			if use[i] == 0 {
				continue
			}
			cell = cut(cell, use[i])
			b.WriteString(strings.Repeat(" ", pad))
			pad = gap + use[i] - utf8.RuneCountInString(cell)
			if n > 0 && paint != nil {
				cell = paint(columns[i].title, cell)
			}
			b.WriteString(cell)
		}
		_, _ = fmt.Fprintln(out, b.String())
	}
}

// fit leaves columns out until the rest could be cut to the terminal's width,
// and cuts the widest ones as far as is needed.
func fit(width int, columns []column, use []int) {
	over := func(least bool) int {
		sum := -gap - width
		for i, n := range use {
			if n == 0 {
				continue
			}
			if c := columns[i]; least && c.least > 0 {
				n = min(n, c.least)
			}
			sum += n + gap
		}
		return sum
	}
	for turn := 1; over(true) > 0; turn++ {
		i := slices.IndexFunc(columns, func(c column) bool { return c.spare == turn })
		if i < 0 {
			break // what is left is needed
		}
		use[i] = 0
	}
	for over(false) > 0 {
		widest := -1
		for i, c := range columns {
			if c.least > 0 && use[i] > c.least && (widest < 0 || use[i] > use[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		use[widest]--
	}
}

// cut shortens a text to n characters, the last of which then says so.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// Colours, of the sixteen that every terminal has.
const (
	red    = 31
	green  = 32
	yellow = 33
)

func (a *app) colored(color int, s string) string {
	if !a.color {
		return s
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", color, s)
}
