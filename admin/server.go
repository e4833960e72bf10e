package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"sync"
	"syscall"
	"time"
)

// Source is what the endpoints show.
type Source interface {
	// Snapshot reads the state as it is. Safe for concurrent use.
	Snapshot(ctx context.Context) (Snapshot, error)
	// Ready says whether an event that comes now would be stored durably: nil, or why not.
	Ready() error
}

// Handler answers the endpoints that only read: /stats, /healthz and /readyz.
func Handler(s Source) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		snap, err := s.Snapshot(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(snap)
	})
	return mux
}

// SocketHandler adds /debug/pprof/, which is for the unix socket only.
func SocketHandler(s Source) *http.ServeMux {
	mux := Handler(s)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// Serve answers on l until ctx ends, which ends the contexts of the requests too. When
// it returns, no handler runs any more.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	var handlers sync.RWMutex // held for reading by each
	over := false
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handlers.RLock()
			defer handlers.RUnlock()
			if !over {
				h.ServeHTTP(w, r)
			}
		}),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second,
		WriteTimeout: 2 * time.Minute, // a CPU profile takes 30 s
		IdleTimeout:  2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	hangUp := context.AfterFunc(ctx, func() { srv.Close() })
	defer hangUp()
	err := srv.Serve(l)
	srv.Close()
	handlers.Lock()
	over = true
	handlers.Unlock()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ListenSocket opens the admin unix socket, for the service's user and group. A
// socket that a killed process left behind is replaced; one that answers, and what is
// no socket, is an error.
func ListenSocket(path string) (net.Listener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("admin socket: %w", err)
	case st.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("admin socket: %s is there already and is no socket: choose another path", path)
	default:
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, fmt.Errorf("admin socket: another ampcio answers at %s: give this one another server.socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("admin socket: %w", err)
		}
	}
	l, err := listenAlone(path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), l.Close())
	}
	return l, nil
}

// listenAlone opens a socket that is nobody's but the service's, whatever the umask is that it was started with: between
// bind and chmod somebody else could connect, and stays connected. What other goroutines create meanwhile is only
// stricter for it.
func listenAlone(path string) (net.Listener, error) {
	before := syscall.Umask(0o077)
	defer syscall.Umask(before)
	return net.Listen("unix", path)
}

// Client asks at an admin socket, whatever the host of the URL. An answer may take as
// long as it likes once it has begun.
func Client(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		ResponseHeaderTimeout: 10 * time.Second,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
}

// Ask reads the snapshot of a running daemon through its admin socket.
func Ask(ctx context.Context, socket string) (snap Snapshot, err error) {
	client := Client(socket)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin/stats", nil)
	if err != nil {
		return snap, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return snap, fmt.Errorf("ask the daemon: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return snap, fmt.Errorf("ask the daemon: %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&snap); err != nil {
		return snap, fmt.Errorf("ask the daemon: %w", err)
	}
	if snap.Schema != Schema {
		return snap, fmt.Errorf("ask the daemon: it speaks schema %d, this ampcio %d: use the version that runs", snap.Schema, Schema)
	}
	return snap, nil
}
