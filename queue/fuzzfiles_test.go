package queue

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// FuzzBucketValues reads the small values of a ledger, behind their checksums: what can be read is written as what is
// read again as the same.
func FuzzBucketValues(f *testing.F) {
	rec := Record{Seq: 7, Project: "app", Lane: "u:1", Received: 5, Body: []byte("body")}
	f.Add(appendAside(nil, &entry{rec: rec}))
	f.Add(appendAside(nil, &entry{rec: rec, replay: true, results: []byte(`[{"status":200}]`)}))
	f.Add((&asideLane{count: 3, bytes: 99, oldest: -5}).append(nil, "u:1"))
	f.Add(retryState{attempts: 4, due: 1 << 40, delay: 5, reason: "http_500"}.append(nil, "u:1"))
	f.Add(Count{N: 1 << 60, Newest: 9, Example: "e"}.append(nil))
	f.Fuzz(func(t *testing.T, v []byte) {
		if e, err := readAside(7, v); err == nil {
			again, err := readAside(7, appendAside(nil, e))
			if err != nil || again.replay != e.replay || !bytes.Equal(again.results, e.results) || !reflect.DeepEqual(normal(again.rec), normal(e.rec)) {
				t.Fatalf("%+v, again %+v: %v", e, again, err)
			}
		}
		if lane, a, err := readAsideLane(v); err == nil {
			name, again, err := readAsideLane(a.append(nil, lane))
			if err != nil || name != lane || again.count != a.count || again.bytes != a.bytes || again.oldest != a.oldest {
				t.Fatalf("%s %+v, again %s %+v: %v", lane, a, name, again, err)
			}
		}
		if lane, r, err := readRetryState(v); err == nil {
			name, again, err := readRetryState(r.append(nil, lane))
			if err != nil || name != lane || again != r {
				t.Fatalf("%s %+v, again %s %+v: %v", lane, r, name, again, err)
			}
		}
		if c, err := readCount(v); err == nil {
			if again, err := readCount(c.append(nil)); err != nil || again != c {
				t.Fatalf("%+v, again %+v: %v", c, again, err)
			}
		}
		_, _ = unseal(v, v)
	})
}

// FuzzEnded reads a block of a history, unpacked.
func FuzzEnded(f *testing.F) {
	f.Add([]byte{1, 1, 2, 1, 'r', 1, 'k', 0, 0, 0, 2, 2, 2, 0, 2, 2, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		n := 0
		eachEnded(raw, func(e Ended) {
			if n++; e.Ending >= endings {
				t.Fatalf("%+v", e)
			}
		})
		if n > len(raw) {
			t.Fatalf("%d records of %d bytes", n, len(raw))
		}
	})
}

// FuzzTombstones reads the file of those who were forgotten. A line that cannot be read is counted; none is made up.
func FuzzTombstones(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, tombstoneFile)
	f.Add([]byte(`{"v":1,"id":"a","project":"YXBw","up_to":9,"lanes":["AAAAAAAAAAAAAAAAAAAAAA=="]}`), true)
	f.Add([]byte(`{}`), true)
	f.Add([]byte("00000000 {}\n\n12 x\n"), false)
	f.Fuzz(func(t *testing.T, text []byte, sum bool) {
		if sum { // else the checksum would keep the fuzzer out
			text = append([]byte(hex8(crc32.Checksum(text, castagnoli))+" "), text...)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		list, damaged, err := readTombstones(path)
		if lines := bytes.Count(text, []byte("\n")) + 1; err == nil && len(list)+damaged > lines {
			t.Fatalf("%d tombstones and %d damaged lines in %d", len(list), damaged, lines)
		}
		if err != nil && !errors.Is(err, ErrNewerFormat) {
			t.Fatal(err)
		}
	})
}

func hex8(n uint32) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 8)
	for i := range b {
		b[7-i] = digits[n>>(4*i)&15]
	}
	return string(b)
}

// FuzzRestore reads backups: none that is not whole is taken, and none writes outside of its folder.
func FuzzRestore(f *testing.F) {
	pack := func(names ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range names {
			text := []byte("text of " + name)
			if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(text))}), packText(w, text)); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	f.Add(pack("users.db", "log/00000000000000000001.db", manifestName))
	f.Add(pack("../outside"))
	f.Add(pack("/tmp/outside", "sync/../../outside.db"))
	f.Add([]byte("no tar"))
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, backup []byte) {
		to := filepath.Join(root, "to")
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
		if _, err := unpack(context.Background(), bytes.NewReader(backup), to); err == nil {
			t.Fatal("taken, without a manifest that is right")
		}
		if entries, err := os.ReadDir(root); err != nil || len(entries) != 1 {
			t.Fatalf("%v beside the folder, %v", entries, err)
		}
	})
}

func packText(w *tar.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}
