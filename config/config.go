// Package config reads ampcio's configuration: TOML in, checked plain values out.
// There is one set of defaults (Default, DefaultProject, DefaultSync), every unknown
// key is an error, and all errors are reported at once, each with its line.
//
// The other packages never see these types: main hands them plain values.
package config

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Struct tags of the schema below, read by the decoder:
//
//	toml:"name"    the key; "-" is not a key
//	enum:"a b c"   the words this key knows

// Config is a whole, checked configuration. It does not change after Load.
type Config struct {
	Server      Server      `toml:"server"`
	Storage     Storage     `toml:"storage"`
	Project     Projects    `toml:"project"` // at least one
	Sync        Syncs       `toml:"sync"`    // at least one, unless a project is relayed
	DeadLetters DeadLetters `toml:"dead_letters"`
	Alerts      Alerts      `toml:"alerts"`
	Log         Log         `toml:"log"`

	// Warnings name what is allowed but unwise, one line each, with file and line.
	Warnings []string `toml:"-"`

	places *places
}

// Projects are the Amplitude projects by name.
type Projects map[string]Project

// Names are the projects' names, sorted.
func (p Projects) Names() []string { return slices.Sorted(maps.Keys(p)) }

// Syncs are the syncs by name.
type Syncs map[string]Sync

// Names are the syncs' names, sorted.
func (s Syncs) Names() []string { return slices.Sorted(maps.Keys(s)) }

// Server is where ampcio listens. Addresses are host:port.
type Server struct {
	Listen         string         `toml:"listen"`
	TLSCert        string         `toml:"tls_cert"` // after Load absolute; "" = plain HTTP
	TLSKey         string         `toml:"tls_key"`  // likewise
	TrustedProxies []netip.Prefix `toml:"trusted_proxies"`
	CORSOrigins    []string       `toml:"cors_origins"` // "*", or scheme://host[:port]; none: no CORS headers
	Admin          string         `toml:"admin"`        // "" = off
	Socket         string         `toml:"socket"`       // absolute, or "" for the usual place
}

// Storage is where and how much ampcio keeps on disk.
type Storage struct {
	Dir         string   `toml:"dir"` // absolute
	MaxBytes    ByteSize `toml:"max_bytes"`
	MinFree     ByteSize `toml:"min_free"`
	Keep        Duration `toml:"keep"`
	KeepBytes   ByteSize `toml:"keep_bytes"`
	RotateBytes ByteSize `toml:"rotate_bytes"`
	RotateAfter Duration `toml:"rotate_after"`
}

// Project is one Amplitude project: the users, insert_ids and syncs of one do not
// mix with another's.
type Project struct {
	Name string `toml:"-"`
	// AmplitudeAPIKeys are the keys the project's SDKs send, after Load also when they
	// came from AmplitudeAPIKeysFile. At least one, unless there is a webhook; no key is in
	// two projects.
	AmplitudeAPIKeys     []string `toml:"amplitude_api_keys"`
	AmplitudeAPIKeysFile string   `toml:"amplitude_api_keys_file"`
	// Relay is where accepted events are passed on to: the region of the Amplitude project,
	// or off. It must be written down unless there is a webhook; after Load never "".
	Relay                string           `toml:"relay" enum:"off us eu"`
	RelayMark            string           `toml:"relay_mark"`              // an event property of what a sync takes; "" = none
	RelayEndpoint        string           `toml:"relay_endpoint"`          // base URL; "" = the region's
	RelayMaxPendingBytes OptionalByteSize `toml:"relay_max_pending_bytes"` // beyond it the oldest are given up; 0 = no bound
	WebhookSecretFile    string           `toml:"webhook_secret_file"`
	WebhookSecret        Secret           `toml:"-"` // what stands in it; empty without that file, or when loaded without secrets
}

// Sync is one stream from a project to a Customer.io workspace.
type Sync struct {
	Name    string `toml:"-"`
	Project string `toml:"project"` // after Load always the name of a project
	Enabled bool   `toml:"enabled"`
	DryRun  bool   `toml:"dry_run"`             // do everything but send; then Site ID and API key may be missing
	Region  string `toml:"region" enum:"us eu"` // required: it is never guessed
	SiteID  string `toml:"site_id"`
	// APIKey is the Track API key, after Load wherever it came from; APIKeyFrom says
	// where that was, for messages ("api_key", "/etc/ampcio/customerio_api_key",
	// "environment variable AMPCIO_SYNC_PRODUCTION_API_KEY"). Both are empty when the
	// configuration was loaded without secrets.
	APIKey         Secret   `toml:"api_key"`
	APIKeyFrom     string   `toml:"-"`
	APIKeyFile     string   `toml:"api_key_file"`
	Endpoint       string   `toml:"endpoint"` // base URL; "" = the region's
	Identifier     string   `toml:"identifier"`
	IdentifierKind string   `toml:"identifier_kind" enum:"auto id email cio_id"`
	Anonymous      string   `toml:"anonymous" enum:"filter send dead_letter"`
	AnonymousAPI   string   `toml:"anonymous_api" enum:"v1 v2"` // by which send sends
	Select         []Select `toml:"select"`
	Events         Events   `toml:"events"`
	Users          Users    `toml:"users"`
	Delivery       Delivery `toml:"delivery"`
}

// Select is one rule of which events are sent; the first that matches decides. What
// its globs, paths and operators mean is checked where they are compiled.
type Select struct {
	Event      []string `toml:"event"`
	Where      []Where  `toml:"where"`
	Action     string   `toml:"action" enum:"send drop"`
	Name       string   `toml:"name"`
	Properties []string `toml:"properties"`
}

// Where is one condition of a Select. Value is nil, string, bool, int64, float64, or
// a []any of those that is not empty.
type Where struct {
	Path  string `toml:"path"`
	Op    string `toml:"op"`
	Value any    `toml:"value"`
}

// Events is what is sent of an event.
type Events struct {
	Send               bool              `toml:"send"`
	Properties         []string          `toml:"properties"`
	UserProperties     []string          `toml:"user_properties"`
	Fields             []string          `toml:"fields"`
	Exclude            []string          `toml:"exclude"`
	Rename             map[string]string `toml:"rename"`
	PageViews          string            `toml:"page_views" enum:"event page"`
	UserPropertyValues string            `toml:"user_property_values" enum:"json string"`
}

// Users is what is sent of a user.
type Users struct {
	Send       bool              `toml:"send"`
	Properties []string          `toml:"properties"`
	Exclude    []string          `toml:"exclude"`
	Rename     map[string]string `toml:"rename"`
	Convert    map[string]string `toml:"convert"`
	OnUnset    string            `toml:"on_unset" enum:"clear keep"`
}

// Delivery is how fast and how patiently a sync sends.
type Delivery struct {
	Concurrency       int              `toml:"concurrency"`
	RequestsPerSecond float64          `toml:"requests_per_second"`
	BatchOperations   int              `toml:"batch_operations"`
	Timeout           Duration         `toml:"timeout"`
	RetryInitial      Duration         `toml:"retry_initial"`
	RetryMax          Duration         `toml:"retry_max"`
	MaxPendingBytes   OptionalByteSize `toml:"max_pending_bytes"` // 0 = no bound of its own
	WhenFull          string           `toml:"when_full" enum:"refuse discard_oldest"`
	LateAfter         Duration         `toml:"late_after"`
	LatePolicy        string           `toml:"late_policy" enum:"deliver filter dead_letter"`
}

// DeadLetters is how long, and how much of, what Customer.io refused for good is
// kept in each sync. 0 = without a bound.
type DeadLetters struct {
	Keep     Duration `toml:"keep"`
	MaxBytes ByteSize `toml:"max_bytes"`
}

// Alerts are posted to one address when something is wrong, and when it is over.
// Thresholds of 0 are never met.
type Alerts struct {
	// URL is where, after Load wherever it came from; URLFrom says where that was ("url",
	// "/etc/ampcio/alerts_url"). Both are empty when there is none, or when the
	// configuration was loaded without secrets: many an address is one.
	URL     Secret `toml:"url"`
	URLFrom string `toml:"-"`
	URLFile string `toml:"url_file"`
	Given   bool   `toml:"-"` // one of the two was written, also when loaded without secrets
	Format  string `toml:"format" enum:"auto json slack"`
	Name    string `toml:"name"` // of this installation; "" = the host's

	After     Duration `toml:"after"`      // a trouble lasts so long before it is told
	OverAfter Duration `toml:"over_after"` // and is gone so long before its end is
	Repeat    Duration `toml:"repeat"`     // told again while it lasts

	Age         Duration `toml:"age"`          // of the oldest event that waits
	Disk        Percent  `toml:"disk"`         // of storage.max_bytes, or of the disk but for min_free
	DeadLetters int      `toml:"dead_letters"` // that are kept of one sync, when a new one came
	NoTraffic   Duration `toml:"no_traffic"`   // no request of a project
	Late        Duration `toml:"late"`         // that an event still has before it is late
}

// Log is how ampcio writes its log to stderr.
type Log struct {
	Level  string `toml:"level" enum:"debug info warn error"`
	Format string `toml:"format" enum:"auto text json"`
}

// Default is every default outside of projects and syncs, of which there are none.
func Default() Config {
	return Config{
		Server: Server{
			Listen: "127.0.0.1:8080",
			TrustedProxies: []netip.Prefix{
				netip.MustParsePrefix("127.0.0.1/32"),
				netip.MustParsePrefix("::1/128"),
			},
			CORSOrigins: []string{"*"},
			Admin:       "127.0.0.1:8081",
		},
		Storage: Storage{
			Dir:         "/var/lib/ampcio",
			MaxBytes:    20 * GiB,
			MinFree:     1 * GiB,
			Keep:        Duration(72 * time.Hour),
			KeepBytes:   4 * GiB,
			RotateBytes: 128 * MiB,
			RotateAfter: Duration(24 * time.Hour),
		},
		DeadLetters: DeadLetters{
			Keep:     Duration(90 * 24 * time.Hour),
			MaxBytes: 2 * GiB,
		},
		Alerts: Alerts{
			Format: "auto",
			After:  Duration(time.Minute), OverAfter: Duration(5 * time.Minute), Repeat: Duration(24 * time.Hour),
			Age: Duration(time.Hour), Disk: 90, DeadLetters: 1, NoTraffic: Duration(24 * time.Hour), Late: Duration(12 * time.Hour),
		},
		Log: Log{Level: "info", Format: "auto"},
	}
}

// DefaultProject is a project of which nothing was written. Its API keys have no
// default, and neither has Relay: an SDK has one server URL, so whether Amplitude still
// gets the events is not to be guessed.
func DefaultProject() Project {
	return Project{}
}

// DefaultSync is a sync of which nothing was written. Region, Site ID, API key and,
// while events are sent, at least one Select have no default. The project may be
// left out when there is only one.
func DefaultSync() Sync {
	return Sync{
		Enabled:        true,
		Identifier:     "user_id",
		IdentifierKind: "auto",
		Anonymous:      "filter",
		AnonymousAPI:   "v1",
		Events: Events{
			Send:               true,
			PageViews:          "event",
			UserPropertyValues: "json",
		},
		Users: Users{
			Send:    true,
			OnUnset: "clear",
		},
		Delivery: Delivery{
			Concurrency:       4,
			RequestsPerSecond: 100,
			BatchOperations:   500,
			Timeout:           Duration(30 * time.Second),
			RetryInitial:      Duration(500 * time.Millisecond),
			RetryMax:          Duration(5 * time.Minute),
			WhenFull:          "refuse",
			LateAfter:         Duration(72 * time.Hour),
			LatePolicy:        "deliver",
		},
	}
}

// DefaultSelect is a rule of which nothing was written. Its events have no default.
func DefaultSelect() Select {
	return Select{Action: "send"}
}
