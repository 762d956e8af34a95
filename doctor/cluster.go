package doctor

import (
	"fmt"
	"time"
)

// cluster looks for what other hosts have, or may get, that containers here
// should have.
func (x *exam) cluster() (found []Finding) {
	if since := x.subject.Cluster.ApartSince; !since.IsZero() {
		found = append(found, Finding{
			Level: Fail, Seen: fmt.Sprintf("etcd can't be reached since %s", since.Format(time.RFC3339)),
			Why: "nothing new is claimed here, and other hosts may claim what containers here have",
		})
	}
	var held group[string]
	for _, a := range x.subject.Addresses {
		if a.HeldBy != "" {
			held.add(a.HeldBy, a.External.String())
		}
	}
	for _, host := range held.keys {
		found = append(found, Finding{
			Level: Fail, Seen: fmt.Sprintf("%s held by host %s", names(held.of[host]), host),
			Why: "containers here that should have it get it back when that host gives it up",
		})
	}
	return found
}
