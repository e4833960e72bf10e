package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// A Row of the table, as measured.
type Row struct {
	N            int
	What, Target string
	Measured     string
	Ratio        string             // to the target's measure
	Verdict      string             // pass, fail or not measured
	Note         string             `json:",omitempty"` // what was other than usual
	Values       map[string]float64 `json:",omitempty"` // medians, for programs
	Date, Ampcio string             // of this row: rows can be measured alone
}

// Results are a run of bench.
type Results struct {
	Machine, Go, Ampcio, Date string
	Quick                     bool `json:",omitempty"`
	Rows                      []Row
}

func goVersion() string { return runtime.Version() }

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

func verdict(ok bool) string {
	if ok {
		return "pass"
	}
	return "fail"
}

// count writes 12345 as 12,345.
func count(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func mib(bytes float64) string { return fmt.Sprintf("%.0f MiB", bytes/(1<<20)) }

func printTable(w io.Writer, r Results) {
	fmt.Fprintf(w, "%s; %s; ampcio %s; %s\n", r.Machine, r.Go, r.Ampcio, r.Date)
	if r.Quick {
		fmt.Fprintln(w, "quick: one short run of each, so verdicts say little")
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "#\twhat\ttarget\tmeasured\tratio\t")
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\n", row.N, row.What, row.Target, row.Measured, row.Ratio, strings.TrimSpace(row.Verdict+"  "+row.Note))
	}
	_ = t.Flush() // what w is written to shows its own errors
}

func writeMarkdown(path string, r Results) error {
	var s strings.Builder
	fmt.Fprintf(&s, "# Results\n\nWritten by `bench/run`; [README.md](README.md) says what is measured, and how.\n\n")
	fmt.Fprintf(&s, "- Machine: %s\n- %s; ampcio %s\n- %s\n\n", r.Machine, r.Go, r.Ampcio, r.Date)
	s.WriteString("| # | what | target | measured | ratio | verdict | |\n|---|---|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		note := row.Note
		if row.Date != r.Date {
			note = strings.TrimSpace(fmt.Sprintf("%s (measured %s, ampcio %s)", note, row.Date, row.Ampcio))
		}
		cells := []string{fmt.Sprint(row.N), row.What, row.Target, row.Measured, row.Ratio, row.Verdict, note}
		for i := range cells {
			cells[i] = strings.ReplaceAll(strings.ReplaceAll(cells[i], "|", `\|`), "\n", " ")
		}
		fmt.Fprintf(&s, "| %s |\n", strings.Join(cells, " | "))
	}
	return os.WriteFile(path, []byte(s.String()), 0o644)
}

func writeJSON(path string, r Results) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func readJSON(path string) (r Results, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}
