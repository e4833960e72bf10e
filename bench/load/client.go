package load

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// answerWithin is far more than any answer should take.
const answerWithin = 30 * time.Second

// client writes a request at once and reads just as much of the answer as keeps it in step: the generator shares its
// cores with who is measured.
type client struct {
	address string
	head    []byte
	buf     []byte
	conn    net.Conn
	r       *bufio.Reader
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *client) do(body []byte) (status int, err error) {
	if c.conn == nil {
		if c.conn, err = net.DialTimeout("tcp", c.address, answerWithin); err != nil {
			c.conn = nil
			return 0, err
		}
		c.r = bufio.NewReaderSize(c.conn, 4096)
	}
	status, keep, err := c.exchange(body)
	if err != nil || !keep {
		c.close()
	}
	return status, err
}

func (c *client) exchange(body []byte) (status int, keep bool, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return 0, false, err
	}
	c.buf = append(c.buf[:0], c.head...)
	c.buf = strconv.AppendInt(c.buf, int64(len(body)), 10)
	c.buf = append(c.buf, "\r\n\r\n"...)
	c.buf = append(c.buf, body...)
	if _, err := c.conn.Write(c.buf); err != nil {
		return 0, false, err
	}
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return 0, false, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, false, fmt.Errorf("not an answer: %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, false, err
	}
	length := -1
	for keep = true; ; {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, false, err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, false, err
			}
		case bytes.EqualFold(name, []byte("Connection")):
			keep = !bytes.EqualFold(value, []byte("close"))
		}
	}
	if length < 0 {
		return status, false, nil // nobody who is measured here answers in chunks
	}
	_, err = c.r.Discard(length)
	return status, keep, err
}

func basic(credentials string) string {
	if credentials == "" {
		return ""
	}
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(credentials)) + "\r\n"
}

func readBody(file string) (*body, error) {
	b, err := os.ReadFile(file)
	return &body{bytes: b}, err
}
