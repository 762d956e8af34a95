package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The library reads tables well, but can't write them as needed: it sends no
// table flags, asks for an answer to each message, and leaves the rest of the
// answers unread once permission is denied. So messages are made here.

// Table flags, linux/netfilter/nf_tables.h; the last two are missing in x/sys.
const (
	flagOwner   = 0x2 // since Linux 5.12: only the socket that made the table may change it
	flagPersist = 0x4 // since Linux 6.9: the table outlives that socket
)

// elementsPerMessage keeps a message's list of elements, of at most some 80
// bytes each, within the 65,535 bytes that an attribute can have.
const elementsPerMessage = 500

// A batch is a transaction: the kernel takes all of it or nothing.
type batch struct {
	name     string // of the table it is about
	messages []netlink.Message
	setIDs   uint32
	// doubtful says that the batch adds elements to a set that is there.
	doubtful bool
	// begun is what begins to count with the batch.
	begun []counter
}

func newBatch() *batch { return &batch{name: tableName} }

func (b *batch) empty() bool { return len(b.messages) == 0 }

func (b *batch) message(kind int, flags netlink.HeaderFlags, f family, a attrs) {
	b.messages = append(b.messages, netlink.Message{
		Header: netlink.Header{Type: messageType(kind), Flags: netlink.Request | flags},
		Data:   append(nfgenmsg(f.proto(), 0), a...),
	})
}

func messageType(kind int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)
}

// nfgenmsg is the header of netfilter's messages: family, version, resource.
func nfgenmsg(family uint8, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

// table makes a table; without exclusive, one that is there gets the flags.
func (b *batch) table(f family, flags uint32, exclusive bool) {
	how := netlink.Create
	if exclusive {
		how |= netlink.Excl
	}
	b.message(unix.NFT_MSG_NEWTABLE, how, f, attrs{}.text(unix.NFTA_TABLE_NAME, b.name).number(unix.NFTA_TABLE_FLAGS, flags))
}

func (b *batch) deleteTable(f family) {
	b.message(unix.NFT_MSG_DELTABLE, 0, f, attrs{}.text(unix.NFTA_TABLE_NAME, b.name))
}

func (b *batch) chain(f family, name string, h hook) {
	a := attrs{}.text(unix.NFTA_CHAIN_TABLE, b.name).text(unix.NFTA_CHAIN_NAME, name)
	if h != (hook{}) {
		a = a.nest(unix.NFTA_CHAIN_HOOK, attrs{}.number(unix.NFTA_HOOK_HOOKNUM, h.number).number(unix.NFTA_HOOK_PRIORITY, uint32(h.priority))).
			number(unix.NFTA_CHAIN_POLICY, uint32(h.policy)).
			text(unix.NFTA_CHAIN_TYPE, string(h.kind))
	}
	b.message(unix.NFT_MSG_NEWCHAIN, netlink.Create|netlink.Excl, f, a)
}

func (b *batch) deleteChain(f family, name string) {
	b.message(unix.NFT_MSG_DELCHAIN, 0, f, attrs{}.text(unix.NFTA_CHAIN_TABLE, b.name).text(unix.NFTA_CHAIN_NAME, name))
}

// deleteRules empties a chain.
func (b *batch) deleteRules(f family, chain string) {
	b.message(unix.NFT_MSG_DELRULE, 0, f, attrs{}.text(unix.NFTA_RULE_TABLE, b.name).text(unix.NFTA_RULE_CHAIN, chain))
}

func (b *batch) rule(f family, chain string, r rule) {
	b.message(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, f,
		attrs{}.text(unix.NFTA_RULE_TABLE, b.name).text(unix.NFTA_RULE_CHAIN, chain).nest(unix.NFTA_RULE_EXPRESSIONS, attrs(r)))
}

func (b *batch) set(f family, name string, k setKind) {
	key, fields := keyType(k.key)
	value := datatype(k.value)
	b.setIDs++
	a := attrs{}.text(unix.NFTA_SET_TABLE, b.name).text(unix.NFTA_SET_NAME, name).
		number(unix.NFTA_SET_ID, b.setIDs).
		number(unix.NFTA_SET_KEY_TYPE, key.GetNFTMagic()).number(unix.NFTA_SET_KEY_LEN, key.Bytes)
	var flags uint32
	if k.ranges {
		flags |= unix.NFT_SET_INTERVAL | nftables.NFT_SET_CONCAT
		a = a.nest(unix.NFTA_SET_DESC, attrs{}.nest(nftaSetDescConcat, fields))
	}
	if k.does != "" {
		a = a.nest(nftaSetExpr, k.does.encode(leastLimit))
	}
	if k.passing {
		flags |= unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
		a = a.put(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(passingTime.Milliseconds()))).
			nest(unix.NFTA_SET_DESC, attrs{}.number(unix.NFTA_SET_DESC_SIZE, passingSize))
	}
	switch k.value {
	case "":
	case nftables.TypeVerdict.Name:
		flags |= unix.NFT_SET_MAP
		a = a.number(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
	default:
		flags |= unix.NFT_SET_MAP
		a = a.number(unix.NFTA_SET_DATA_TYPE, value.GetNFTMagic()).number(unix.NFTA_SET_DATA_LEN, value.Bytes)
	}
	about := userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, byteOrder(k.key))
	if k.key == keyTarget {
		about = append(about, targetType()...)
	}
	if k.value == nftables.TypeMark.Name {
		about = userdata.AppendUint32(about, userdata.NFTNL_UDATA_SET_DATABYTEORDER, byteOrder(k.value))
	}
	a = a.number(unix.NFTA_SET_FLAGS, flags).put(unix.NFTA_SET_USERDATA, about)
	b.message(unix.NFT_MSG_NEWSET, netlink.Create|netlink.Excl, f, a)
}

// Of linux/netfilter/nf_tables.h, and missing in x/sys.
const (
	nftaSetDescConcat = 2
	nftaSetFieldLen   = 1
	nftaSetExpr       = 17
	nftaSetElemKeyEnd = 10
	nftaSetElemExprs  = 11 // NFTA_SET_ELEM_EXPRESSIONS
)

// Byte orders as nft numbers them (enum byteorder in its datatype.h).
const (
	byteOrderHost = 1
	byteOrderBig  = 2
)

// byteOrder is a type's. Without it nft lists an interface name as "", and a
// mark with its bytes the other way round. Parts of a key with a name have their
// own.
func byteOrder(name string) uint32 {
	if strings.HasPrefix(name, nftables.TypeIFName.Name+joined) {
		return 0
	}
	if name == nftables.TypeIFName.Name || name == nftables.TypeMark.Name {
		return byteOrderHost
	}
	return byteOrderBig
}

// keyType is a key's type, and a list of the lengths of its parts.
func keyType(name string) (t *nftables.SetDatatype, fields attrs) {
	var parts []nftables.SetDatatype
	for part := range strings.SplitSeq(name, joined) {
		p := datatype(part)
		parts = append(parts, *p)
		fields = fields.nest(unix.NFTA_LIST_ELEM, attrs{}.number(nftaSetFieldLen, p.Bytes))
	}
	concatenated, err := nftables.ConcatSetType(parts...)
	if err != nil {
		return &nftables.SetDatatype{}, nil
	}
	return &concatenated, fields
}

// datatypes is those that sets of ours have. Integers are as long as what an
// IPv6 address is.
func datatypes() []nftables.SetDatatype {
	integer := nftables.TypeInteger
	integer.Bytes = nftables.TypeIP6Addr.Bytes
	return []nftables.SetDatatype{
		nftables.TypeIPAddr, nftables.TypeIP6Addr, nftables.TypeIFName, nftables.TypeMark, nftables.TypeInetProto, nftables.TypeInetService,
		nftables.TypeEtherAddr, integer,
	}
}

func datatype(name string) *nftables.SetDatatype {
	for _, t := range datatypes() {
		if t.Name == name {
			return &t
		}
	}
	return &nftables.SetDatatype{}
}

func (b *batch) deleteSet(f family, name string) {
	b.message(unix.NFT_MSG_DELSET, 0, f, attrs{}.text(unix.NFTA_SET_TABLE, b.name).text(unix.NFTA_SET_NAME, name))
}

// elements adds to a set, or with remove takes from it, in the order of keys.
func (b *batch) elements(f family, name string, k setKind, elements map[string]string, remove bool) {
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(elements)), elementsPerMessage) {
		var list attrs
		if k.does == counts && !remove {
			b.begun = append(b.begun, counters(name, keys)...)
		}
		for _, key := range keys {
			first, last := key, ""
			if k.ranges {
				first, last = key[:len(key)/2], key[len(key)/2:]
			}
			e := attrs{}.nest(unix.NFTA_SET_ELEM_KEY, attrs{}.put(unix.NFTA_DATA_VALUE, []byte(first)))
			if last != "" {
				e = e.nest(nftaSetElemKeyEnd, attrs{}.put(unix.NFTA_DATA_VALUE, []byte(last)))
			}
			switch value := elements[key]; {
			case value == "" || remove:
			case k.value == "":
				e = e.nest(unix.NFTA_SET_ELEM_EXPR, k.does.encode(value))
			default:
				e = e.nest(unix.NFTA_SET_ELEM_DATA, elementData(value))
			}
			list = list.nest(unix.NFTA_LIST_ELEM, e)
		}
		a := attrs{}.text(unix.NFTA_SET_ELEM_LIST_TABLE, b.name).text(unix.NFTA_SET_ELEM_LIST_SET, name).
			nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
		if remove {
			b.message(unix.NFT_MSG_DELSETELEM, 0, f, a)
		} else {
			b.message(unix.NFT_MSG_NEWSETELEM, netlink.Create, f, a)
		}
	}
}

func elementData(value string) attrs {
	if chain, ok := strings.CutPrefix(value, jumpTo("")); ok {
		return attrs{}.nest(unix.NFTA_DATA_VERDICT, verdict(chain))
	}
	return attrs{}.put(unix.NFTA_DATA_VALUE, []byte(value))
}

func verdict(chain string) attrs {
	return attrs{}.number(unix.NFTA_VERDICT_CODE, jumpCode()).text(unix.NFTA_VERDICT_CHAIN, chain)
}

// jumpCode is NFT_JUMP, a negative number, in the kernel's field.
func jumpCode() uint32 {
	code := int32(unix.NFT_JUMP)
	return uint32(code)
}

// attrs is a list of netlink attributes, encoded.
type attrs []byte

func (a attrs) put(kind uint16, data []byte) attrs {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.SizeofNlAttr+len(data)))
	a = binary.NativeEndian.AppendUint16(a, kind)
	a = append(a, data...)
	for len(a)%unix.NLA_ALIGNTO != 0 {
		a = append(a, 0)
	}
	return a
}

func (a attrs) nest(kind uint16, inner attrs) attrs { return a.put(unix.NLA_F_NESTED|kind, inner) }

func (a attrs) text(kind uint16, s string) attrs { return a.put(kind, append([]byte(s), 0)) }

func (a attrs) number(kind uint16, n uint32) attrs {
	return a.put(kind, binary.BigEndian.AppendUint32(nil, n))
}

// each is the attributes, up to the first that is malformed.
func (a attrs) each() iter.Seq2[uint16, attrs] {
	return func(yield func(uint16, attrs) bool) {
		for len(a) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(a))
			if size < unix.SizeofNlAttr || size > len(a) {
				return
			}
			kind := binary.NativeEndian.Uint16(a[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, a[unix.SizeofNlAttr:size]) {
				return
			}
			a = a[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(a)):]
		}
	}
}

// all is the contents of the attributes, whatever their kinds.
func (a attrs) all() (contents []attrs) {
	for _, inner := range a.each() {
		contents = append(contents, inner)
	}
	return contents
}

// find returns the content of the first attribute that the path of kinds
// leads to, nil if there is none.
func (a attrs) find(path ...uint16) attrs {
	for kind, inner := range a.each() {
		if kind != path[0] {
			continue
		}
		if len(path) == 1 {
			return inner
		}
		return inner.find(path[1:]...)
	}
	return nil
}

// number32 is the number that find finds, 0 if there is none.
func (a attrs) number32(path ...uint16) uint32 {
	if n := a.find(path...); len(n) == 4 {
		return binary.BigEndian.Uint32(n)
	}
	return 0
}

// payload is the attributes of a netfilter message.
func payload(m netlink.Message) attrs {
	const sizeofNfgenmsg = 4
	if len(m.Data) < sizeofNfgenmsg {
		return nil
	}
	return attrs(m.Data[sizeofNfgenmsg:])
}

// string is an attribute's content without the final zero.
func (a attrs) string() string { return string(bytes.TrimRight(a, "\x00")) }

var errNoAnswer = errors.New("the kernel's answer says nothing")

// A kernel is a socket to nf_tables of the network namespace it was opened
// in. Its methods may not be called concurrently.
type kernel struct {
	library *nftables.Conn
	socket  *netlink.Conn // the library's
	port    uint32        // of the socket: marks what is done through it
}

// buffer is the socket's, in bytes. A transaction is one datagram: 10,000
// mappings in both families are some 2 MiB, which the kernel counts double.
const buffer = 16 << 20

func dial() (*kernel, error) {
	k := &kernel{}
	var err error
	k.library, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		k.socket = c
		if err := c.SetWriteBuffer(buffer); err != nil {
			return err
		}
		return c.SetReadBuffer(buffer)
	}))
	if err == nil {
		k.port, err = k.localPort()
	}
	if err == nil {
		err = k.widen()
	}
	if err != nil && k.socket != nil {
		err = errors.Join(err, k.socket.Close())
	}
	return k, err
}

func (k *kernel) close() error { return k.library.CloseLasting() }

func (k *kernel) localPort() (port uint32, err error) {
	conn, err := k.socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := conn.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		if sa, err = unix.Getsockname(int(fd)); err == nil {
			port = sa.(*unix.SockaddrNetlink).Pid
		}
	})
	if err == nil {
		err = cerr
	}
	return port, err
}

// widen lets the kernel answer in pieces of 32 KiB, the most it does, which it
// has to be asked for by a buffer of that size; the library's are no larger
// than a message. In 4 KiB a large set takes three times as long: for each
// piece the kernel goes through it from its beginning.
func (k *kernel) widen() error {
	conn, err := k.socket.SyscallConn()
	if err != nil {
		return err
	}
	if _, err := k.socket.Send(askGeneration()); err != nil {
		return err
	}
	rerr := conn.Read(func(fd uintptr) bool {
		_, _, err = unix.Recvfrom(int(fd), make([]byte, 32<<10), unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(rerr, err)
}

// commit has a batch done. Only the last message is acknowledged; by then,
// the kernel has said what it dislikes of the others.
func (k *kernel) commit(b *batch) error {
	bound := func(kind int) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request},
			Data:   nfgenmsg(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES),
		}
	}
	b.messages[len(b.messages)-1].Header.Flags |= netlink.Acknowledge
	messages := slices.Concat([]netlink.Message{bound(unix.NFNL_MSG_BATCH_BEGIN)}, b.messages, []netlink.Message{bound(unix.NFNL_MSG_BATCH_END)})
	if _, err := k.socket.SendMessages(messages); err != nil {
		return err
	}
	if _, err := k.socket.Receive(); err != nil {
		// The first complaint; others may follow, and all are here
		// already: netlink works while it is sent to.
		k.drain()
		return err
	}
	return nil
}

// drain forgets what has come and was not read.
func (k *kernel) drain() {
	conn, err := k.socket.SyscallConn()
	if err != nil {
		return // closed
	}
	_ = conn.Read(func(fd uintptr) bool {
		for buf := make([]byte, 1); ; {
			if _, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT); err != nil {
				return true
			}
		}
	})
}

// generation numbers the changes of all of nf_tables: each commit, whoever's,
// adds one. It is never 0.
func (k *kernel) generation() (uint32, error) {
	replies, err := k.socket.Execute(askGeneration())
	if err != nil {
		return 0, err
	}
	for _, m := range replies {
		if id := payload(m).number32(unix.NFTA_GEN_ID); id != 0 {
			return id, nil
		}
	}
	return 0, errNoAnswer
}

func askGeneration() netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: messageType(unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   nfgenmsg(unix.NFPROTO_UNSPEC, 0),
	}
}
