package kills

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ampcio-faults/child"
	"ampcio-faults/house"
	"ampcio-faults/scoreboard"
)

// usersOfHouse is how many users a house has.
const usersOfHouse = 8

func init() {
	child.Register("house", func(args []string) error {
		var l house.Life
		if _, err := fmt.Sscan(strings.Join(args[2:], " "), &l.Seed, &l.Number, &l.KillAfter); err != nil {
			return err
		}
		l.Dir, l.Journal, l.Users, l.Operator = args[0], args[1], usersOfHouse, true
		return house.Lead(context.Background(), l)
	})
}

// rooms kills processes that are the log, the users and a ledger without doors: they do in 50 ms what the daemon does in
// ten times that, so that far more moments are met, those of a start among them.
func rooms(ctx context.Context, c *scoreboard.Case) (kills int, err error) {
	const most = 100 // kills of one storage folder
	// What a process has written outlives it on any file system, and most of what a life costs on a disk is to wait for it. Some
	// are there all the same: a slow disk shifts the moments.
	dir := c.Memory
	if c.Rand.IntN(4) == 0 {
		dir = c.Dir
	}
	journal := filepath.Join(dir, "journal")
	s := house.Settings{Dir: filepath.Join(dir, "storage")}
	for want := min(most, c.Left); kills < want; kills++ {
		// One in three is killed by the clock, mostly while it starts; the others when they have done something.
		after, life := 1+c.Rand.IntN(60), hangs
		if c.Rand.IntN(3) == 0 {
			after, life = 0, time.Duration(c.Rand.Int64N(int64(60*time.Millisecond)))
		}
		if err := lifeOfRooms(ctx, life, s.Dir, journal, c.Seed, kills, after); err != nil {
			return kills, fmt.Errorf("life %d: %w", kills, err)
		}
	}
	j, err := house.ReadJournal(journal, c.Seed)
	if errors.Is(err, os.ErrNotExist) {
		return kills, nil // no life came so far
	}
	if err != nil {
		return kills, err
	}
	return kills, house.Judge(ctx, s, j, usersOfHouse)
}

// hangs is how long a life may take to do what it is killed after.
const hangs = 30 * time.Second

// lifeOfRooms leads one life and ends it: after so long, or as it does itself after some lines.
func lifeOfRooms(ctx context.Context, life time.Duration, dir, journal string, seed uint64, number, after int) error {
	cmd := child.Command("house", dir, journal, fmt.Sprint(seed), fmt.Sprint(number), fmt.Sprint(after))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-time.After(life):
	case err := <-ended:
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && after > 0 && ws.Signal() == syscall.SIGKILL {
			return nil
		}
		return fmt.Errorf("it ended by itself: %v: %s", err, said.Bytes())
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), cmd.Process.Kill(), drop(<-ended))
	}
	if after == 0 {
		return errors.Join(cmd.Process.Kill(), drop(<-ended))
	}
	// What hangs tells where.
	err := cmd.Process.Signal(syscall.SIGQUIT)
	<-ended
	return errors.Join(fmt.Errorf("it hangs:\n%s", said.Bytes()), err)
}

// drop is for the end of a process that was killed, which says nothing.
func drop(error) error { return nil }
