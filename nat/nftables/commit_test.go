package nftables

import (
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/nat"
)

// Each call is one transaction over both families, and none if it changes
// nothing; a large one has few messages, of a size that fits.
func TestOneTransactionPerCall(t *testing.T) {
	b := open(t, newHost(t), Config{})
	var commits, messages int
	b.commit = func(bt *batch) error {
		commits++
		messages = len(bt.messages)
		return b.kernel.commit(bt)
	}
	st := manyState(10000)
	for i := 1; i < 2000; i++ {
		st.Mappings = append(st.Mappings, nattest.Map6(1, i))
	}
	moved := nattest.Map4(1, 2)
	moved.External = nattest.Map4(1, 1).External
	sync := func(st nat.State) error {
		_, err := b.Sync(st)
		return err
	}
	for _, step := range []struct {
		name        string
		do          func() error
		commits     int
		maxMessages int
	}{
		{"everything", func() error { return sync(st) }, 1, 220},
		{"everything again", func() error { return sync(st) }, 0, 0},
		{"repair", func() error { _, err := b.Repair(); return err }, 0, 0},
		{"a look", func() error { b.agreed = false; _, err := b.Repair(); return err }, 0, 0},
		{"add", func() error { return b.Add(nattest.Map4(1, 1), nattest.Map6(1, 9000)) }, 1, 8},
		{"add again", func() error { return b.Add(nattest.Map4(1, 1), nattest.Map6(1, 9000)) }, 0, 0},
		{"move", func() error { return b.Add(moved) }, 1, 4},
		{"remove", func() error { return b.Remove(moved, nattest.Map6(1, 9000)) }, 1, 8},
		{"remove again", func() error { return b.Remove(moved, nattest.Map6(1, 9000)) }, 0, 0},
		{"add network", func() error { return b.AddNetwork(nattest.Net(2)) }, 1, 50},
		{"remove network", func() error { return b.RemoveNetwork(nattest.Net(2)) }, 1, 50},
		{"nothing", func() error { return sync(nat.State{}) }, 1, 2},
	} {
		commits, messages = 0, 0
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if commits != step.commits || messages > step.maxMessages {
			t.Errorf("%s: %d transactions, %d messages in the last; want %d, at most %d", step.name, commits, messages, step.commits, step.maxMessages)
		}
	}
}
