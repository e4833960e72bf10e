package mapping

import (
	"flag"
	"math/big"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"
)

// The operations once more, in the plainest way, from what testdata/operations.md says and nothing of the code: values are
// Go values, a user is a map, speed and bytes do not matter.

// checkHistories checks a property by 10,000 histories, unless -rapid.checks asks for another number.
func checkHistories(t *testing.T, property func(*rapid.T)) {
	t.Helper()
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		flag.Set("rapid.checks", "10000")
		defer flag.Set("rapid.checks", checks.DefValue)
	}
	rapid.Check(t, property)
}

type modelNumber struct{ text string } // a fraction in lowest terms

func modelValue(d *jsontext.Decoder) any {
	token, err := d.ReadToken()
	if err != nil {
		panic(err)
	}
	switch token.Kind() {
	case 'n':
		return nil
	case 't', 'f':
		return token.Bool()
	case '"':
		return token.String()
	case '0':
		r, _ := new(big.Rat).SetString(token.String())
		return modelNumber{r.RatString()}
	case '[':
		list := []any{}
		for d.PeekKind() != ']' {
			list = append(list, modelValue(d))
		}
		d.ReadToken()
		return list
	}
	object := map[string]any{}
	for d.PeekKind() != '}' {
		name, _ := d.ReadToken()
		object[name.String()] = modelValue(d)
	}
	d.ReadToken()
	return object
}

func modelOf(raw string) map[string]any {
	return modelValue(jsontext.NewDecoder(strings.NewReader(raw))).(map[string]any)
}

func modelApply(user, change map[string]any) {
	arguments := func(op string) map[string]any {
		m, _ := change[op].(map[string]any)
		return m
	}
	if change["$clearAll"] != nil {
		clear(user)
	}
	for name := range arguments("$unset") {
		delete(user, name)
	}
	set := func(name string, value any) {
		if user[name] = value; value == nil {
			delete(user, name)
		}
	}
	for name, value := range arguments("$set") {
		set(name, value)
	}
	for name, value := range arguments("$setOnce") {
		if user[name] == nil {
			set(name, value)
		}
	}
	for name, value := range arguments("$add") {
		x, y := modelRat(user[name]), modelRat(value)
		if user[name] == nil {
			x = new(big.Rat)
		}
		if x != nil && y != nil {
			user[name] = modelNumber{x.Add(x, y).RatString()}
		}
	}
	listed := func(v any) []any {
		if v == nil {
			return nil
		}
		if list, ok := v.([]any); ok {
			return list
		}
		return []any{v}
	}
	has := func(list []any, v any) bool {
		for _, x := range list {
			if reflect.DeepEqual(x, v) {
				return true
			}
		}
		return false
	}
	join := func(a, b []any) []any { return append(append([]any{}, a...), b...) }
	for name, value := range arguments("$append") {
		if add := listed(value); len(add) > 0 {
			user[name] = join(listed(user[name]), add)
		}
	}
	for name, value := range arguments("$prepend") {
		if add := listed(value); len(add) > 0 {
			user[name] = join(add, listed(user[name]))
		}
	}
	missing := func(name string, value any) []any {
		var add []any
		for _, v := range listed(value) {
			if !has(listed(user[name]), v) && !has(add, v) {
				add = append(add, v)
			}
		}
		return add
	}
	for name, value := range arguments("$preInsert") {
		if add := missing(name, value); len(add) > 0 {
			user[name] = join(add, listed(user[name]))
		}
	}
	for name, value := range arguments("$postInsert") {
		if add := missing(name, value); len(add) > 0 {
			user[name] = join(listed(user[name]), add)
		}
	}
	for name, value := range arguments("$remove") {
		kept := []any{}
		for _, v := range listed(user[name]) {
			if !has(listed(value), v) {
				kept = append(kept, v)
			}
		}
		if len(kept) < len(listed(user[name])) {
			user[name] = kept
		}
	}
	operations := "$clearAll $unset $set $setOnce $add $append $prepend $preInsert $postInsert $remove"
	for name, value := range change {
		if !strings.HasPrefix(name, "$") || !strings.Contains(" "+operations+" ", " "+name+" ") {
			set(name, value)
		}
	}
}

// modelNumeric is JSON's grammar of numbers.
var modelNumeric = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

func modelRat(v any) *big.Rat {
	switch v := v.(type) {
	case modelNumber:
		r, _ := new(big.Rat).SetString(v.text)
		return r
	case string:
		if modelNumeric.MatchString(v) {
			r, _ := new(big.Rat).SetString(v)
			return r
		}
	}
	return nil
}

// TestOperationsAgainstTheModel lets one user live through a series of random events.
func TestOperationsAgainstTheModel(t *testing.T) {
	single := rapid.SampledFrom([]string{`"a"`, `"b"`, `"5"`, `"-0.5e1"`, `"05"`, `"+5"`, `" 5"`, `""`, `"\u0061"`, `1`, `1.0`, `10e-1`, `-2.5`, `9007199254740993`, `1e30`, `0`,
		`true`, `false`, `null`, `{"x":1,"y":"a"}`, `{ "y":"a", "x":1.0 }`})
	value := rapid.Custom(func(t *rapid.T) string {
		if rapid.IntRange(0, 2).Draw(t, "list") > 0 {
			return single.Draw(t, "value")
		}
		return "[" + strings.Join(rapid.SliceOfN(single, 0, 4).Draw(t, "list"), ", ") + "]"
	})
	members := func(names []string) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			var parts []string
			for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 3, rapid.ID).Draw(t, "names") {
				parts = append(parts, `"`+name+`":`+value.Draw(t, name))
			}
			return strings.Join(parts, ",")
		})
	}
	properties := members([]string{"a", "b", "c", "d", "é"})
	change := rapid.Custom(func(t *rapid.T) string {
		operations := []string{"$clearAll", "$unset", "$set", "$setOnce", "$add", "$append", "$prepend", "$preInsert", "$postInsert", "$remove", "$other"}
		var parts []string
		for _, op := range rapid.SliceOfNDistinct(rapid.SampledFrom(operations), 0, 4, rapid.ID).Draw(t, "operations") {
			if op == "$clearAll" && rapid.Bool().Draw(t, "form") {
				parts = append(parts, `"$clearAll":"-"`)
				continue
			}
			parts = append(parts, `"`+op+`":{`+properties.Draw(t, op)+`}`)
		}
		if plain := properties.Draw(t, "plain"); plain != "" && rapid.Bool().Draw(t, "with plain") {
			parts = append(parts, plain)
		}
		return "{" + strings.Join(parts, ",") + "}"
	})
	checkHistories(t, func(t *rapid.T) {
		user, model := []byte("{}"), map[string]any{}
		for range rapid.IntRange(1, 6).Draw(t, "events") {
			c := change.Draw(t, "change")
			before := string(user)
			var err error
			if user, err = ApplyOperations(nil, user, []byte(c)); err != nil {
				t.Fatal(err)
			}
			modelApply(model, modelOf(c))
			if !reflect.DeepEqual(modelOf(string(user)), model) {
				t.Fatalf("%s, then %s\n got %s\nwant %v", before, c, user, model)
			}
			if err := check(user); err != nil || string(compactCopy(user)) != string(user) {
				t.Fatalf("%s, then %s: %s is not compact JSON (%v)", before, c, user, err)
			}
		}
	})
}

func compactCopy(raw []byte) []byte {
	v := jsontext.Value(raw).Clone()
	if err := v.Compact(); err != nil {
		panic(err)
	}
	return v
}

// TestNumbersAgainstBigRat compares, adds and multiplies as fractions do.
func TestNumbersAgainstBigRat(t *testing.T) {
	numbers := rapid.StringMatching(`-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,8})?([eE][+-]?[0-9]{1,2})?`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := numbers.Draw(t, "a"), numbers.Draw(t, "b")
		x, _ := new(big.Rat).SetString(a)
		y, _ := new(big.Rat).SetString(b)
		da, oka := parseDecimal([]byte(a), nil)
		db, okb := parseDecimal([]byte(b), nil)
		if !oka || !okb || da.compare(db) != x.Cmp(y) {
			t.Fatalf("%s against %s: got %d, want %d", a, b, da.compare(db), x.Cmp(y))
		}
		if same := string(appendNumberKey(nil, []byte(a))) == string(appendNumberKey(nil, []byte(b))); same != (x.Cmp(y) == 0) {
			t.Fatalf("%s and %s have one key: %v", a, b, same)
		}
		equals := func(what string, got []byte, ok bool, want *big.Rat) {
			r, valid := new(big.Rat).SetString(string(got))
			if !ok || !valid || r.Cmp(want) != 0 || check(got) != nil || strings.ContainsAny(string(got), "eE") {
				t.Fatalf("%s %s %s = %s, want %s", a, what, b, got, want)
			}
		}
		sum, ok := addNumbers([]byte(a), []byte(b))
		if strings.ContainsAny(string(sum), "eE") && (string(sum) == a || string(sum) == b) && x.Sign()*y.Sign() == 0 {
			sum = numberText(sum) // nothing was added, so the other came back as it was
		}
		equals("+", sum, ok, new(big.Rat).Add(x, y))
		product, ok := multiplyNumbers([]byte(a), []byte(b))
		equals("×", product, ok, new(big.Rat).Mul(x, y))
		equals("is", numberText([]byte(a)), true, x)
	})
}
