package metrics

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// read is what an expression of PromQL asks for.
type read struct {
	metrics []string
	labels  map[string][]string // by metric: those of its own {…}
	grouped []string            // labels of by, on, group_left …
}

// What a word may be that is no metric. Any other word is one: a function that is missing
// here is taken for a metric, which does not exist, and so a name can not be missed.
var (
	operators = []string{"and", "or", "unless", "bool", "offset", "inf", "nan"}
	groupings = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}
	functions = []string{"abs", "absent", "avg", "ceil", "changes", "clamp_min", "count", "histogram_quantile", "increase", "max", "max_over_time",
		"min", "quantile", "rate", "resets", "round", "sum", "time", "topk", "label_values"}
)

func wordPart(c byte) bool {
	return c == '_' || c == ':' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// readExpr reads an expression. What it does not know is an error: it never guesses.
func readExpr(expr string) (r read, err error) {
	r.labels = map[string][]string{}
	rest := expr
	fail := func(what string) (read, error) { return r, fmt.Errorf("%s at %.30q in %q", what, rest, expr) }
	word := func() string {
		n := 0
		for n < len(rest) && wordPart(rest[n]) {
			n++
		}
		w := rest[:n]
		rest = rest[n:]
		return w
	}
	space := func() { rest = strings.TrimLeft(rest, " \t\n") }
	text := func() bool { // a string
		for i := 1; i < len(rest); i++ {
			switch rest[i] {
			case '\\':
				i++
			case rest[0]:
				rest = rest[i+1:]
				return true
			}
		}
		return false
	}
	matchers := func(metric string) bool {
		for rest = rest[1:]; ; {
			space()
			if rest == "" {
				return false
			}
			if rest[0] == '}' {
				rest = rest[1:]
				return true
			}
			label := word()
			if label == "" || label == "__name__" {
				return false
			}
			r.labels[metric] = append(r.labels[metric], label)
			rest = strings.TrimLeft(rest, " =!~")
			if rest == "" || rest[0] != '"' && rest[0] != '\'' || !text() {
				return false
			}
			space()
			rest = strings.TrimPrefix(rest, ",")
		}
	}
	for {
		space()
		if rest == "" {
			return r, nil
		}
		switch c := rest[0]; {
		case c == '"' || c == '\'' || c == '`':
			if !text() {
				return fail("a string that does not end")
			}
		case c == '[':
			inside, behind, ended := strings.Cut(rest[1:], "]")
			if !ended || strings.Trim(inside, "0123456789:$_abcdefghijklmnopqrstuvwxyz") != "" {
				return fail("a range")
			}
			rest = behind
		case c >= '0' && c <= '9' || c == '.':
			for rest != "" && (wordPart(rest[0]) || rest[0] == '.') {
				rest = rest[1:] // a number, or a duration
			}
		case wordPart(c):
			before := rest
			w := word()
			space()
			called := strings.HasPrefix(rest, "(")
			low := strings.ToLower(w)
			switch {
			case slices.Contains(groupings, low) && called:
				inside, behind, ended := strings.Cut(rest[1:], ")")
				if !ended {
					return fail("labels")
				}
				for label := range strings.SplitSeq(inside, ",") {
					if label = strings.TrimSpace(label); label != "" {
						r.grouped = append(r.grouped, label)
					}
				}
				rest = behind
			case slices.Contains(operators, low):
			case slices.Contains(functions, low) && called, slices.Contains(functions, low) && strings.HasPrefix(rest, "by"):
			case called:
				rest = before
				return fail("an unknown function")
			default:
				r.metrics = append(r.metrics, w)
				if strings.HasPrefix(rest, "{") && !matchers(w) {
					return fail("matchers")
				}
			}
		case strings.IndexByte("()+-*/%^=!<>,@", c) >= 0:
			rest = rest[1:]
		default:
			return fail("what is this")
		}
	}
}

func TestReadExpr(t *testing.T) {
	for expr, want := range map[string]string{
		`up`: "up",
		`sum by (job, a_label) (rate(x_total{job="ampcio", path=~"y_total{}"}[5m])) > 0.1 * on(instance) group_left() z`: "x_total z",
		`histogram_quantile(0.99, sum by (le) (rate(l_bucket{sync=~"$sync"}[$__rate_interval])))`:                        "l_bucket",
		`- a offset 5m and b unless on (c) d == 1e9 or -0x1F < inf`:                                                      "a b d",
		`absent(up{job="a\"b"}) and 'c' == "d"`:                                                                          "up",
		`sum(a) by (b) / c:d:rate5m`:                                                                                     "a c:d:rate5m",
		`max_over_time(rate(a[5m])[1h:1m])`:                                                                              "a",
		`rate`:                                                                                                           "rate",
	} {
		r, err := readExpr(expr)
		if got := strings.Join(r.metrics, " "); err != nil || got != want {
			t.Errorf("%s: %q, want %q (%v)", expr, got, want, err)
		}
	}
	for _, expr := range []string{`{__name__="x"}`, `x{__name__="y"}`, `unknown(x)`, `$metric`, `"open`, `x[5m`, `x{a="b`, `by (x`} {
		if r, err := readExpr(expr); err == nil {
			t.Errorf("%s: %v, want an error", expr, r)
		}
	}
}
