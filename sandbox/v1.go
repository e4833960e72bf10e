package sandbox

import (
	"bytes"
)

// pathIdentifier guesses, as v1 does, what a path segment identifies: cio_… is a
// cio_id, x@y.z an email, anything else an id.
func pathIdentifier(segment string) (identifier, *problem) {
	id := identifier{kind: byID, value: []byte(segment)}
	if rest, ok := bytes.CutPrefix(id.value, []byte("cio_")); ok {
		id = identifier{byCio, rest}
	} else if looksLikeEmail(id.value) {
		id.kind = byEmail
	}
	return id, checkIdentifierText(id, "identifier")
}

// parseV1Identify reads the flat body of PUT /customers/{identifier}.
func parseV1Identify(who identifier, body []byte) (operation, []*problem) {
	o := operation{action: actIdentify, who: who, values: body, v1: true}
	if !isObject(body) {
		return o, []*problem{invalid("body_not_object", "", "body must be a JSON object")}
	}
	var problems []*problem
	report := func(p *problem) { problems = append(problems, p) }
	if raw := member(body, "id"); raw != nil {
		switch {
		case !isString(raw):
			report(invalid("id_not_string", "id", "id attribute must be a string"))
		case len(bytes.TrimSpace(text(raw))) == 0:
			report(invalid("id_blank", "id", "id attribute cannot be empty"))
		case who.kind == byID && !bytes.Equal(text(raw), who.value):
			report(invalid("id_mismatch", "id", "value for the id attribute does not match the identifier in the path"))
		case len(text(raw)) > maxIdentifierBytes:
			report(invalid("identifier_too_long", "id", "id cannot be longer than 150 bytes"))
		}
	}
	if raw := member(body, "_timestamp"); raw != nil {
		t, p := checkTimestamp(raw, "_timestamp")
		if p != nil {
			report(p)
		}
		o.timestamp = t
	}
	if raw := member(body, "cio_relationships"); raw != nil && !isObject(raw) {
		report(invalid("relationships_not_object", "cio_relationships", "cio_relationships must be an object with an action"))
	}
	checkAttributes(body, "", report)
	return o, problems
}

// parseV1Event reads the body of an identified event, or of an anonymous one when
// who has no kind.
func parseV1Event(who identifier, body []byte) (operation, *problem) {
	o := operation{action: actEvent, who: who, v1: true}
	if !isObject(body) {
		return o, invalid("body_not_object", "", "body must be a JSON object")
	}
	var name []byte
	for w := walk(body); ; {
		member, value, ok := w.member()
		if !ok {
			break
		}
		var p *problem
		switch string(member) {
		case "name":
			name = value
		case "type":
			switch string(value) {
			case `"page"`:
				o.action = actPage
			case `"screen"`:
				o.action = actScreen
			}
		case "id":
			p = o.setEventID(value)
		case "timestamp":
			o.timestamp, p = checkTimestamp(value, "timestamp")
		case "data":
			switch {
			case isNull(value):
			case !isObject(value):
				p = invalid("data_not_object", "data", "data must be an object")
			case len(value) > maxEventDataBytes:
				p = invalid("data_too_large", "data", "data cannot be larger than 100000 bytes")
			default:
				o.values = value
			}
		case "anonymous_id":
			if isString(value) {
				o.anonymous = bytes.TrimSpace(text(value))
			} else if !isNull(value) {
				p = invalid("anonymous_id_not_string", "anonymous_id", "anonymous_id must be a string")
			}
		default:
			o.misplaced = append(o.misplaced, member)
		}
		if p != nil {
			return o, p
		}
	}
	if who.kind == noIdentifier {
		o.who = identifier{byAnonymous, o.anonymous}
	}
	var p *problem
	o.name, p = checkName(name)
	return o, p
}

// parseV1Merge reads the body of POST /merge_customers.
func parseV1Merge(body []byte) (operation, *problem) {
	o := operation{action: actMerge, v1: true}
	if !isObject(body) {
		return o, invalid("body_not_object", "", "body must be a JSON object")
	}
	var p *problem
	if o.who, p = checkMergeSide(member(body, "primary"), "primary"); p != nil {
		return o, p
	}
	o.secondary, p = checkMergeSide(member(body, "secondary"), "secondary")
	return o, p
}

// parseV1Device reads the body of PUT /customers/{identifier}/devices.
func parseV1Device(who identifier, body []byte) (operation, *problem) {
	o := operation{action: actAddDevice, who: who, v1: true}
	if !isObject(body) {
		return o, invalid("body_not_object", "", "body must be a JSON object")
	}
	return o, o.setDevice(member(body, "device"), "id", true)
}
