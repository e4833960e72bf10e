package main

import (
	"net/http"
	"path/filepath"
	"time"

	"ampcio/admin"
)

// adminHandler answers on server.admin: what only reads, the status page among it.
func (d *daemon) adminHandler() http.Handler {
	mux := d.withMetrics(admin.Handler(d))
	admin.AddPage(mux, d, &d.history)
	return admin.Guard(mux)
}

// historyFile is in the storage folder: what the charts of the status page show. It is
// for people: a crash may lose the newest, and a disk that is full gets none.
const historyFile = "charts"

// saveHistoryEvery is what a crash loses of the charts, at most.
const saveHistoryEvery = 5 * time.Minute

func (d *daemon) loadHistory() {
	if err := d.history.Load(filepath.Join(d.config().Storage.Dir, historyFile), time.Now()); err != nil {
		d.log.Info("the charts of the status page begin anew", "why", err)
	}
}

func (d *daemon) saveHistory() {
	if d.records.Stats().Full != "" {
		return
	}
	if err := d.history.Save(filepath.Join(d.config().Storage.Dir, historyFile)); err != nil {
		d.log.Debug("the charts of the status page were not written", "error", err)
	}
}
