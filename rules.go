package main

import (
	"errors"
	"fmt"
	"time"

	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
)

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
		UserAgent: "ampcio/" + version().version,
	}
}
