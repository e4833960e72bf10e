package kills

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"ampcio-faults/child"
	"ampcio-faults/house"
	"ampcio-faults/scoreboard"
)

// usersOfHouse is how many users a house has.
const usersOfHouse = 8

func init() {
	child.Register("house", func(args []string) error {
		seed, err := strconv.ParseUint(args[2], 10, 64)
		if err != nil {
			return err
		}
		number, err := strconv.ParseUint(args[3], 10, 64)
		if err != nil {
			return err
		}
		return house.Lead(context.Background(), house.Life{Settings: house.Settings{Dir: args[0]}, Journal: args[1], Seed: seed, Number: number, Users: usersOfHouse, Operator: true})
	})
}

// rooms kills processes that are the log, the users and a ledger without doors: they do in 50 ms what the daemon does in
// ten times that, so that far more moments are met, those of a start among them.
func rooms(ctx context.Context, c *scoreboard.Case) (kills int, err error) {
	const most = 100 // kills of one storage folder
	journal := filepath.Join(c.Dir, "journal")
	s := house.Settings{Dir: filepath.Join(c.Dir, "storage")}
	for want := min(most, c.Left); kills < want; kills++ {
		cmd := child.Command("house", s.Dir, journal, strconv.FormatUint(c.Seed, 10), strconv.Itoa(kills))
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			return kills, err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		life := time.Duration(c.Rand.Int64N(int64(70 * time.Millisecond)))
		if c.Rand.IntN(40) == 0 {
			life += time.Second // what is done once a second: files are deleted, ledgers compacted
		}
		var early error
		select {
		case <-time.After(life):
			err = cmd.Process.Kill()
			<-ended
		case early = <-ended:
			err = fmt.Errorf("life %d ended by itself: %v: %s", kills, early, said.Bytes())
		case <-ctx.Done():
			err = errors.Join(context.Cause(ctx), cmd.Process.Kill())
			<-ended
		}
		if err != nil {
			return kills, err
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
