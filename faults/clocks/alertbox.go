package clocks

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// toldWithin is far more than an alert needs: it is held for a second, and looked at twice a second.
const toldWithin = time.Minute

// alertBox is where alerts are posted to.
type alertBox struct {
	url    string
	server *http.Server
	served chan error

	mu   sync.Mutex
	told []string // events of kind blocked
	seen int      // of these, waited for
	all  []string
}

func newAlertBox() (*alertBox, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &alertBox{url: "http://" + l.Addr().String() + "/", served: make(chan error, 1)}
	b.server = &http.Server{Handler: b}
	go func() { b.served <- b.server.Serve(l) }()
	return b, nil
}

func (b *alertBox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var m struct{ Event, Kind string }
	if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, m.Kind+" "+m.Event)
	if m.Kind == "blocked" {
		b.told = append(b.told, m.Event)
	}
}

// wait waits for an alert about the blocked sync.
func (b *alertBox) wait(ctx context.Context, event string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, toldWithin, fmt.Errorf("not within %s", toldWithin))
	defer cancel()
	for {
		b.mu.Lock()
		for b.seen < len(b.told) {
			b.seen++
			if b.told[b.seen-1] == event {
				b.mu.Unlock()
				return nil
			}
		}
		all := b.all
		b.mu.Unlock()
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("no alert says of the block %q, after the clock was set back: %w; told was %q", event, context.Cause(ctx), all)
		}
	}
}

func (b *alertBox) close() error {
	err := b.server.Close()
	<-b.served
	return err
}
