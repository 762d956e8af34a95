package iptables

import (
	"os"
	"slices"
	"strings"
)

// LegacyBeside tells whether the kernel has a filter table of iptables-legacy
// that this iptables, being of the other flavour, neither sees nor changes. What
// it drops stays dropped.
func (a *Admission) LegacyBeside() bool {
	// Of the namespace of the thread that asks; without ip_tables there is no
	// such file.
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return err == nil && !a.programs[0].legacy && slices.Contains(strings.Fields(string(names)), tableFilter)
}
