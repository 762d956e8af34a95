package store_test

import (
	"testing"

	"github.com/extip/extip/internal/ledgertest"
	"github.com/extip/extip/store"
)

func openLocal(t *testing.T, _, path string) *store.Store {
	t.Helper()
	s, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sharing opens stores that share a ledger per test.
func sharing() ledgertest.Open {
	ledgers := map[*testing.T]*ledgertest.Ledger{}
	return func(t *testing.T, host, path string) *store.Store {
		t.Helper()
		if ledgers[t] == nil {
			ledgers[t] = ledgertest.New()
		}
		return openShared(t, ledgers[t].Host(host), path)
	}
}

func openShared(t *testing.T, h *ledgertest.Host, path string) *store.Store {
	t.Helper()
	s, err := store.OpenShared(path, h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConform(t *testing.T) {
	t.Run("local", func(t *testing.T) { ledgertest.Conform(t, openLocal) })
	t.Run("shared", func(t *testing.T) { ledgertest.Conform(t, sharing()) })
	t.Run("hosts", func(t *testing.T) { ledgertest.ConformShared(t, sharing()) })
}
