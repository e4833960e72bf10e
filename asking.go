package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"ampcio/config"
)

var (
	yesFlag    = &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}
	dryRunFlag = &cli.BoolFlag{Name: "dry-run", Usage: "only say what would happen"}
	jsonFlag   = &cli.BoolFlag{Name: "json", Usage: "JSON, one object a line"}
)

// confirm puts a question to whoever sits at the terminal; nil is a yes. Without a terminal
// there is nobody to ask.
func confirm(c *cli.Context, question string) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return exit(exitUsage, fmt.Errorf("%s: nothing was changed, since there is no terminal to ask at: add --yes if you mean it", strings.TrimSuffix(question, "?")))
	}
	fmt.Fprintf(c.App.ErrWriter, "%s [y/N] ", question)
	said := make(chan string, 1)
	go func() { // a read of a terminal cannot be called back; the process is about to end
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		said <- line
	}()
	select {
	case <-c.Context.Done():
		fmt.Fprintln(c.App.ErrWriter)
		return exit(exitTemporary, errors.New("nothing was changed"))
	case line := <-said:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return nil
		}
		return exit(exitFailed, errors.New("nothing was changed"))
	}
}

// moment reads a point of time in the past: a duration before now, a date (its
// beginning in UTC) or RFC 3339.
func moment(s string, now time.Time) (time.Time, error) {
	var d config.Duration
	if err := d.UnmarshalText([]byte(s)); err == nil {
		return now.Add(-time.Duration(d)), nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			if t.After(now) {
				return t, fmt.Errorf("%s is in the future", s)
			}
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf(`%q is no time: write how long ago ("24h", "3d"), a date ("2026-11-20", in UTC) or "2026-11-20T10:12:03Z"`, s)
}

// deadLetterID reads SYNC/SEQ.
func deadLetterID(s string) (sync string, seq uint64, ok bool) {
	sync, number, _ := strings.Cut(s, "/")
	seq, err := strconv.ParseUint(number, 10, 64)
	return sync, seq, err == nil && seq > 0 && syncName.MatchString(strings.TrimPrefix(sync, relayPrefix))
}

// idsOnStdin reads ids, one a line; other columns are ignored, and so is the heading of
// a list. Lines of list --json do too.
func idsOnStdin(r io.Reader, ids map[string][]uint64) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		word, _, _ := strings.Cut(line, " ")
		if rest, isJSON := strings.CutPrefix(line, `{"id":"`); isJSON {
			word, _, _ = strings.Cut(rest, `"`)
		}
		if word == "" || word == "ID" {
			continue
		}
		sync, seq, ok := deadLetterID(word)
		if !ok {
			return exit(exitUsage, fmt.Errorf("line %d of the ids: %q is no id of a dead letter, such as production/1234", n, clipText(word, 40)))
		}
		ids[sync] = append(ids[sync], seq)
	}
	if err := s.Err(); err != nil {
		return exit(exitUsage, fmt.Errorf("read ids: %w", err))
	}
	return nil
}

// clipText makes foreign text fit for a line of a terminal, in at most n characters.
func clipText(s string, n int) string {
	out := make([]rune, 0, n)
	for _, r := range s {
		if len(out) == n {
			out[n-1] = '…'
			break
		}
		if !unicode.IsGraphic(r) || r == '\u200e' || r == '\u200f' {
			r = '·'
		}
		out = append(out, r)
	}
	return string(out)
}
