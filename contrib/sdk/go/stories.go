package main

import (
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/amplitude/analytics-go/amplitude"
)

// goSDK plays the stories with github.com/amplitude/analytics-go; ../stories.js has the same ones. A story is
// over when the SDK has settled every call of it: delivered or given up.
//
// What this SDK itself drops: events of a connection that is refused or cut, at once and for good. So a daemon that
// restarts needs somebody who holds the socket: systemd, or a proxy that waits.
type goSDK struct {
	client  amplitude.Client
	wrong   amplitude.Client // the same with a key that nobody knows
	prefix  string
	mu      sync.Mutex
	settled *sync.WaitGroup
	codes   map[string]int // what the SDK told its caller, by code, for the story being told
}

func newGoSDK(serverURL, apiKey, prefix string) *goSDK {
	sdk := &goSDK{prefix: prefix}
	sdk.client = amplitude.NewClient(sdk.config(serverURL, apiKey))
	sdk.wrong = amplitude.NewClient(sdk.config(serverURL, strings.Repeat("f", 32)))
	return sdk
}

func (s *goSDK) config(serverURL, apiKey string) amplitude.Config {
	config := amplitude.NewConfig(apiKey)
	config.ServerURL = serverURL
	config.FlushInterval = flushInterval
	config.Logger = quiet{}
	config.ExecuteCallback = func(result amplitude.ExecuteResult) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.codes[fmt.Sprint(result.Code)]++
		s.settled.Done()
	}
	return config
}

// play returns how many calls the story made and how they ended.
func (s *goSDK) play(story string) (answer, error) {
	calls := 0
	s.mu.Lock()
	s.codes, s.settled = map[string]int{}, &sync.WaitGroup{}
	s.mu.Unlock()
	expect := func() { calls++; s.settled.Add(1) }

	switch story {
	case "login":
		s.login(expect)
		s.steps(expect, 1, 30, nil)
		s.client.Flush()
	case "restart":
		s.steps(expect, 31, 60, nil)
	case "full":
		s.steps(expect, 61, 90, nil)
	case "bad":
		s.steps(expect, 91, 140, nil)
		expect()
		s.client.Track(amplitude.Event{EventType: "Bad", EventOptions: amplitude.EventOptions{UserID: s.prefix + "-bob", DeviceID: s.prefix + "-device-2", Time: -1}})
		s.steps(expect, 141, 189, nil)
	case "large":
		s.steps(expect, 190, 249, map[string]any{"padding": strings.Repeat("x", 20_000)})
	case "wrong":
		for range 3 {
			expect()
			s.wrong.Track(amplitude.Event{EventType: "Step", EventOptions: amplitude.EventOptions{UserID: s.prefix + "-bob"}})
		}
	default:
		return answer{}, fmt.Errorf("no story %q", story)
	}
	s.settled.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return answer{Calls: calls, Codes: s.codes}, nil
}

func (s *goSDK) login(expect func()) {
	anonymous := amplitude.EventOptions{DeviceID: s.prefix + "-device-1"}
	ada := amplitude.EventOptions{UserID: s.prefix + "-ada", DeviceID: s.prefix + "-device-1"}
	identify := func(operations *amplitude.Identify, who amplitude.EventOptions) {
		expect()
		s.client.Identify(*operations, who)
	}
	track := func(name string, properties map[string]any, who amplitude.EventOptions) {
		expect()
		s.client.Track(amplitude.Event{EventType: name, EventOptions: who, EventProperties: properties})
	}

	identify(new(amplitude.Identify).Set("campaign", "spring"), anonymous)
	track("App Opened", map[string]any{"screen": "home"}, anonymous)
	identify(new(amplitude.Identify).
		Set("email", s.prefix+"-ada@example.com").Set("plan", "pro").Set("trial", true).
		SetOnce("first_seen", "2026-01-01").
		Add("logins", 1).
		Append("visited", "home").Prepend("recent", "a").PostInsert("tags", "x").PreInsert("badges", "gold"), ada)
	track("Order Completed", map[string]any{"total": 19.5, "currency": "EUR", "secret": "not chosen"}, ada)
	identify(new(amplitude.Identify).
		Set("plan", "team").
		SetOnce("first_seen", "2026-02-02").
		Add("logins", 2).
		Append("visited", "cart").Prepend("recent", "b").PostInsert("tags", "x").PreInsert("badges", "silver"), ada)
	identify(new(amplitude.Identify).Remove("visited", "home").Unset("trial"), ada)
	track("Order Completed", map[string]any{"total": 7}, anonymous)
	track("Not Selected", map[string]any{"total": 1}, ada)
	expect()
	s.client.Revenue(amplitude.Revenue{ProductID: "sku-1", Price: 4.99, Quantity: 3}, ada)
	expect()
	s.client.SetGroup("org", []string{"Acme", "Globex"}, ada)
	expect()
	s.client.GroupIdentify("org", "Acme", *new(amplitude.Identify).Set("seats", 5), amplitude.EventOptions{})
}

func (s *goSDK) steps(expect func(), from, to int, more map[string]any) {
	for n := from; n <= to; n++ {
		expect()
		properties := map[string]any{"n": n}
		maps.Copy(properties, more)
		s.client.Track(amplitude.Event{
			EventType:       "Step",
			EventOptions:    amplitude.EventOptions{UserID: s.prefix + "-bob", DeviceID: s.prefix + "-device-2"},
			EventProperties: properties,
		})
	}
}

// quiet keeps the SDK's log out of the verdict; what became of each call is counted.
type quiet struct{}

func (quiet) Debugf(string, ...any) {}
func (quiet) Infof(string, ...any)  {}
func (quiet) Warnf(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
