package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var update = flag.Bool("update", false, "write allocs.txt anew")

const allocsFile = "allocs.txt"

// slack is for paths through a house, allocations an event: maps grow when they like. It is less than one that every other event makes.
const slack = 0.5

// TestAllocations: no path allocates more than allocs.txt says. Unlike times, allocations are the same on every machine, so one
// more is somebody's doing.
func TestAllocations(t *testing.T) {
	// On several, who waits for whom is a matter of chance, and to wait costs a channel or a timer.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	known := readAllocs(t)
	var table strings.Builder
	table.WriteString("# Allocations of each path, an event. Written by: go test -C bench -run Allocations -update\n")
	for _, p := range paths() {
		t.Run(p.name, func(t *testing.T) {
			var got float64
			if p.house {
				synctest.Test(t, func(t *testing.T) { got = allocations(t, p) })
			} else {
				got = allocations(t, p)
			}
			fmt.Fprintf(&table, "%-36s %.2f\n", p.name, got)
			t.Logf("%.2f", got)
			if *update {
				return
			}
			bound, ok := known[p.name]
			if !ok {
				t.Fatalf("%s is not in %s: run go test -C bench -run Allocations -update, and commit the file", p.name, allocsFile)
			}
			most := bound + 0.005 // as it is rounded
			if p.house {
				most += slack
			}
			switch {
			case got > most:
				t.Errorf("%.2f allocations an event, and %s allows %.2f.\nFind them: go test -C bench -run '^$' -bench 'Paths/%s' -memprofile mem.out -memprofilerate 1, then go tool pprof -sample_index alloc_objects -top mem.out.\n"+
					"If they are worth it: go test -C bench -run Allocations -update, and say why in the commit.", got, allocsFile, bound, strings.ReplaceAll(p.name, " ", "_"))
			case got < bound*0.9-0.005:
				t.Logf("only %.2f allocations an event, where %s allows %.2f: hold what was won by go test -C bench -run Allocations -update", got, allocsFile, bound)
			}
		})
	}
	if *update {
		if err := os.WriteFile(allocsFile, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// allocations of a path, an event: the least of three looks, since a checkpoint or a map that grows falls into any of them by chance.
func allocations(t *testing.T, p path) float64 {
	once := p.begin(t)
	op := func() {
		once()
		if p.house {
			time.Sleep(500 * time.Millisecond) // one checkpoint, and no second request yet
		}
	}
	for range people/p.events + 20 { // everybody has come, and buffers have their size
		op()
	}
	// A collection would empty the pools, and filling them again would count.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	ops := max(10, 2000/p.events)
	least := 0.0
	for look := range 3 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range ops {
			op()
		}
		runtime.ReadMemStats(&after)
		n := float64(after.Mallocs-before.Mallocs) / float64(ops*p.events)
		if look == 0 || n < least {
			least = n
		}
	}
	return least
}

func readAllocs(t *testing.T) map[string]float64 {
	f, err := os.Open(allocsFile)
	if os.IsNotExist(err) && *update {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	known := map[string]float64{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		n, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			t.Fatalf("%s: %q: %v", allocsFile, line, err)
		}
		known[strings.TrimSpace(line[:at])] = n
	}
	return known
}
