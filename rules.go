package main

import (
	"errors"
	"fmt"
	"time"

	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
)

// generation is a configuration with the rules compiled from it. It does not change: a
// reload puts another in its place.
type generation struct {
	cfg   *config.Config
	rules map[string]*mapping.Rules   // by sync
	carry map[string][]*mapping.Rules // by project
}

func newGeneration(cfg *config.Config) (*generation, error) {
	rules, err := compileRules(cfg)
	if err != nil {
		return nil, err
	}
	g := &generation{cfg: cfg, rules: rules, carry: map[string][]*mapping.Rules{}}
	for _, name := range cfg.Sync.Names() {
		y := cfg.Sync[name]
		g.carry[y.Project] = append(g.carry[y.Project], rules[name])
	}
	return g, nil
}

// carries says whether any rule of a project's syncs reads a user property.
func (g *generation) carries(project, property string) bool {
	for _, r := range g.carry[project] {
		if r.Names(property) {
			return true
		}
	}
	return false
}

// compileRules turns each sync's rules into what mapping works with. Errors carry
// the line of the configuration, as config's own do.
func compileRules(cfg *config.Config) (map[string]*mapping.Rules, error) {
	rules := map[string]*mapping.Rules{}
	var errs []error
	for _, name := range cfg.Sync.Names() {
		r, err := mapping.Compile(ruleSpec(cfg.Sync[name]))
		if err != nil {
			errs = append(errs, locate(cfg, "sync."+name+".", err))
			continue
		}
		rules[name] = r
	}
	return rules, exit(exitConfig, errors.Join(errs...))
}

// locate puts file, line and path before each error of a sync's rules.
func locate(cfg *config.Config, prefix string, err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range joined.Unwrap() {
			errs = append(errs, locate(cfg, prefix, e))
		}
		return errors.Join(errs...)
	}
	if e, ok := errors.AsType[*mapping.SpecError](err); ok {
		path := prefix + e.Path
		return fmt.Errorf("%s%s: %s", cfg.Locate(path), path, e.Message)
	}
	return fmt.Errorf("%s: %w", prefix, err)
}

func ruleSpec(s config.Sync) mapping.Spec {
	spec := mapping.Spec{
		Identifier: s.Identifier, IdentifierKind: s.IdentifierKind,
		SendEvents: s.Events.Send, EventProperties: s.Events.Properties, EventUserProperties: s.Events.UserProperties,
		EventFields: s.Events.Fields, EventExclude: s.Events.Exclude, EventRename: s.Events.Rename,
		PageViews: s.Events.PageViews, UserPropertyValues: s.Events.UserPropertyValues,
		SendUsers: s.Users.Send, UserProperties: s.Users.Properties, UserExclude: s.Users.Exclude,
		UserRename: s.Users.Rename, UserConvert: s.Users.Convert, OnUnset: s.Users.OnUnset,
		Anonymous: s.Anonymous, AnonymousAPI: s.AnonymousAPI,
	}
	for _, r := range s.Select {
		rule := mapping.SelectSpec{Event: r.Event, Action: r.Action, Name: r.Name, Properties: r.Properties}
		for _, w := range r.Where {
			rule.Where = append(rule.Where, mapping.WhereSpec{Path: w.Path, Op: w.Op, Value: w.Value})
		}
		spec.Select = append(spec.Select, rule)
	}
	return spec
}

// accountOptions are a sync's settings as delivery takes them.
func accountOptions(s config.Sync) delivery.Options {
	return delivery.Options{
		Name: s.Name, SiteID: s.SiteID, APIKey: s.APIKey.Reveal(), Region: s.Region, Endpoint: s.Endpoint,
		Concurrency: s.Delivery.Concurrency, RequestsPerSecond: s.Delivery.RequestsPerSecond,
		BatchOperations: s.Delivery.BatchOperations, Timeout: time.Duration(s.Delivery.Timeout),
		RetryInitial: time.Duration(s.Delivery.RetryInitial), RetryMax: time.Duration(s.Delivery.RetryMax),
		LateAfter: time.Duration(s.Delivery.LateAfter), LatePolicy: s.Delivery.LatePolicy,
		UserAgent: "ampcio/" + version().version,
	}
}
