package cluster

import (
	"testing"

	"github.com/extip/extip/store"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestAlreadyMade: what stands in the way of a second attempt may be the first
// one's work, or somebody else's.
func TestAlreadyMade(t *testing.T) {
	type there struct {
		value   string // "" for nothing
		version int64
	}
	put := func(key, value string) store.Write { return store.Write{Key: key, Value: []byte(value)} }
	for _, tt := range []struct {
		what   string
		writes []store.Write
		there  map[string]there
		want   bool
	}{
		{"it was made", []store.Write{put("a", "1"), put("b", "1")}, map[string]there{"a": {"1", 7}, "b": {"1", 7}}, true},
		{"with a deletion", []store.Write{put("a", "1"), {Key: "b"}}, map[string]there{"a": {"1", 7}}, true},
		{"it wasn't", []store.Write{put("a", "1")}, map[string]there{"a": {"0", 7}}, false},
		{"not all of it", []store.Write{put("a", "1"), put("b", "1")}, map[string]there{"a": {"1", 7}}, false},
		{"not at one time", []store.Write{put("a", "1"), put("b", "1")}, map[string]there{"a": {"1", 7}, "b": {"1", 8}}, false},
		{"what is to be deleted is there", []store.Write{put("a", "1"), {Key: "b"}}, map[string]there{"a": {"1", 7}, "b": {"1", 3}}, false},
		{"deletions leave no trace", []store.Write{{Key: "b"}}, nil, false},
		{"nothing is written", nil, nil, false},
	} {
		m := &Member{config: Config{Prefix: "/p/"}}
		x := &transaction{writes: tt.writes}
		response := &clientv3.TxnResponse{Header: &etcdserverpb.ResponseHeader{Revision: 9}}
		for _, w := range tt.writes {
			x.keys = append(x.keys, w.Key)
			got := &etcdserverpb.RangeResponse{}
			if e := tt.there[w.Key]; e.value != "" {
				got.Kvs = []*mvccpb.KeyValue{{Key: []byte("/p/" + w.Key), Value: []byte(e.value), ModRevision: e.version, CreateRevision: 1}}
			}
			response.Responses = append(response.Responses, &etcdserverpb.ResponseOp{Response: &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: got}})
		}
		if got := x.alreadyMade(m, response); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.what, got, tt.want)
		}
	}
}
