package main

import (
	"context"
	"io"
	"log/slog"

	"github.com/coreos/go-systemd/v22/journal"

	"ampcio/config"
)

// newLog writes to w as the configuration says, from the level on, which may be changed
// later. Under journald each line gets its priority in front, so that journalctl -p
// works, and no time, which the journal has.
func newLog(w io.Writer, c config.Log) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(levelOf(c))
	underJournal, _ := journal.StderrIsJournalStream()
	o := &slog.HandlerOptions{Level: level}
	if underJournal {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	handler := func(w io.Writer) slog.Handler {
		if c.Format == "json" {
			return slog.NewJSONHandler(w, o)
		}
		return slog.NewTextHandler(w, o)
	}
	if !underJournal {
		return slog.New(handler(w)), level
	}
	return slog.New(prioritized{
		errors: handler(prefixed{w, "<3>"}), warnings: handler(prefixed{w, "<4>"}), infos: handler(prefixed{w, "<6>"}), debugs: handler(prefixed{w, "<7>"}),
	}), level
}

func levelOf(c config.Log) slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return slog.LevelInfo // config knows only good ones
	}
	return level
}

// prefixed writes each line with its journal priority in front; a handler writes a
// line at a time.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

// prioritized hands each record to the handler of its level.
type prioritized struct{ errors, warnings, infos, debugs slog.Handler }

func (p prioritized) of(l slog.Level) slog.Handler {
	switch {
	case l >= slog.LevelError:
		return p.errors
	case l >= slog.LevelWarn:
		return p.warnings
	case l >= slog.LevelInfo:
		return p.infos
	}
	return p.debugs
}

func (p prioritized) Enabled(ctx context.Context, l slog.Level) bool { return p.of(l).Enabled(ctx, l) }
func (p prioritized) Handle(ctx context.Context, r slog.Record) error {
	return p.of(r.Level).Handle(ctx, r)
}
func (p prioritized) each(f func(slog.Handler) slog.Handler) slog.Handler {
	return prioritized{f(p.errors), f(p.warnings), f(p.infos), f(p.debugs)}
}
func (p prioritized) WithAttrs(a []slog.Attr) slog.Handler {
	return p.each(func(h slog.Handler) slog.Handler { return h.WithAttrs(a) })
}
func (p prioritized) WithGroup(name string) slog.Handler {
	return p.each(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}
