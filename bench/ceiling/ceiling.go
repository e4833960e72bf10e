// Package ceiling is a server that stores nothing: what a server on net/http can reach that reads each request and
// parses its JSON, the limit from above for one that also keeps it.
package ceiling

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/valyala/fastjson"
)

var (
	buffers = sync.Pool{New: func() any { b := make([]byte, 0, 64<<10); return &b }}
	parsers fastjson.ParserPool
)

// Handler answers /read, which reads the body, and /fastjson, which also parses it and looks at every event's names.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /read", answer(func([]byte) (int, error) { return 0, nil }))
	mux.Handle("POST /fastjson", answer(parse))
	return mux
}

func answer(look func([]byte) (int, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p := buffers.Get().(*[]byte)
		defer buffers.Put(p)
		if r.ContentLength < 0 {
			http.Error(w, "no Content-Length", http.StatusLengthRequired)
			return
		}
		if n := int(r.ContentLength); cap(*p) < n {
			*p = make([]byte, n)
		}
		b := (*p)[:r.ContentLength]
		if _, err := io.ReadFull(r.Body, b); err != nil {
			return
		}
		n, err := look(b)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var space [160]byte
		o := append(space[:0], `{"code":200,"events_ingested":`...)
		o = strconv.AppendInt(o, int64(n), 10)
		o = append(o, `,"payload_size_bytes":`...)
		o = strconv.AppendInt(o, int64(len(b)), 10)
		o = append(o, `,"server_upload_time":`...)
		o = strconv.AppendInt(o, time.Now().UnixMilli(), 10)
		w.Header()["Content-Type"] = []string{"application/json"}
		_, _ = w.Write(append(o, '}')) // who has hung up needs no answer
	}
}

func parse(b []byte) (n int, err error) {
	p := parsers.Get()
	defer parsers.Put(p)
	v, err := p.ParseBytes(b)
	if err != nil {
		return 0, err
	}
	for _, e := range v.GetArray("events") {
		o, err := e.Object()
		if err != nil {
			return 0, fmt.Errorf("event %d: %w", n, err)
		}
		names := 0
		o.Visit(func(name []byte, _ *fastjson.Value) { names += len(name) })
		if len(e.GetStringBytes("user_id")) == 0 || len(e.GetStringBytes("event_type")) == 0 {
			return 0, errors.New("an event without user_id or event_type")
		}
		n++
	}
	return n, nil
}
