package store

import "fmt"

// HostClaims is how many addresses each host has, as far as is known; of a store
// that isn't shared nothing.
func (s *Store) HostClaims() (map[string]int, error) {
	if s.ledger == nil {
		return nil, nil
	}
	count := map[string]int{}
	err := s.ledger.Scan(claimsPrefix, func(_ string, value []byte) error {
		c, ok, err := parseClaim(value)
		if ok {
			count[c.Host]++
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store: read the ledger: %w", err)
	}
	return count, nil
}
