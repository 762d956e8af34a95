package e2e

import "testing"

func (b *bench) traffic(t *testing.T)       {}
func (b *bench) judge()                     {}
func (r *record) charts() map[string]string { return nil }
