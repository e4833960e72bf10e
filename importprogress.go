package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"golang.org/x/term"
)

// importProgress tells how far an import is: a bar on a terminal, else a line every few seconds.
type importProgress struct {
	w     io.Writer
	what  string
	total uint64 // 0 = nobody knows
	done  uint64
	next  time.Time // of the next line

	bar     progress.Writer // nil: no terminal
	tracker *progress.Tracker
	drawn   chan struct{}
}

// tellEvery is how often a line is written where there is no terminal.
const tellEvery = 5 * time.Second

func newImportProgress(w io.Writer, what string, total uint64) *importProgress {
	p := &importProgress{w: w, what: what, total: total, next: time.Now().Add(tellEvery)}
	out, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(out.Fd())) {
		return p
	}
	p.bar = progress.NewWriter()
	p.bar.SetOutputWriter(w)
	p.bar.SetUpdateFrequency(200 * time.Millisecond)
	p.bar.SetTrackerPosition(progress.PositionRight)
	p.bar.SetAutoStop(false)
	if colored(w) {
		p.bar.SetStyle(progress.StyleBlocks)
	}
	p.tracker = &progress.Tracker{Message: "lines " + what, Total: int64(total)}
	p.bar.AppendTracker(p.tracker)
	p.drawn = make(chan struct{})
	go func() { defer close(p.drawn); p.bar.Render() }()
	return p
}

func (p *importProgress) add(n uint64) {
	p.done += n
	if p.bar != nil {
		p.tracker.SetValue(int64(p.done))
		return
	}
	if p.done&0x3ff != 0 && n == 1 || time.Now().Before(p.next) {
		return
	}
	p.next = time.Now().Add(tellEvery)
	if p.total == 0 {
		fmt.Fprintf(p.w, "%s: %s lines\n", p.what, many(p.done))
		return
	}
	fmt.Fprintf(p.w, "%s: %s of %s lines (%d %%)\n", p.what, many(p.done), many(p.total), 100*p.done/p.total)
}

// restart is for an import that begins again, and passes over what it has done.
func (p *importProgress) restart() {
	p.done = 0
	if p.bar != nil {
		p.tracker.SetValue(0)
	}
}

// note writes a line beside it.
func (p *importProgress) note(text string) {
	if p.bar != nil {
		p.bar.Log("%s", text)
		return
	}
	fmt.Fprintln(p.w, text)
}

// end leaves it as it is.
func (p *importProgress) end() {
	if p.bar == nil {
		return
	}
	if p.total == 0 || p.done >= p.total {
		p.tracker.MarkAsDone()
	}
	p.bar.Stop()
	<-p.drawn
	p.bar = nil
}
