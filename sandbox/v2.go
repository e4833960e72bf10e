package sandbox

import (
	"bytes"
	"strconv"
)

// parseV2 reads one operation of the v2 API: the body of /entity or an element of
// a batch.
func parseV2(raw []byte) (operation, *problem) {
	var o operation
	if len(raw) > maxOperationBytes {
		return o, invalid("operation_too_large", "", "operation cannot be larger than 32000 bytes")
	}
	if !isObject(raw) {
		return o, invalid("operation_not_object", "", "operation must be an object")
	}
	var typ, act, identifiers, primary, secondary, name, id, timestamp, values, device, relationships []byte
	for w := walk(raw); ; {
		member, value, ok := w.member()
		if !ok {
			break
		}
		switch string(member) {
		case "type":
			typ = value
		case "action":
			act = value
		case "identifiers":
			identifiers = value
		case "primary":
			primary = value
		case "secondary":
			secondary = value
		case "name":
			name = value
		case "id":
			id = value
		case "timestamp":
			timestamp = value
		case "attributes":
			values = value
		case "device":
			device = value
		case "cio_relationships":
			relationships = value
		default:
			o.misplaced = append(o.misplaced, member)
		}
	}
	kind, p := checkWord(typ, "type")
	if p != nil {
		return o, p
	}
	verb, p := checkWord(act, "action")
	if p != nil {
		return o, p
	}
	switch string(kind) {
	case "person":
	case "object":
		return o, o.object(verb, identifiers, relationships)
	case "delivery":
		if string(verb) != "event" {
			return o, invalid("action_unknown", "action", "no such action for a delivery")
		}
		o.action = actDelivery
		return o, nil
	default:
		return o, invalid("type_unknown", "type", "must be person, object or delivery")
	}
	if p := o.setAction(verb); p != nil {
		return o, p
	}
	if o.action == actMerge {
		if o.who, p = checkMergeSide(primary, "primary"); p != nil {
			return o, p
		}
		o.secondary, p = checkMergeSide(secondary, "secondary")
		return o, p
	}
	if o.who, p = checkIdentifiers(identifiers, "identifiers"); p != nil {
		return o, p
	}
	if o.who.kind == byAnonymous && !o.action.isEvent() {
		return o, invalid("identifier_anonymous", "identifiers.anonymous_id", "anonymous_id identifies events only")
	}
	if timestamp != nil {
		if o.timestamp, p = checkTimestamp(timestamp, "timestamp"); p != nil {
			return o, p
		}
	}
	switch o.action {
	case actIdentify:
		return o, o.identify(values, relationships)
	case actEvent, actPage, actScreen:
		return o, o.event(name, id, values)
	case actAddDevice, actDeleteDevice:
		return o, o.setDevice(device, "token", o.action == actAddDevice)
	case actAddRelationships, actDeleteRelationships:
		return o, checkRelationships(relationships, true)
	}
	return o, nil
}

func checkWord(raw []byte, field string) ([]byte, *problem) {
	if raw == nil || !isString(raw) {
		return nil, invalid(field+"_missing", field, field+" is required and must be a string")
	}
	return text(raw), nil
}

func (o *operation) setAction(verb []byte) *problem {
	for a := actIdentify; a < actObject; a++ {
		if actionNames[a] == string(verb) {
			o.action = a
			return nil
		}
	}
	return invalid("action_unknown", "action", "no such action for a person")
}

func checkMergeSide(raw []byte, field string) (identifier, *problem) {
	id, p := checkIdentifiers(raw, field)
	if p == nil && (id.kind == byAnonymous || id.kind == byPhone) {
		p = invalid("identifier_unknown", field+"."+kindNames[id.kind], "people are merged by id, email or cio_id")
	}
	return id, p
}

func (o *operation) identify(values, relationships []byte) *problem {
	if values != nil && !isNull(values) {
		if !isObject(values) {
			return invalid("attributes_not_object", "attributes", "attributes must be an object")
		}
		o.values = values
		var first *problem
		checkAttributes(values, "attributes.", func(p *problem) {
			if first == nil {
				first = p
			}
		})
		if first != nil {
			return first
		}
	}
	return checkRelationships(relationships, false)
}

func (o *operation) event(name, id, values []byte) (p *problem) {
	if o.name, p = checkName(name); p != nil {
		return p
	}
	if id != nil {
		if p = o.setEventID(id); p != nil {
			return p
		}
	}
	if values != nil && !isNull(values) {
		if !isObject(values) {
			return invalid("attributes_not_object", "attributes", "attributes must be an object")
		}
		o.values = values
	}
	return nil
}

// setDevice reads a device; key is what the API calls the token: "token" on v2,
// "id" on v1.
func (o *operation) setDevice(raw []byte, key string, add bool) *problem {
	if raw == nil || !isObject(raw) {
		return invalid("device_missing", "device", "device is required and must be an object")
	}
	var platform []byte
	for w := walk(raw); ; {
		name, value, ok := w.member()
		if !ok {
			break
		}
		switch string(name) {
		case key:
			if isString(value) {
				o.token = text(value)
			}
		case "platform":
			platform = value
		case "last_used":
			if _, p := checkTimestamp(value, "device.last_used"); p != nil {
				return p
			}
		}
	}
	if len(bytes.TrimSpace(o.token)) == 0 {
		return invalid("device_token_missing", "device."+key, key+" is required and cannot be blank")
	}
	if add && string(platform) != `"ios"` && string(platform) != `"android"` {
		return invalid("device_platform", "device.platform", "platform must be ios or android")
	}
	o.device = raw
	return nil
}

// checkRelationships accepts v2's array of relationships. They are checked for
// shape and counted; the sandbox keeps no objects.
func checkRelationships(raw []byte, required bool) *problem {
	if raw == nil {
		if required {
			return invalid("relationships_missing", "cio_relationships", "cio_relationships is required")
		}
		return nil
	}
	if raw[0] != '[' {
		return invalid("relationships_not_array", "cio_relationships", "cio_relationships must be an array")
	}
	for w := walk(raw); ; {
		one, ok := w.element()
		if !ok {
			return nil
		}
		if !isObject(one) || member(one, "identifiers") == nil {
			return invalid("relationship_shape", "cio_relationships", "each relationship must be an object with identifiers")
		}
	}
}

func (o *operation) object(verb, identifiers, relationships []byte) *problem {
	switch string(verb) {
	case "identify", "identify_anonymous", "delete", "add_relationships", "delete_relationships":
	default:
		return invalid("action_unknown", "action", "no such action for an object")
	}
	o.action = actObject
	if identifiers == nil || !isObject(identifiers) {
		return invalid("identifiers_missing", "identifiers", "identifiers is required")
	}
	typ, id, cio := member(identifiers, "object_type_id"), member(identifiers, "object_id"), member(identifiers, "cio_object_id")
	if cio == nil && (typ == nil || id == nil) {
		return invalid("identifiers_missing", "identifiers", "object_type_id and object_id, or cio_object_id, are required")
	}
	if typ != nil {
		if _, err := strconv.ParseUint(string(bytes.Trim(typ, `"`)), 10, 64); err != nil {
			return invalid("object_type", "identifiers.object_type_id", "object_type_id must be a string holding an integer")
		}
	}
	return checkRelationships(relationships, false)
}

// member returns the raw value of one member of an object, nil when absent.
func member(object []byte, name string) []byte {
	for w := walk(object); ; {
		n, v, ok := w.member()
		if !ok || string(n) == name {
			return v
		}
	}
}

// batchOperations cuts a batch request into its raw operations.
func batchOperations(body []byte) ([][]byte, *problem) {
	if !isObject(body) {
		return nil, invalid("batch_missing", "batch", "body must be an object with a batch")
	}
	list := member(body, "batch")
	if list == nil || list[0] != '[' {
		return nil, invalid("batch_missing", "batch", "batch is required and must be an array")
	}
	var operations [][]byte
	for w := walk(list); ; {
		one, ok := w.element()
		if !ok {
			break
		}
		operations = append(operations, one)
	}
	if len(operations) == 0 {
		return nil, invalid("batch_empty", "batch", "batch cannot be empty")
	}
	return operations, nil
}
