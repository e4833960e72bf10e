package queue

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
)

func FuzzOpenChunk(f *testing.F) {
	w := newWriter(logEnd{counts: map[string]uint64{"app": 3}}, nil)
	batch("a:one", "b:two").Resolve(&w)
	_, seed := sealChunk([]byte("before"), w.finish()[0])
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, v []byte) {
		// The checksum would keep the fuzzer out: it is set right first.
		if len(v) >= chunkHeader {
			v = resum(1, bytes.Clone(v))
		}
		c, err := openChunk(1, v)
		if err != nil {
			return
		}
		n := 0
		if err := c.Records(func(Record) error { n++; return nil }); err != nil || n != c.Count {
			t.Fatalf("opened, but: %d records of %d, %v", n, c.Count, err)
		}
		_, sealed := sealChunk(nil, c)
		if again, err := openChunk(1, sealed); err != nil || !bytes.Equal(again.raw, c.raw) {
			t.Fatal("sealed again, it is another")
		}
	})
}

func FuzzReadLedgerState(f *testing.F) {
	s := ledgerState{project: "app", spans: []span{{from: 1, to: 2, fromCount: 1, toCount: 2}, {from: 9}}, low: 5, done: []run{{7, 9}}, seen: 12}
	f.Add(s.append(nil))
	f.Add(binary.AppendUvarint(nil, 1<<62))
	f.Fuzz(func(t *testing.T, v []byte) {
		s, err := readLedgerState(v, ledgerFormat)
		if err != nil {
			return
		}
		again, err := readLedgerState(s.append(nil), ledgerFormat)
		if err != nil || !reflect.DeepEqual(s, again) {
			t.Fatalf("%+v, again %+v: %v", s, again, err)
		}
	})
}

func FuzzReadDeadLetter(f *testing.F) {
	d := DeadLetter{Record: Record{Project: "app", Lane: "u:1", Body: []byte("body")}, At: 5, Reason: "r", Results: []byte("[]")}
	f.Add(d.append(nil))
	f.Fuzz(func(t *testing.T, v []byte) {
		d, err := readDeadLetter(7, v)
		if err != nil {
			return
		}
		again, err := readDeadLetter(7, d.append(nil))
		if err != nil || again.Reason != d.Reason || !bytes.Equal(again.Record.Body, d.Record.Body) {
			t.Fatalf("%+v, again %+v: %v", d, again, err)
		}
	})
}

func FuzzReadRecord(f *testing.F) {
	f.Add(appendRecord(nil, &Record{Project: "app", Lane: "u:1", Received: -1, Body: []byte("body")}))
	f.Fuzz(func(t *testing.T, v []byte) {
		r, n, err := readRecord(v, Record{})
		if (err == nil) != (checkRecords(v[:n], 1) == nil) && err == nil {
			t.Fatal("checkRecords and readRecord differ")
		}
		if err != nil {
			return
		}
		again, _, err := readRecord(appendRecord(nil, &r), r)
		if err != nil || !reflect.DeepEqual(normal(r), normal(again)) {
			t.Fatalf("%+v, again %+v: %v", r, again, err)
		}
	})
}

func normal(r Record) Record {
	r.Body = append([]byte{}, r.Body...)
	return r
}

func FuzzReadLogEnd(f *testing.F) {
	e := logEnd{seq: 9, counts: map[string]uint64{"app": 4}}
	f.Add(e.append(nil))
	f.Fuzz(func(t *testing.T, v []byte) {
		if e, err := readLogEnd(v); err == nil {
			if again, err := readLogEnd(e.append(nil)); err != nil || !reflect.DeepEqual(e, again) {
				t.Fatalf("%+v, again %+v: %v", e, again, err)
			}
		}
	})
}
