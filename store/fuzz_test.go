package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzOpen: whatever the file holds, it is opened, or set aside, or refused with
// an error.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "extip.db")
	s, err := Open(path)
	if err != nil {
		f.Fatal(err)
	}
	if err := s.PutNetwork(Network{ID: "n", Bridge: "xip-n", Parent: "br-ex"}); err != nil {
		f.Fatal(err)
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte("damaged"), true)
	for at := 0; at < len(whole); at += 512 {
		f.Add(uint32(at), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, false)
	}
	f.Fuzz(func(t *testing.T, at uint32, damage []byte, cut bool) {
		content := append([]byte{}, whole...)
		from := int(at) % (len(content) + 1)
		n := copy(content[from:], damage)
		if cut {
			content = content[:from+n]
		}
		file := filepath.Join(t.TempDir(), "extip.db")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(file)
		if err != nil {
			return
		}
		// What it took for whole can be read, and written or refused.
		if _, err := s.Networks(); err != nil {
			t.Errorf("networks: %v", err)
		}
		if err := s.PutNetwork(Network{ID: "m"}); err != nil && !errors.Is(err, errDamaged) {
			t.Errorf("put: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
