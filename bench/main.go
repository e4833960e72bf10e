// Command bench measures ampcio against the limits of the machine it runs on. See README.md.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"ampcio-bench/ceiling"
	"ampcio-bench/hist"
	"ampcio-bench/load"
	"ampcio-bench/machine"
	"ampcio-bench/sink"
)

const usage = `bench/run [-quick] [-hour 5m] [ROW…]   measure these rows, or all but 20, and write RESULTS.md and results.json
bench/run list                         the rows

-quick            one short run of each and 1 M queued instead of 10 M: to see that all works; writes nothing
-runs N           medians of N runs [5]
-queued N         how many events are queued in rows 9 and 12 to 16 [10000000]
-hour DURATION    how long row 20 takes [1h]; it is run only when named
-dir DIR          where storage is made, on the disk that is to be measured [/var/tmp]
-json FILE        also write what was measured there
-strict           end with 1 when a row fails
`

func main() {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "load":
			must(generate(os.Args[2]))
			return
		case "sink":
			must(listen(os.Args[2], sink.New().Handler()))
			return
		case "ceiling":
			must(listen(os.Args[2], ceiling.Handler()))
			return
		}
	}
	os.Exit(run())
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func listen(address string, h http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return http.Serve(l, h)
}

// said is a line of what the generator says while it runs.
type said struct {
	Lately *hist.Percentiles `json:",omitempty"`
	Result *load.Result      `json:",omitempty"`
}

func generate(plan string) error {
	var p load.Plan
	if err := json.Unmarshal([]byte(plan), &p); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	r, err := load.Run(p, func(lately hist.Percentiles) { _ = out.Encode(said{Lately: &lately}) })
	if err != nil {
		return err
	}
	return out.Encode(said{Result: &r})
}

// result reads what the generator said.
func result(out *bufio.Scanner, told func(hist.Percentiles)) (load.Result, error) {
	for out.Scan() {
		var s said
		if err := json.Unmarshal(out.Bytes(), &s); err != nil {
			return load.Result{}, fmt.Errorf("the generator said %q", out.Text())
		}
		if s.Result != nil {
			return *s.Result, nil
		}
		told(*s.Lately)
	}
	return load.Result{}, fmt.Errorf("the generator ended without a result: %v", out.Err())
}

func run() int {
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	b := &bench{began: time.Now()}
	quick := flag.Bool("quick", false, "")
	ampcio := flag.String("ampcio", "", "") // that run has built
	dir := flag.String("dir", "/var/tmp", "")
	asJSON := flag.String("json", "", "")
	strict := flag.Bool("strict", false, "")
	flag.IntVar(&b.runs, "runs", 5, "")
	flag.DurationVar(&b.hour, "hour", time.Hour, "")
	flag.IntVar(&b.queued, "queued", 10_000_000, "")
	flag.Parse()
	b.seconds, b.most, b.ampcio = 2500*time.Millisecond, 1_024_000, *ampcio
	if *quick {
		b.runs, b.seconds, b.queued, b.most, b.quick = 1, time.Second, min(b.queued, 1_000_000), 102_400, true
	}
	if flag.Arg(0) == "list" {
		for _, r := range rows {
			fmt.Printf("%2d  %s: %s\n", r.n, r.what, r.target)
		}
		return 0
	}
	var chosen []int
	for _, arg := range flag.Args() {
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 || n > len(rows) {
			fmt.Fprintf(os.Stderr, "there is no row %q; bench/run list shows them\n", arg)
			return 64
		}
		chosen = append(chosen, n)
	}
	if len(chosen) == 0 {
		for n := 1; n < len(rows); n++ {
			chosen = append(chosen, n)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b.ctx = ctx
	folder, err := os.MkdirTemp(*dir, "ampcio-bench-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(folder)
	b.dir = folder
	defer b.stopAll()
	if b.self, err = os.Executable(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if !machine.OnDisk(folder) {
		fmt.Fprintf(os.Stderr, "%s is in memory: nothing there is durable, so nothing here would mean anything; name a folder on a disk by -dir\n", folder)
		return 64
	}
	results := measure(b, chosen)
	fmt.Println()
	printTable(os.Stdout, results)
	if *asJSON != "" {
		if err := writeJSON(*asJSON, results); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if !*quick && ctx.Err() == nil {
		if err := writeResults(".", results); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if failed := slices.ContainsFunc(results.Rows, func(r Row) bool { return r.Verdict != "pass" }); ctx.Err() != nil || *strict && failed {
		return 1
	}
	return 0
}

func measure(b *bench, chosen []int) Results {
	results := Results{Machine: machine.Name(), Go: goVersion(), Date: time.Now().UTC().Format(time.RFC3339), Ampcio: b.version(), Quick: b.quick}
	// What is done with 10 M queued comes in an order of its own: the drain ends it.
	order := []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 17, 18, 19, 12, 15, 14, 13, 16, 20}
	for _, n := range order {
		if !slices.Contains(chosen, n) || b.ctx.Err() != nil {
			continue
		}
		spec := rows[n-1]
		b.row = n
		row, err := spec.measure(b)
		b.stopUnkept()
		row.N, row.What, row.Target, row.Date, row.Ampcio = n, spec.what, spec.target, results.Date, results.Ampcio
		if err != nil {
			row.Verdict, row.Note = "not measured", err.Error()
		}
		fmt.Printf("%6.0f s  row %d: %s  %s  %s  %s\n", time.Since(b.began).Seconds(), n, row.Measured, row.Ratio, row.Verdict, row.Note)
		results.Rows = append(results.Rows, row)
	}
	slices.SortFunc(results.Rows, func(a, b Row) int { return a.N - b.N })
	return results
}

func writeResults(dir string, now Results) error {
	file := filepath.Join(dir, "results.json")
	before, err := readJSON(file)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, old := range before.Rows {
		if !slices.ContainsFunc(now.Rows, func(r Row) bool { return r.N == old.N }) {
			now.Rows = append(now.Rows, old)
		}
	}
	slices.SortFunc(now.Rows, func(a, b Row) int { return a.N - b.N })
	if err := writeJSON(file, now); err != nil {
		return err
	}
	return writeMarkdown(filepath.Join(dir, "RESULTS.md"), now)
}
