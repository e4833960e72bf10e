package mapping

import (
	"encoding/hex"
	"os"
	"testing"

	"github.com/go-json-experiment/json"
)

func TestIDsFollowThePublishedVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/ulid-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Event []struct {
			Project  string `json:"project"`
			Kind     string `json:"kind"`
			ID       string `json:"id"`
			InsertID string `json:"insert_id"`
			Hex      string `json:"hex"`
			ULID     string `json:"ulid"`
		} `json:"event"`
		Place []struct {
			Nonce string `json:"nonce"`
			Index int    `json:"index"`
			Hex   string `json:"hex"`
			ULID  string `json:"ulid"`
		} `json:"place"`
		ULID []struct {
			Hex  string `json:"hex"`
			ULID string `json:"ulid"`
		} `json:"ulid"`
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Event) == 0 || len(vectors.Place) == 0 || len(vectors.ULID) == 0 {
		t.Fatal("vectors are missing")
	}
	check := func(id [16]byte, wantHex, wantULID string) {
		t.Helper()
		if hex.EncodeToString(id[:]) != wantHex || ULID(id) != wantULID {
			t.Errorf("got %x %s, want %s %s", id, ULID(id), wantHex, wantULID)
		}
	}
	for _, v := range vectors.Event {
		check(EventID(v.Project, v.Kind, v.ID, v.InsertID), v.Hex, v.ULID)
	}
	for _, v := range vectors.Place {
		var nonce [16]byte
		if _, err := hex.Decode(nonce[:], []byte(v.Nonce)); err != nil {
			t.Fatal(err)
		}
		check(PlaceID(nonce, v.Index), v.Hex, v.ULID)
	}
	for _, v := range vectors.ULID {
		var id [16]byte
		if _, err := hex.Decode(id[:], []byte(v.Hex)); err != nil {
			t.Fatal(err)
		}
		check(id, v.Hex, v.ULID)
	}
}
