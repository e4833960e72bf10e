// Package recordings holds requests of real Amplitude SDKs, recorded byte for byte on the
// wire: every one is to be answered 200. They serve the demo and the tests.
//
// The recorder kept bodies parsed, with their length in bytes. Each was written out again the
// way its SDK writes JSON, order of members included, and is here only because it then has
// exactly that length. In the headers the host was replaced (127.0.0.1:PORT); IDs, keys
// and properties are invented; every request carries Key. A gzip body cannot be had back this
// way, so there is none.
package recordings

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"sync"
)

// Key is the API key in all requests.
const Key = "0123456789abcdef0123456789abcdef"

// Request is one recorded HTTP request.
type Request struct {
	Name   string      // "go-track-200": SDK, what it did, what it was answered
	Method string      // "POST"
	Path   string      // with the query, if any
	Header [][2]string // name and value in the order sent, Host and Content-Length included; both are for the client that replays to set
	Body   []byte
	SDK    string // name, version and how it was run
}

//go:embed *.json
var files embed.FS

// All returns the requests in the order of their names, with bodies of their own. A damaged
// file is a mistake made when the program was built: All panics then.
func All() []Request {
	parsed, err := load()
	if err != nil {
		panic(err)
	}
	all := make([]Request, len(parsed))
	for i, r := range parsed {
		all[i] = Request{r.Name, r.Method, r.Path, r.Header, []byte(r.Body), r.SDK}
	}
	return all
}

type file struct {
	Name   string      `json:"name"`
	SDK    string      `json:"sdk"`
	Method string      `json:"method"`
	Path   string      `json:"path"`
	Header [][2]string `json:"header"`
	Body   string      `json:"body"`
}

var load = sync.OnceValues(func() ([]file, error) {
	names, err := fs.Glob(files, "*.json")
	if err != nil {
		return nil, err
	}
	all := make([]file, len(names))
	for i, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &all[i]); err != nil {
			return nil, fmt.Errorf("read recording %s: %w", name, err)
		}
	}
	return all, nil
})
