// Checks a wardround audit folder with Go's own transparency-log packages: golang.org/x/mod/sumdb/{note,tlog}.
//
// Usage: verify AUDIT_FOLDER LOG_VERIFIER_KEY
//
// Nothing of wardround is used. Go's tile paths have the tile height in them, C2SP's do not; that is the only mapping.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

type tiles struct{ folder string }

func (t tiles) Height() int                     { return height }
func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range wanted {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := os.ReadFile(filepath.Join(t.folder, path))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func check(err error) {
	if err != nil {
		fmt.Println("refused:", err)
		os.Exit(1)
	}
}

func head(folder, name string, key note.Verifier) tlog.Tree {
	text, err := os.ReadFile(filepath.Join(folder, name))
	check(err)
	opened, err := note.Open(text, note.VerifierList(key))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	root, err := tlog.ParseHash(lines[2])
	check(err)
	return tlog.Tree{N: size, Hash: root}
}

func main() {
	folder := filepath.Join(os.Args[1], "log")
	key, err := note.NewVerifier(os.Args[2])
	check(err)
	newest, cosigned := head(folder, "checkpoint", key), head(folder, "checkpoint.cosigned", key)
	hashes := tlog.TileHashReader(newest, tiles{folder})
	proof, err := tlog.ProveTree(newest.N, cosigned.N, hashes)
	check(err)
	check(tlog.CheckTree(proof, newest.N, newest.Hash, cosigned.N, cosigned.Hash))
	for start := int64(0); start < newest.N; start += 1 << height {
		width := newest.N - start
		if width > 1<<height {
			width = 1 << height
		}
		tile := tlog.Tile{H: height, L: 0, N: start >> height, W: int(width)}
		path := strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1)
		bundle, err := os.ReadFile(filepath.Join(folder, path))
		check(err)
		for index := start; index < start+width; index++ {
			length := int(binary.BigEndian.Uint16(bundle))
			record := tlog.RecordHash(bundle[2 : 2+length])
			bundle = bundle[2+length:]
			inclusion, err := tlog.ProveRecord(newest.N, index, hashes)
			check(err)
			check(tlog.CheckRecord(inclusion, newest.N, newest.Hash, index, record))
		}
	}
	fmt.Println("verified", newest.N, "entries")
}
