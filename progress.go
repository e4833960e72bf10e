package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// progress tells how far a long verb is, on stderr: at a terminal in a line that is drawn
// again, else in a plain line now and then, ever less often, since a log keeps them all.
// With --json it tells nothing. All methods are for one goroutine.
type progress struct {
	w       io.Writer  // nil: nothing is told
	columns func() int // of the terminal; nil = it is none
	now     func() time.Time

	what  string              // "taken"
	noun  string              // behind the numbers: "lines", or "" where they say it themselves
	count func(uint64) string // a number for people
	total uint64              // 0 = nobody knows
	done  uint64

	began, next time.Time
	plain       time.Duration // until the next plain line
	shown       bool          // a line of it stands on the terminal
}

// At a terminal it is drawn again after redrawEvery; elsewhere the first line comes after
// tellFirst, and then ever later, up to tellMost.
const (
	redrawEvery = 100 * time.Millisecond
	tellFirst   = 5 * time.Second
	tellMost    = time.Minute
)

// newProgress is the progress of a verb that counts things, such as lines.
func newProgress(c *cli.Context, what, noun string, total uint64) *progress {
	p := progressOn(c.App.ErrWriter, time.Now)
	if c.Bool("json") {
		p.w = nil
	}
	p.what, p.noun, p.total = what, noun, total
	return p
}

func progressOn(w io.Writer, now func() time.Time) *progress {
	p := &progress{w: w, now: now, count: many, began: now(), plain: tellFirst}
	p.next = p.began.Add(p.plain)
	if out, isFile := w.(*os.File); isFile && term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb" {
		p.next = p.began
		p.columns = func() int {
			if n, _, err := term.GetSize(int(out.Fd())); err == nil && n > 0 {
				return n
			}
			return 80
		}
	}
	return p
}

// add tells of n more.
func (p *progress) add(n uint64) { p.set(p.done + n) }

// set tells how many are done.
func (p *progress) set(done uint64) {
	p.done = done
	if p.due() {
		p.draw(p.numbers())
	}
}

// tell shows a line in words that f gives, when it is time for one.
func (p *progress) tell(f func() string) {
	if p.due() {
		p.draw(f())
	}
}

// due says whether it is time for a line, and sets the time of the next.
func (p *progress) due() bool {
	if p.w == nil {
		return false
	}
	now := p.now()
	if now.Before(p.next) {
		return false
	}
	if p.columns != nil {
		p.next = now.Add(redrawEvery)
		return true
	}
	p.plain = min(2*p.plain, tellMost)
	p.next = now.Add(p.plain)
	return true
}

// draw shows one line.
func (p *progress) draw(line string) {
	if p.columns == nil {
		fmt.Fprintln(p.w, line)
		return
	}
	p.shown = true
	fmt.Fprint(p.w, "\r\x1b[K"+clipText(line, max(p.columns()-1, 1)))
}

// numbers is the line that tells how much is done.
func (p *progress) numbers() string {
	noun := ""
	if p.noun != "" {
		noun = " " + p.noun
	}
	if p.total == 0 {
		return fmt.Sprintf("%s: %s%s%s", p.what, p.count(p.done), noun, p.pace())
	}
	percent := 100 * min(p.done, p.total) / p.total
	text := fmt.Sprintf("%s: %s of %s%s (%d %%)%s", p.what, p.count(p.done), p.count(p.total), noun, percent, p.left())
	if p.columns == nil {
		return text
	}
	// The bar has what the words leave; a narrow terminal has none.
	width := min(p.columns()-1-utf8.RuneCountInString(text)-1, 30)
	if width < 8 {
		return text
	}
	full := int(uint64(width) * percent / 100)
	return strings.Repeat("█", full) + strings.Repeat("░", width-full) + " " + text
}

// pace is how many are done in a second.
func (p *progress) pace() string {
	if s := p.now().Sub(p.began).Seconds(); s >= 1 {
		return fmt.Sprintf(", %s/s", p.count(uint64(float64(p.done)/s)))
	}
	return ""
}

// left is how long the rest takes at the pace so far.
func (p *progress) left() string {
	took := p.now().Sub(p.began)
	if took < 2*time.Second || p.done == 0 || p.done >= p.total {
		return ""
	}
	rest := time.Duration(float64(took) * float64(p.total-p.done) / float64(p.done))
	return ", about " + forPeople(rest) + " left"
}

// restart is for something that begins again, and passes over what it has done.
func (p *progress) restart() { p.done, p.began = 0, p.now() }

// note writes a line that stays. It is told with --json too: it is no progress.
func (p *progress) note(w io.Writer, text string) {
	p.wipe()
	fmt.Fprintln(w, text)
}

func (p *progress) wipe() {
	if p.shown {
		p.shown = false
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// end leaves the last line as it is, up to date, and goes to the next.
func (p *progress) end() {
	if !p.shown {
		return
	}
	p.wipe()
	if p.what != "" {
		fmt.Fprintln(p.w, clipText(p.numbers(), max(p.columns()-1, 1)))
	}
}

// whole ends it; where all went well it was all there was, whatever had been expected.
func (p *progress) whole(err error) {
	if err == nil {
		p.total = p.done
	}
	p.end()
}

// forPeople is a length of time as one says it: 41s, 3m20s, 2h5m, 3d4h.
func forPeople(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Second:
		return "under 1s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
