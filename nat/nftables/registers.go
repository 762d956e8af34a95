package nftables

import (
	"bytes"
	"slices"

	"golang.org/x/sys/unix"
)

// registers are what expressions hand on: 16 registers of 4 bytes, four of
// which make one of the older ones of 16.
type registers struct {
	data    [64]byte
	known   [64]bool
	verdict attrs
}

func offset(reg uint32) int {
	if reg >= unix.NFT_REG32_00 {
		return int(reg-unix.NFT_REG32_00) * 4
	}
	return int(reg-1) * 16
}

func (r *registers) store(reg uint32, data []byte, known []bool) {
	if reg == 0 {
		return
	}
	at := offset(reg)
	if at >= len(r.data) {
		return
	}
	// The rest of the last register is zero.
	for i := range (len(data) + 3) &^ 3 {
		if at+i >= len(r.data) {
			return
		}
		r.data[at+i], r.known[at+i] = 0, true
		if i < len(data) {
			r.data[at+i], r.known[at+i] = data[i], known == nil || known[i]
		}
	}
}

// forget says that what is in a register isn't known.
func (r *registers) forget(reg uint32, size int) {
	r.store(reg, make([]byte, size), make([]bool, size))
}

func (r *registers) load(reg uint32, size int) (data []byte, known bool) {
	at := offset(reg)
	if reg == 0 || at+size > len(r.data) {
		return make([]byte, size), false
	}
	for _, k := range r.known[at : at+size] {
		if !k {
			return r.data[at : at+size], false
		}
	}
	return r.data[at : at+size], true
}

func (r *registers) bitwise(a attrs) {
	size := int(a.number32(unix.NFTA_BITWISE_LEN))
	mask, xor := a.find(unix.NFTA_BITWISE_MASK, unix.NFTA_DATA_VALUE), a.find(unix.NFTA_BITWISE_XOR, unix.NFTA_DATA_VALUE)
	from, to := a.number32(unix.NFTA_BITWISE_SREG), a.number32(unix.NFTA_BITWISE_DREG)
	if len(mask) != size || len(xor) != size || offset(from)+size > len(r.data) {
		r.forget(to, size) // a shift, say
		return
	}
	at := offset(from)
	data, known := make([]byte, size), make([]bool, size)
	for i := range size {
		data[i] = r.data[at+i]&mask[i] ^ xor[i]
		known[i] = r.known[at+i] || mask[i] == 0
	}
	r.store(to, data, known)
}

// Attributes of byteorder, linux/netfilter/nf_tables.h.
const (
	byteorderSreg = 1 // NFTA_BYTEORDER_SREG
	byteorderDreg = 2 // NFTA_BYTEORDER_DREG
	byteorderLen  = 4 // NFTA_BYTEORDER_LEN
	byteorderSize = 5 // NFTA_BYTEORDER_SIZE
)

// byteorder turns numbers round where the host's order is not the network's.
func (r *registers) byteorder(a attrs) {
	from, to := a.number32(byteorderSreg), a.number32(byteorderDreg)
	length, size := int(a.number32(byteorderLen)), int(a.number32(byteorderSize))
	if size == 0 || offset(from)+length > len(r.data) {
		return
	}
	data, known := bytes.Clone(r.data[offset(from):][:length]), slices.Clone(r.known[offset(from):][:length])
	for at := 0; at+size <= length && native(1)[0] == 1; at += size {
		slices.Reverse(data[at : at+size])
		slices.Reverse(known[at : at+size])
	}
	r.store(to, data, known)
}
