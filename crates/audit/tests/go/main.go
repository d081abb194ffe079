// Verifies a log with Go's own golang.org/x/mod/sumdb/note and tlog:
// signature, every entry against the tree, inclusion and consistency proofs.
//
//	main DIR OLDSIZE
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type folder string

func (f folder) Height() int { return 8 }

// Go's own layout has the height in the path; tlog-tiles leaves it out.
func path(t tlog.Tile) string { return strings.Replace(t.Path(), "tile/8/", "tile/", 1) }

func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, t := range tiles {
		data, err := os.ReadFile(filepath.Join(string(f), path(t)))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func (f folder) SaveTiles([]tlog.Tile, [][]byte) {}

func check(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

// head is a checkpoint: three lines (c2sp.org/tlog-checkpoint).
func head(text string) (int64, tlog.Hash) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		check(fmt.Errorf("%d lines", len(lines)), "checkpoint")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err, "size")
	root, err := base64.StdEncoding.DecodeString(lines[2])
	check(err, "root")
	var hash tlog.Hash
	if len(root) != len(hash) {
		check(fmt.Errorf("%d bytes", len(root)), "root")
	}
	copy(hash[:], root)
	return size, hash
}

func entries(dir string, size int64) [][]byte {
	var all [][]byte
	for n := int64(0); n*256 < size; n++ {
		width := min(size-n*256, 256)
		tile := path(tlog.Tile{H: 8, L: 0, N: n, W: int(width)})
		name := strings.Replace(tile, "tile/0/", "tile/entries/", 1)
		data, err := os.ReadFile(filepath.Join(dir, name))
		check(err, "entries")
		for len(data) > 0 {
			length := int(binary.BigEndian.Uint16(data))
			all = append(all, bytes.Clone(data[2:2+length]))
			data = data[2+length:]
		}
	}
	return all
}

func main() {
	dir := os.Args[1]
	vkey, err := os.ReadFile(filepath.Join(dir, "vkey"))
	check(err, "vkey")
	verifier, err := note.NewVerifier(strings.TrimSpace(string(vkey)))
	check(err, "vkey")
	signed, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	check(err, "checkpoint")
	opened, err := note.Open(signed, note.VerifierList(verifier))
	check(err, "signature")
	size, root := head(opened.Text)
	reader := tlog.TileHashReader(tlog.Tree{N: size, Hash: root}, folder(dir))

	all := entries(dir, size)
	if int64(len(all)) != size {
		check(fmt.Errorf("%d of %d", len(all), size), "entries")
	}
	for i, entry := range all {
		hashes, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(i))})
		check(err, "tiles")
		if hashes[0] != tlog.RecordHash(entry) {
			check(fmt.Errorf("entry %d", i), "entry hash")
		}
	}
	for _, i := range []int64{0, size / 2, size - 1} {
		proof, err := tlog.ProveRecord(size, i, reader)
		check(err, "inclusion")
		check(tlog.CheckRecord(proof, size, root, i, tlog.RecordHash(all[i])), "inclusion")
	}
	old, err := strconv.ParseInt(os.Args[2], 10, 64)
	check(err, "old size")
	oldRoot, err := tlog.TreeHash(old, reader)
	check(err, "old root")
	proof, err := tlog.ProveTree(size, old, reader)
	check(err, "consistency")
	check(tlog.CheckTree(proof, size, root, old, oldRoot), "consistency")
	fmt.Printf("%d %s\n", size, root)
}
