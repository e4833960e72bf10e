package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The rows are the table of 20, in its order, and RESULTS.md keeps those that were not measured again.
func TestResultsOfSomeRowsKeepTheOthers(t *testing.T) {
	for i, r := range rows {
		if r.n != i+1 || r.what == "" || r.target == "" || r.measure == nil {
			t.Errorf("row %d is number %d: %+v", i+1, r.n, r.what)
		}
	}
	dir := t.TempDir()
	for _, now := range []Results{
		{Machine: "m", Date: "then", Ampcio: "1", Rows: []Row{{N: 1, Measured: "old one", Date: "then", Ampcio: "1"}, {N: 5, Measured: "old five", Date: "then", Ampcio: "1"}}},
		{Machine: "m", Date: "now", Ampcio: "2", Rows: []Row{{N: 1, Measured: "new one | better", Verdict: "pass", Date: "now", Ampcio: "2"}}},
	} {
		if err := writeResults(dir, now); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "RESULTS.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`new one \| better`, "old five", "(measured then, ampcio 1)"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old one") {
		t.Errorf("a row stands there that was measured again:\n%s", text)
	}
}

func TestMedianAndCount(t *testing.T) {
	if m := median([]float64{5, 1, 3}); m != 3 {
		t.Error(m)
	}
	if m := median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Error(m)
	}
	for v, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 1234567.4: "1,234,567", -1234: "-1,234"} {
		if got := count(v); got != want {
			t.Errorf("%v: %s instead of %s", v, got, want)
		}
	}
}
