package senders

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// conn is a connection to the daemon that sends bytes, whatever they are.
type conn struct {
	*net.TCPConn
	r *bufio.Reader
}

// patience is how long an answer, or the end of a connection, is waited for. The daemon's own limit is 30 s for a body
// that does not come; here everything that will come has been sent.
const patience = 25 * time.Second

func dial(address string) (*conn, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	tcp := c.(*net.TCPConn)
	// Closed with a reset: tens of thousands of ports would else be in use for a minute more.
	if err := tcp.SetLinger(0); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &conn{tcp, bufio.NewReaderSize(c, 4<<10)}, nil
}

// answer is one answer, read whole.
type answer struct {
	status int
	kind   string // its Content-Type
	method string // of the request
	body   []byte
}

// exchange sends and reads so many answers; with 0, which is for what is not framed, all until the daemon closes. open
// says that the connection goes on. An error is an answer that is none, or none in time; a closed connection is not an
// error.
func (c *conn) exchange(wire []byte, method string, n int) (answers []answer, open bool, err error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, false, err
	}
	if len(wire) < 64<<10 {
		if _, err := c.Write(wire); err != nil && !closed(err) {
			return nil, false, fmt.Errorf("send: %w", err)
		}
	} else {
		sent := make(chan error, 1) // it may be answered before it is read, and both sides would wait
		go func() { _, err := c.Write(wire); sent <- err }()
		defer func() {
			if !open {
				_ = c.SetWriteDeadline(time.Now())
			}
			if failed := <-sent; failed != nil && open && err == nil {
				err = fmt.Errorf("send: %w", failed)
			}
		}()
	}
	if n == 0 {
		if err := c.CloseWrite(); err != nil && !closed(err) {
			return nil, false, err
		}
	}
	for {
		if _, err := c.r.Peek(1); err != nil {
			if errors.Is(err, io.EOF) || closed(err) {
				return answers, false, nil
			}
			return answers, false, fmt.Errorf("neither an answer nor a closed connection: %w", err)
		}
		response, err := http.ReadResponse(c.r, &http.Request{Method: method})
		if err != nil {
			if closed(err) {
				return answers, false, nil // it was still being sent when the connection was reset
			}
			return answers, false, fmt.Errorf("what is answered is no HTTP: %w", err)
		}
		a := answer{status: response.StatusCode, kind: response.Header.Get("Content-Type"), method: method}
		if a.body, err = io.ReadAll(response.Body); err != nil && !closed(err) {
			return answers, false, fmt.Errorf("answer %d: %w", a.status, err)
		}
		if a.status == http.StatusContinue {
			continue
		}
		answers = append(answers, a)
		if response.Close && n > 0 || len(answers) == n {
			return answers, !response.Close, nil
		}
	}
}

// closed says whether err is that of a connection that the other side has closed.
func closed(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ENOTCONN) || errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// statuses are those that the public door may answer.
var statuses = map[int]bool{200: true, 204: true, 400: true, 401: true, 408: true, 413: true, 414: true, 417: true, 431: true, 501: true, 503: true, 505: true}

// wellFormed looks at an answer for itself.
func (a *answer) wellFormed() error {
	if !statuses[a.status] {
		return fmt.Errorf("answered %d %.300s", a.status, a.body)
	}
	if a.kind != "application/json" || a.method == "HEAD" {
		return nil
	}
	var said struct {
		Code  int
		Error string
		Field string          `json:"missing_field"`
		Bad   json.RawMessage `json:"events_with_invalid_fields"`
		Lack  json.RawMessage `json:"events_with_missing_fields"`
	}
	if err := json.Unmarshal(a.body, &said); err != nil || said.Code != a.status || a.status != 200 && said.Error == "" {
		return fmt.Errorf("answered %d %.300s", a.status, a.body)
	}
	// A 400 that names nothing makes the Go SDK send the same again at once, without end.
	if a.status == 400 && said.Field == "" && said.Bad == nil && said.Lack == nil && !strings.HasPrefix(said.Error, "Invalid API key") {
		return fmt.Errorf("a 400 that names nothing: %.300s", a.body)
	}
	return nil
}

// health says whether it is that of /healthz.
func (a *answer) health() bool {
	return a.status == 200 && (string(a.body) == "ok\n" || a.method == "HEAD")
}

var partly = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`; (\d+) of \d+ are stored`) })

// stored is how many events an answer says are stored; -1 = it says no number, but that they are.
func (a *answer) stored() (int, error) {
	if a.status != 200 {
		if m := partly().FindSubmatch(a.body); m != nil {
			return strconv.Atoi(string(m[1]))
		}
		return 0, nil
	}
	if bytes.Equal(a.body, []byte("success")) || a.health() {
		return -1, nil
	}
	var said struct {
		Events *int `json:"events_ingested"`
	}
	if err := json.Unmarshal(a.body, &said); err != nil || said.Events == nil {
		return 0, fmt.Errorf("a 200 that says nothing: %.300s", a.body)
	}
	return *said.Events, nil
}
