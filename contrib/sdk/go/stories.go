package main

import (
	"fmt"
	"sync"

	"github.com/amplitude/analytics-go/amplitude"
)

// goSDK plays the stories with github.com/amplitude/analytics-go; ../node/drive.js plays the same ones. A story is
// over when the SDK has settled every call of it: delivered or given up.
type goSDK struct {
	client  amplitude.Client
	prefix  string
	mu      sync.Mutex
	settled *sync.WaitGroup
	codes   map[string]int // what the SDK told its caller, by code, for the story being told
}

func newGoSDK(serverURL, apiKey, prefix string) *goSDK {
	sdk := &goSDK{prefix: prefix}
	config := amplitude.NewConfig(apiKey)
	config.ServerURL = serverURL
	config.FlushInterval = flushInterval
	config.Logger = quiet{}
	config.ExecuteCallback = func(result amplitude.ExecuteResult) {
		sdk.mu.Lock()
		defer sdk.mu.Unlock()
		sdk.codes[fmt.Sprint(result.Code)]++
		sdk.settled.Done()
	}
	sdk.client = amplitude.NewClient(config)
	return sdk
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
		s.steps(expect, 1, 30)
		s.client.Flush()
	case "restart":
		s.steps(expect, 31, 60)
	case "full":
		s.steps(expect, 61, 90)
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

func (s *goSDK) steps(expect func(), from, to int) {
	for n := from; n <= to; n++ {
		expect()
		s.client.Track(amplitude.Event{
			EventType:       "Step",
			EventOptions:    amplitude.EventOptions{UserID: s.prefix + "-bob", DeviceID: s.prefix + "-device-2"},
			EventProperties: map[string]any{"n": n},
		})
	}
}

// quiet keeps the SDK's log out of the verdict; what became of each call is counted.
type quiet struct{}

func (quiet) Debugf(string, ...any) {}
func (quiet) Infof(string, ...any)  {}
func (quiet) Warnf(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
