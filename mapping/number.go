package mapping

import (
	"bytes"
	"math/big"
	"strconv"
)

// Numbers stay decimal text from end to end; a float64 would bend 2^53+1 and lose 1e400. Only four things are ever done
// with them, all exact: compare, add, multiply, and write without an exponent.

// plainDigits is how long a number may become when it is written without an exponent or summed exactly. It covers every
// float64 (the smallest has 324 digits after its point) and keeps a hostile 1e999999999 from filling the memory.
const plainDigits = 800

// farExponent bounds exponents: beyond it numbers still compare, but are not calculated with.
const farExponent = 1 << 40

// decimal is ±digits × 10^exponent. Zero has no digits; others neither begin nor end with the digit 0.
type decimal struct {
	negative bool
	digits   []byte
	exponent int64
}

// parseDecimal reads a JSON number, putting its digits into buf when they fit. ok is false for anything else.
func parseDecimal(number []byte, buf []byte) (d decimal, ok bool) {
	rest := number
	if len(rest) > 0 && rest[0] == '-' {
		d.negative, rest = true, rest[1:]
	}
	d.digits = buf[:0]
	i := 0
	for ; i < len(rest) && isDigit(rest[i]); i++ {
		d.digits = append(d.digits, rest[i])
	}
	if i == 0 {
		return decimal{}, false
	}
	if i < len(rest) && rest[i] == '.' {
		start := i + 1
		for i = start; i < len(rest) && isDigit(rest[i]); i++ {
			d.digits = append(d.digits, rest[i])
		}
		if i == start {
			return decimal{}, false
		}
		d.exponent = int64(start - i)
	}
	if i < len(rest) && (rest[i] == 'e' || rest[i] == 'E') {
		var e int64
		i++
		minus := false
		if i < len(rest) && (rest[i] == '+' || rest[i] == '-') {
			minus = rest[i] == '-'
			i++
		}
		start := i
		for ; i < len(rest) && isDigit(rest[i]); i++ {
			e = min(e*10+int64(rest[i]-'0'), farExponent)
		}
		if i == start {
			return decimal{}, false
		}
		if minus {
			e = -e
		}
		d.exponent += e
	}
	if i != len(rest) {
		return decimal{}, false
	}
	d.digits = bytes.TrimLeft(d.digits, "0")
	whole := len(d.digits)
	d.digits = bytes.TrimRight(d.digits, "0")
	d.exponent += int64(whole - len(d.digits))
	if len(d.digits) == 0 {
		d = decimal{}
	}
	return d, true
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// top is the exponent of the place before the first digit: what tells magnitudes apart before the digits do.
func (d decimal) top() int64 { return int64(len(d.digits)) + d.exponent }

// far says that the exponent is out of the range that is calculated with.
func (d decimal) far() bool { return d.exponent >= farExponent/2 || d.exponent <= -farExponent/2 }

// compare returns -1, 0 or 1.
func (d decimal) compare(e decimal) int {
	sign := 1
	switch {
	case len(d.digits) == 0 && len(e.digits) == 0:
		return 0
	case len(d.digits) == 0:
		return pick(e.negative, 1, -1)
	case len(e.digits) == 0:
		return pick(d.negative, -1, 1)
	case d.negative != e.negative:
		return pick(d.negative, -1, 1)
	case d.negative:
		sign = -1
	}
	if d.top() != e.top() {
		return pick(d.top() < e.top(), -sign, sign)
	}
	return sign * bytes.Compare(d.digits, e.digits) // no trailing zeros, so a shorter prefix is the smaller one
}

func pick(yes bool, a, b int) int {
	if yes {
		return a
	}
	return b
}

// integer returns ±digits as a whole number, shifted left by shift places.
func (d decimal) integer(shift int64) *big.Int {
	n := new(big.Int)
	if len(d.digits) > 0 {
		n.SetString(string(d.digits), 10)
	}
	if shift > 0 {
		n.Mul(n, new(big.Int).Exp(big.NewInt(10), big.NewInt(shift), nil))
	}
	if d.negative {
		n.Neg(n)
	}
	return n
}

// appendPlain writes the number without an exponent when that takes at most plainDigits digits, else with one.
func (d decimal) appendPlain(dst []byte) []byte {
	if len(d.digits) == 0 {
		return append(dst, '0')
	}
	if d.negative {
		dst = append(dst, '-')
	}
	point := d.top()
	switch n := int64(len(d.digits)); {
	case d.far() || point > plainDigits || d.exponent < -plainDigits || n > plainDigits:
		dst = append(dst, d.digits...)
		dst = append(dst, 'e')
		return strconv.AppendInt(dst, d.exponent, 10)
	case d.exponent >= 0:
		dst = append(dst, d.digits...)
		return appendZeros(dst, d.exponent)
	case point > 0:
		dst = append(dst, d.digits[:point]...)
		dst = append(dst, '.')
		return append(dst, d.digits[point:]...)
	default:
		dst = append(dst, '0', '.')
		return append(appendZeros(dst, -point), d.digits...)
	}
}

func appendZeros(dst []byte, n int64) []byte {
	for ; n > 0; n-- {
		dst = append(dst, '0')
	}
	return dst
}

// fromInteger makes a decimal of n × 10^exponent.
func fromInteger(n *big.Int, exponent int64) decimal {
	d := decimal{negative: n.Sign() < 0, exponent: exponent}
	if n.Sign() == 0 {
		return decimal{}
	}
	digits := new(big.Int).Abs(n).Append(nil, 10)
	d.digits = bytes.TrimRight(digits, "0")
	d.exponent += int64(len(digits) - len(d.digits))
	return d
}

// addNumbers returns a+b as a JSON number, exact and without an exponent as long as that takes no more than plainDigits
// digits. Beyond that the larger of the two is returned as it came: the smaller one would not show. ok is false when one
// of them is no number.
func addNumbers(a, b []byte) (sum []byte, ok bool) {
	if x, ok := smallInteger(a); ok {
		if y, ok := smallInteger(b); ok {
			return strconv.AppendInt(nil, x+y, 10), true
		}
	}
	x, okx := parseDecimal(a, nil)
	y, oky := parseDecimal(b, nil)
	if !okx || !oky {
		return nil, false
	}
	switch {
	case len(x.digits) == 0:
		return b, true
	case len(y.digits) == 0:
		return a, true
	}
	low := min(x.exponent, y.exponent)
	if x.far() || y.far() || max(x.top(), y.top())-low > plainDigits {
		if x.top() < y.top() {
			return b, true
		}
		return a, true
	}
	n := x.integer(x.exponent - low)
	return fromInteger(n.Add(n, y.integer(y.exponent-low)), low).appendPlain(nil), true
}

// multiplyNumbers returns a×b as a JSON number, exact. ok is false when one is no number or is absurdly long.
func multiplyNumbers(a, b []byte) (product []byte, ok bool) {
	x, okx := parseDecimal(a, nil)
	y, oky := parseDecimal(b, nil)
	if !okx || !oky || x.far() || y.far() || len(x.digits)+len(y.digits) > plainDigits {
		return nil, false
	}
	n := x.integer(0)
	return fromInteger(n.Mul(n, y.integer(0)), x.exponent+y.exponent).appendPlain(nil), true
}

// smallInteger reads an integer of up to 18 digits in its plain spelling.
func smallInteger(number []byte) (n int64, ok bool) {
	digits := number
	if len(digits) > 0 && digits[0] == '-' {
		digits = digits[1:]
	}
	if len(digits) == 0 || len(digits) > 18 {
		return 0, false
	}
	for _, c := range digits {
		if !isDigit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if number[0] == '-' {
		n = -n
	}
	return n, true
}

// numberText writes a JSON number as its digits: as it stands, but an exponent is worked out (1e3 = 1000) where that
// takes no more than plainDigits digits.
func numberText(number []byte) []byte {
	if bytes.IndexByte(number, 'e') < 0 && bytes.IndexByte(number, 'E') < 0 {
		return number
	}
	d, ok := parseDecimal(number, nil)
	if !ok {
		return number
	}
	return d.appendPlain(nil)
}

// appendNumberKey writes a form that equal numbers share.
func appendNumberKey(dst, number []byte) []byte {
	var buf [40]byte
	d, ok := parseDecimal(number, buf[:])
	if !ok {
		return append(dst, number...)
	}
	if d.negative {
		dst = append(dst, '-')
	}
	dst = append(dst, d.digits...)
	dst = append(dst, 'e')
	return strconv.AppendInt(dst, d.exponent, 10)
}
