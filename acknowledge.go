package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ampcio/admin"
)

// ackFile is in the storage folder: of which syncs somebody knows that they do not
// deliver. It is for people and their pagers: without it nothing is lost but some sleep.
const (
	ackFile    = "acknowledged.json"
	ackVersion = 1
)

type acknowledgements struct {
	Version int                           `json:"version"`
	Syncs   map[string]admin.Acknowledged `json:"syncs"`
}

// readAcknowledgements reads what somebody knows of; nobody knows of anything where
// there is no file. One of a later version is refused: it may mean something else.
func readAcknowledgements(storage string) (acknowledgements, error) {
	a := acknowledgements{Version: ackVersion, Syncs: map[string]admin.Acknowledged{}}
	path := filepath.Join(storage, ackFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	var stored acknowledgements
	if err == nil {
		err = json.Unmarshal(b, &stored)
	}
	if err == nil && stored.Version > ackVersion {
		err = fmt.Errorf("it is of version %d, and this ampcio knows %d", stored.Version, ackVersion)
	}
	if err != nil {
		return a, fmt.Errorf("what was acknowledged is not known: %s: %w: delete it, and acknowledge again", path, err)
	}
	if stored.Syncs != nil {
		a.Syncs = stored.Syncs
	}
	return a, nil
}

// write replaces the file; when it returns nil, a power cut does not take it back.
func (a acknowledgements) write(storage string) error {
	path := filepath.Join(storage, ackFile)
	b, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	folder, err := os.Open(storage)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// acknowledge adds to the syncs of a snapshot what somebody knows of.
func acknowledge(storage string, snap *admin.Snapshot) error {
	known, err := readAcknowledgements(storage)
	for i := range snap.Syncs {
		if a, ok := known.Syncs[snap.Syncs[i].Name]; ok && snap.At.Before(a.Until) {
			snap.Syncs[i].Acknowledged = &a
		}
	}
	return err
}

// over says whether what was acknowledged has ended: the time is up, or the sync
// delivers again.
func over(a admin.Acknowledged, y *admin.Sync, now time.Time) bool {
	if !now.Before(a.Until) {
		return true
	}
	return y.Status == admin.StatusOK && (y.Books.Pending == 0 || y.LastDelivered != nil && y.LastDelivered.After(a.At))
}
