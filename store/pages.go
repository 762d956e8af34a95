package store

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// bbolt believes what its pages say. Where that is wrong it runs in circles,
// takes all memory, or faults in a goroutine of its own, which ends the program.
// So the file's structure is looked at before bbolt sees it: each page is where
// it should be, is part of one thing, and has its content within its bounds. The
// layout is that of bbolt's internal/common: page.go, meta.go, inode.go, bucket.go.
const (
	pageHeader   = 16 // id, flags, count, overflow
	element      = 16 // of a branch or a leaf
	bucketHeader = 16 // root page, sequence
	metaSum      = 56 // where the checksum is in a meta

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketLeaf   = 0x01 // flag of a leaf's element

	boltMagic  = 0xed0cdaed
	noFreelist = ^uint64(0)
)

// sound tells whether the pages of a file make sense. One whose metas don't is
// left to bbolt to refuse, and so is one that isn't there, or that somebody else
// has open: it may be in the middle of a write.
func sound(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = file.Close() }() // lets go of the lock, too
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil
	}
	content, err := io.ReadAll(file)
	if err != nil {
		return nil
	}
	f, ok := pagesOf(content)
	if !ok {
		return nil
	}
	if err := f.tree(binary.NativeEndian.Uint64(f.meta[16:])); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err := f.freelist(binary.NativeEndian.Uint64(f.meta[32:])); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil
}

// pages is a file with those of its pages that are known to be in use.
type pages struct {
	content []byte
	size    uint64 // of a page
	end     uint64 // the first page that was never used
	meta    []byte
	used    map[uint64]bool
}

// pagesOf finds the meta that bbolt would: the valid one of two that is later.
func pagesOf(content []byte) (*pages, bool) {
	var best *pages
	sizes := []uint64{uint64(os.Getpagesize())}
	if len(content) >= pageHeader+metaSum+8 {
		if size := uint64(binary.NativeEndian.Uint32(content[pageHeader+8:])); size >= 512 && size <= 1<<16 {
			sizes = append(sizes, size)
		}
	}
	for _, size := range sizes {
		for id := range uint64(2) {
			at := id*size + pageHeader
			if at+metaSum+8 > uint64(len(content)) {
				continue
			}
			meta := content[at : at+metaSum+8]
			sum := fnv.New64a()
			_, _ = sum.Write(meta[:metaSum])
			if binary.NativeEndian.Uint32(meta) != boltMagic || binary.NativeEndian.Uint64(meta[metaSum:]) != sum.Sum64() ||
				uint64(binary.NativeEndian.Uint32(meta[8:])) != size {
				continue
			}
			if best == nil || binary.NativeEndian.Uint64(meta[48:]) > binary.NativeEndian.Uint64(best.meta[48:]) {
				best = &pages{content, size, binary.NativeEndian.Uint64(meta[40:]), meta, map[uint64]bool{}}
			}
		}
	}
	return best, best != nil
}

// page claims a page with those that it goes on for, and returns its bytes.
func (f *pages) page(id uint64) ([]byte, error) {
	total := min(f.end, uint64(len(f.content))/f.size)
	if id < 2 || id >= total {
		return nil, fmt.Errorf("page %d of %d", id, total)
	}
	head := f.content[id*f.size:]
	more := uint64(binary.NativeEndian.Uint32(head[12:]))
	if binary.NativeEndian.Uint64(head) != id || more >= total-id {
		return nil, fmt.Errorf("page %d of %d says that it is %d, with %d more", id, total, binary.NativeEndian.Uint64(head), more)
	}
	for n := id; n <= id+more; n++ {
		if f.used[n] {
			return nil, fmt.Errorf("page %d is there twice", n)
		}
		f.used[n] = true
	}
	return head[:(more+1)*f.size], nil
}

func (f *pages) tree(root uint64) error {
	page, err := f.page(root)
	if err != nil {
		return err
	}
	return f.elements(page, false)
}

// elements looks at what a page holds. One that is part of a bucket's record,
// inline, holds no buckets.
func (f *pages) elements(page []byte, inline bool) error {
	flags, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	bad := func(i int) error { return fmt.Errorf("element %d of %d of a page with flags %#x", i, count, flags) }
	if flags != leafPage && (flags != branchPage || inline || count == 0) {
		return bad(0)
	}
	for i := range count {
		at := pageHeader + i*element
		if at+element > len(page) {
			return bad(i)
		}
		e := page[at:]
		word := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(e[4*i:])) }
		if flags == branchPage { // position, length of the key, page
			if word(0)+word(1) > uint64(len(e)) || word(0) < element || word(1) == 0 {
				return bad(i)
			}
			if err := f.tree(binary.NativeEndian.Uint64(e[8:])); err != nil {
				return err
			}
			continue
		}
		// Flags, position, length of key and value.
		if word(1)+word(2)+word(3) > uint64(len(e)) || word(1) < element || word(2) == 0 {
			return bad(i)
		}
		if word(0)&bucketLeaf == 0 {
			continue
		}
		bucket := e[word(1)+word(2):][:word(3)]
		if inline || len(bucket) < bucketHeader {
			return bad(i)
		}
		err := error(nil)
		if root := binary.NativeEndian.Uint64(bucket); root != 0 {
			err = f.tree(root)
		} else if inside := bucket[bucketHeader:]; len(inside) < pageHeader {
			err = bad(i)
		} else {
			err = f.elements(inside, true)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// freelist looks at the list of free pages: none of them may be in use.
func (f *pages) freelist(id uint64) error {
	if id == noFreelist {
		return nil
	}
	page, err := f.page(id)
	if err != nil {
		return err
	}
	count, ids := uint64(binary.NativeEndian.Uint16(page[10:])), page[pageHeader:]
	if count == 0xffff {
		count, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if binary.NativeEndian.Uint16(page[8:]) != freelistPage || count > uint64(len(ids))/8 {
		return fmt.Errorf("a list of %d free pages with flags %#x", count, binary.NativeEndian.Uint16(page[8:]))
	}
	for i := range count {
		free := binary.NativeEndian.Uint64(ids[8*i:])
		if free < 2 || free >= f.end || f.used[free] {
			return fmt.Errorf("free page %d of %d", free, f.end)
		}
		f.used[free] = true
	}
	return nil
}
