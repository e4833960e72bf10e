package mapping

// view is one record opened for reading: where its event's top-level fields stand that anything here reads. It is made anew
// for each record, so it holds places in the event instead of slices: without pointers in it that costs the garbage
// collector nothing.
type view struct {
	record         *Record
	event          []byte // event_type, decoded
	userProperties []byte // the record's
	skipSync       bool

	fields [fieldCount]place
	said   [builtinCount]place // built-in properties of the user, by the event
	known  builtinSet          // those after the event, once somebody has asked (builtinsKnown)
	asked  bool
}

// place is a value in the raw event; the zero place is of one that is absent or null.
type place struct{ from, to int32 }

const (
	fieldEventProperties = iota
	fieldAPIProperties
	fieldVersionName
	fieldLibrary
	fieldSessionID
	fieldPrice
	fieldQuantity
	fieldRevenue
	fieldCurrency
	fieldProductID
	fieldProductIDSwift
	fieldRevenueType
	fieldRevenueTypeSwift
	fieldInsertID
	fieldUUID
	fieldCount
)

// open reads a record's raw event once. An error means that the stored bytes are damaged.
func (v *view) open(r *Record) error {
	v.record, v.event, v.userProperties, v.skipSync, v.asked = r, nil, r.Properties, false, false
	v.fields, v.said = [fieldCount]place{}, [builtinCount]place{}
	if len(r.Properties) == 0 {
		v.userProperties = []byte("{}")
	}
	if len(r.Raw) > mostOutlined {
		return errMalformed // none that was ever stored: places would not be told
	}
	w := walkObject(r.Raw)
	for w.next() {
		if isNull(w.value) {
			continue
		}
		field := fieldCount
		switch name := w.nameText(); string(name) {
		case "event_type":
			v.event = plainText(w.value)
		case "$skip_user_properties_sync":
			v.skipSync = w.value[0] == 't'
		case "event_properties":
			field = fieldEventProperties
		case "api_properties": // legacy SDKs put price and quantity there
			field = fieldAPIProperties
		case "version_name":
			field = fieldVersionName
		case "library":
			field = fieldLibrary
		case "session_id":
			field = fieldSessionID
		case "price":
			field = fieldPrice
		case "quantity":
			field = fieldQuantity
		case "revenue":
			field = fieldRevenue
		case "currency":
			field = fieldCurrency
		case "productId":
			field = fieldProductID
		case "product_id":
			field = fieldProductIDSwift
		case "revenueType":
			field = fieldRevenueType
		case "revenue_type":
			field = fieldRevenueTypeSwift
		case "insert_id":
			field = fieldInsertID
		case "uuid":
			field = fieldUUID
		default:
			if number := builtinNumber(name); number != noBuiltin {
				v.said[number] = place{int32(w.pos - len(w.value)), int32(w.pos)}
			}
		}
		if field < fieldCount {
			v.fields[field] = place{int32(w.pos - len(w.value)), int32(w.pos)}
		}
	}
	if none := (*builtinSet)(nil); !none.read(r.Builtins) || !none.read(r.Beside) {
		return errMalformed
	}
	return w.err()
}

// value gives what stands at a place; nil = nothing does.
func (v *view) value(p place) []byte {
	if p.to == 0 {
		return nil
	}
	return v.record.Raw[p.from:p.to:p.to]
}

func (v *view) field(f int) []byte { return v.value(v.fields[f]) }

// builtinsKnown are the built-in properties of the user after the event.
func (v *view) builtinsKnown() *builtinSet {
	if v.asked {
		return &v.known
	}
	v.known, v.asked = builtinSet{}, true
	if v.record.Builtins == nil {
		for number, p := range v.said {
			if p.to > 0 {
				v.known.set(number, v.value(p))
			}
		}
		if version := v.field(fieldVersionName); v.known[builtinVersion] == nil && version != nil {
			v.known.set(builtinVersion, version)
		}
	}
	_ = v.known.read(v.record.Builtins) && v.known.read(v.record.Beside) // of a damaged record, what could be read
	return &v.known
}

// release lets go of the record.
func (v *view) release() {
	v.record, v.event, v.userProperties = nil, nil, nil
	if v.asked {
		v.known, v.asked = builtinSet{}, false
	}
}
