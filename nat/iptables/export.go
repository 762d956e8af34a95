package iptables

import "github.com/extip/extip/nat"

// Export writes, per family, input for iptables-restore --noflush and
// ip6tables-restore --noflush that makes, on its own, what a Backend with this
// state makes on a host without rules. What can't be written is left out and
// reported as errors.
func Export(s nat.State) (v4, v6 string, err error) {
	good, err := usable(s)
	var files [2]string
	for i, f := range families() {
		m := newModel(f)
		m.put(good)
		var b batch
		for _, t := range m.tables() {
			t.repair(held{}, &b)
		}
		files[i] = b.String()
	}
	return files[0], files[1], err
}
