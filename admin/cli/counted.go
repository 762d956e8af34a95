package cli

import "fmt"

// most is how many cells counted makes.
const most = 5

// counted is the cells of what was counted of an address, as many as are known.
func counted(d address) []string {
	c := d.Counters
	if c == nil {
		return nil
	}
	cells := []string{brief(c.Incoming), brief(c.Outgoing), brief(c.Refused.Packets)}
	if c.Received != nil && c.Sent != nil {
		cells = append(cells, brief(c.Received.Bytes), brief(c.Sent.Bytes))
	}
	return cells
}

// brief is a number in at most four characters, with a prefix of the SI: 9999,
// 12k, 1.2M.
func brief(n uint64) string {
	const plain, prefixes = 9999, "kMGTPE"
	if n <= plain {
		return fmt.Sprint(n)
	}
	v, at := float64(n)/1000, 0
	for ; v >= 999.5; at++ {
		v /= 1000
	}
	if v < 9.95 {
		return fmt.Sprintf("%.1f%c", v, prefixes[at])
	}
	return fmt.Sprintf("%.0f%c", v, prefixes[at])
}
