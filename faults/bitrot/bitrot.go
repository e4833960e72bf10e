// Package bitrot changes what is stored: bits flip, runs of bytes and whole pages are something else, files end early.
package bitrot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ampcio-faults/child"
	"ampcio-faults/house"
	"ampcio-faults/scoreboard"
)

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	return []scoreboard.Trial{{
		Name: "bit flips", Unit: "flips", Full: 20_000, PerCase: flipsOfAFolder, Case: flips, Limit: 6 * time.Minute, // a hang of one flip is seen sooner
		Fault: "bits, runs of bytes and pages of the log, the ledger, users.db and the small files change, or a file ends early; it always starts, serves nothing that was not stored, sets the file aside, saves what can be read, and counts exactly what is lost",
	}}
}

func init() { child.Register("bitrot", judgeFlips) }

// flipsOfAFolder are made of one folder.
const flipsOfAFolder = 150

// hangs is how long one flip may take.
const hangs = 60 * time.Second

// flips prepares a storage folder and has a child judge flips in copies of it: what bbolt makes of a damaged file may end a
// process, or never end.
func flips(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	// The rooms are cheap, and most flips are theirs; one case in so many has the whole program, and its own files.
	if c.Rand.IntN(8) == 0 {
		return daemonFlipped(ctx, c)
	}
	dir, journal := filepath.Join(c.Memory, "storage"), filepath.Join(c.Memory, "journal")
	if err := prepare(ctx, c, dir, journal); err != nil {
		return 0, fmt.Errorf("prepare the folder: %w", err)
	}
	cmd := child.Command("bitrot", dir, journal, filepath.Join(c.Memory, "flipped"), fmt.Sprint(c.Seed), fmt.Sprint(min(flipsOfAFolder, c.Left)))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	stuck := time.AfterFunc(hangs, func() { cmd.Process.Signal(syscall.SIGQUIT) }) // it says where
	defer stuck.Stop()
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	flip := "none"
	var wrong []string
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
		stuck.Reset(hangs)
		switch what, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " "); what {
		case "flip":
			flip = rest
		case "held":
			n++
		default:
			wrong = append(wrong, flip+": "+rest)
		}
	}
	if err := cmd.Wait(); err != nil {
		return n, fmt.Errorf("%s: the process ended: %w\n%s", flip, err, said.Bytes())
	}
	if len(wrong) > 0 {
		return n, errors.New(strings.Join(wrong, "\n"))
	}
	return n, nil
}

// prepare leads some lives in a folder, so that it has files of all kinds, with everything in them.
func prepare(ctx context.Context, c *scoreboard.Case, dir, journal string) error {
	s := house.Settings{Dir: dir}
	if c.Rand.IntN(3) > 0 { // else the log has only what somebody needs
		s.Keep = time.Hour
	}
	for life := range uint64(2) {
		l := house.Life{Settings: s, Journal: journal, Seed: c.Seed, Number: life, Users: users, Requests: 5 + c.Rand.IntN(20), Operator: true}
		if err := house.Lead(ctx, l); err != nil {
			return err
		}
	}
	return nil
}
