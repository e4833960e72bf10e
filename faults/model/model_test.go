package model

import (
	"os"
	"testing"
)

func memory(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "model-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func BenchmarkHistories(b *testing.B) {
	dir := memory(b)
	for n := 0; n < b.N; {
		var all [][]step
		for i := range min(perCase, b.N-n) {
			all = append(all, draw(uint64(n+i)*7919))
		}
		lived, err := live(b.Context(), dir, all, nil)
		if err != nil {
			b.Fatalf("history %d: %v", n+lived+1, shorter(b.Context(), dir, all[:lived+1], err))
		}
		n += lived
	}
}

func TestLength(t *testing.T) {
	n := 0
	for i := range 1000 {
		n += len(draw(uint64(i)))
	}
	t.Log(n)
	counts := map[string]int{}
	for i := range 1000 {
		for _, s := range draw(uint64(i)) {
			counts[s.do]++
		}
	}
	t.Log(counts)
}
