// Package logbook keeps a log short while the same thing happens again and again: the
// first time is a line at once, the next ones are counted and told at a growing
// distance, and when it is over one line says how often and for how long. Nothing is
// dropped: the counts of all lines of a trouble add up.
package logbook

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
)

// Line is something that may happen again and again.
type Line struct {
	Level   slog.Level
	Message string // a fixed text
	Over    string // of the line at the end, at Info; a fixed text
	// Quiet is how long nothing of it has to be noted for it to be over; 0 = somebody says
	// so, by Over.
	Quiet time.Duration
}

// distances between the lines of a trouble that lasts; the last one stays.
var distances = []time.Duration{10 * time.Second, time.Minute, 10 * time.Minute, time.Hour, 4 * time.Hour}

// Distance is how long after the n-th line of a trouble, from 1, the next one may come.
func Distance(n int) time.Duration { return distances[min(max(n, 1), len(distances))-1] }

// Book counts what happens again and again. Safe for concurrent use.
type Book struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	entries map[entryKey]*entry
	books   map[string]*Book // of For
}

type entryKey struct{ message, key string }

type entry struct {
	line   Line
	key    string
	attrs  []any // of the newest
	first  time.Time
	last   time.Time
	count  uint64
	told   time.Time // when its last line was written
	toldOf uint64    // of count
	lines  int
	timer  *time.Timer // of Quiet
}

// New is an empty book that writes to log.
func New(log *slog.Logger, now func() time.Time) *Book {
	return &Book{log: log, now: now, entries: map[entryKey]*entry{}}
}

// For is the book of one thing of several, a sync say: all its lines have the
// attributes. Close closes it, too.
func (b *Book) For(attrs ...any) *Book {
	name := fmt.Sprint(attrs...)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.books == nil {
		b.books = map[string]*Book{}
	}
	if b.books[name] == nil {
		b.books[name] = New(b.log.With(attrs...), b.now)
	}
	return b.books[name]
}

// Note enters that it has happened n times more. key tells kinds of it apart, so that
// none hides another; it is a word of a closed set. The attributes are those of the
// newest.
func (b *Book) Note(l Line, key string, n uint64, attrs ...any) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	k := entryKey{l.Message, key}
	e := b.entries[k]
	if e == nil {
		e = &entry{line: l, key: key, first: now}
		b.entries[k] = e
		if l.Quiet > 0 {
			e.timer = time.AfterFunc(l.Quiet, func() { b.quiet(k, e) })
		}
	}
	e.count += n
	e.last, e.attrs = now, attrs
	if e.lines == 0 || now.Sub(e.told) >= Distance(e.lines) {
		b.tell(e)
	}
}

// tell writes a line, with mu held.
func (b *Book) tell(e *entry) {
	attrs := slices.Clone(e.attrs)
	if e.count > 1 {
		attrs = append(attrs, "times", Times(e.count, e.key, e.last.Sub(e.first)), "count", e.count)
	}
	e.lines++
	e.told, e.toldOf = b.now(), e.count
	b.log.Log(context.Background(), e.line.Level, e.line.Message, attrs...)
}

// quiet ends an entry of which nothing was heard for its Quiet.
func (b *Book) quiet(k entryKey, e *entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.entries[k] != e {
		return
	}
	if left := e.line.Quiet - b.now().Sub(e.last); left > 0 {
		e.timer.Reset(left)
		return
	}
	b.end(k, e, e.count > 1)
}

// end takes an entry out, with mu held.
func (b *Book) end(k entryKey, e *entry, told bool, attrs ...any) {
	delete(b.entries, k)
	if e.timer != nil {
		e.timer.Stop()
	}
	if told {
		if e.key != "" {
			attrs = append(attrs, "reason", e.key)
		}
		attrs = append(attrs, "times", Times(e.count, e.key, e.last.Sub(e.first)), "count", e.count)
		b.log.Info(e.line.Over, attrs...)
	}
}

// Over says that it is over; where it has not happened nothing is said.
func (b *Book) Over(l Line, key string, attrs ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := entryKey{l.Message, key}
	if e := b.entries[k]; e != nil {
		b.end(k, e, true, attrs...)
	}
}

// Close tells what was counted and not told yet. Nothing is noted afterwards.
func (b *Book) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	var keys []entryKey
	for k := range b.entries {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b entryKey) int { return strings.Compare(a.message+a.key, b.message+b.key) })
	for _, k := range keys {
		e := b.entries[k]
		if e.count > e.toldOf {
			b.tell(e)
		}
		b.end(k, e, false)
	}
	for _, of := range b.books {
		of.Close()
	}
}

// Times is a count as people read it: "17,990 × 503 in 41m".
func Times(n uint64, of string, in time.Duration) string {
	if of == "" {
		of = "times"
		if n == 1 {
			of = "time"
		}
		return fmt.Sprintf("%s %s in %s", humanize.Comma(int64(n)), of, Short(in))
	}
	return fmt.Sprintf("%s × %s in %s", humanize.Comma(int64(n)), of, Short(in))
}

// Short is a duration as people read it, of two units at most: "41m", "1h12m", "3d4h".
func Short(d time.Duration) string {
	const day = 24 * time.Hour
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return two(d, time.Minute, "m", time.Second, "s", 10*time.Minute)
	case d < 2*day:
		return two(d, time.Hour, "h", time.Minute, "m", 2*day)
	}
	return two(d, day, "d", time.Hour, "h", 30*day)
}

// two writes large and, below a bound and where it is not 0, small units.
func two(d, large time.Duration, l string, small time.Duration, s string, bound time.Duration) string {
	text := fmt.Sprintf("%d%s", d/large, l)
	if rest := d % large / small; rest > 0 && d < bound {
		text += fmt.Sprintf("%d%s", rest, s)
	}
	return text
}
