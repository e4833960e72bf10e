package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// examples are real command lines of each verb, for its help. A line begins with ampcio, with
// sudo where root is needed, or shows it in a pipe.
var examples = map[string][]string{
	"serve": {"ampcio serve", "ampcio serve --config config.toml"},
	"demo":  {"ampcio demo", "ampcio demo --keep"},
	"check-config": {"sudo ampcio check-config --online", "ampcio check-config --pending",
		"ampcio check-config --config new.toml --json"},
	"reload": {"sudo ampcio reload --dry-run", "sudo ampcio reload", "sudo ampcio reload --yes"},
	"doctor": {"sudo ampcio doctor", "sudo ampcio doctor --offline --json"},
	"send-test": {"ampcio send-test --dry-run",
		`ampcio send-test --sync production --event 'Order Completed' --properties '{"total": 20}' --yes`},
	"sync":         {"ampcio sync status", "ampcio sync pause production"},
	"dead-letters": {"ampcio dead-letters list --reason invalid --newer-than 24h", "ampcio dead-letters replay --reason invalid --dry-run"},
	"dry-run":      {"ampcio dry-run report", "ampcio dry-run report --by hour --since 24h"},
	"user":         {"ampcio user show anna@example.com", "ampcio user forget anna@example.com --dry-run"},
	"sync status":  {"ampcio sync status", "ampcio sync status production", "ampcio sync status --json"},
	"sync pause":   {"ampcio sync pause production", "ampcio sync pause relay.app"},
	"sync resume":  {"ampcio sync resume production", "ampcio sync resume production --json"},
	"sync retry":   {"ampcio sync retry production", "ampcio sync retry relay.app"},
	"sync rewind": {"ampcio sync rewind production --since 24h --dry-run", "ampcio sync rewind production --since 2026-11-20",
		"ampcio sync rewind production --since 2026-11-20T10:12:03Z --untaken"},
	"sync export": {"ampcio sync export production > pending.jsonl", "ampcio sync export production | wc -l"},
	"sync rename": {"ampcio sync rename production prod --dry-run", "ampcio sync rename production prod"},
	"sync remove": {"ampcio sync remove production --dry-run", "ampcio sync remove production --yes"},
	"sync adopt":  {"ampcio sync adopt production --dry-run", "ampcio sync adopt production"},
	"dead-letters list": {"ampcio dead-letters list", "ampcio dead-letters list --sync production --event 'Order *' --newer-than 24h",
		"ampcio dead-letters list --limit 0 | grep 'Order' | ampcio dead-letters replay -"},
	"dead-letters show":   {"ampcio dead-letters show production/1234", "ampcio dead-letters show production/1234 --show-ids --json"},
	"dead-letters export": {"ampcio dead-letters export --sync production > dead.jsonl", "ampcio dead-letters export --http-v2 > events.jsonl"},
	"dead-letters replay": {"ampcio dead-letters replay production/1234", "ampcio dead-letters replay --reason invalid --dry-run"},
	"dead-letters drop":   {"ampcio dead-letters drop --older-than 30d --dry-run", "ampcio dead-letters drop production/1234 production/1235"},
	"dry-run report":      {"ampcio dry-run report --by hour --since 24h", "ampcio dry-run report --sync production --json"},
	"explain": {"ampcio explain order.json", "ampcio explain --user anna-17 --sync production order.json", "ampcio explain --seq 1234",
		"ampcio explain --expect mapping-tests"},
	"alerts":      {"ampcio alerts list", "ampcio alerts test"},
	"alerts test": {"ampcio alerts test", "ampcio alerts test --json"},
	"alerts list": {"ampcio alerts list", "ampcio alerts list --json"},
	"audit":       {"ampcio audit", "ampcio audit --sync production --json"},
	"trace":       {"ampcio trace --user anna@example.com", "ampcio trace --insert-id 0b5ea0c2 --json"},
	"user show":   {"ampcio user show anna@example.com", "ampcio user show anna@example.com --show-ids"},
	"user forget": {"ampcio user forget anna@example.com --dry-run", "ampcio user forget anna@example.com"},
	"drain": {"ampcio drain --until-empty --timeout 10m", "sudo ampcio drain --until-empty --refuse && sudo systemctl stop ampcio.socket ampcio.service",
		"ampcio drain --sync production"},
	"backup":  {"ampcio backup /backup/ampcio.tar", "ampcio backup - | zstd | ssh elsewhere 'cat > ampcio.tar.zst'"},
	"restore": {"sudo ampcio restore /backup/ampcio.tar", "zstd -dc ampcio.tar.zst | sudo ampcio restore -"},
	"import":  {"ampcio import --state export.zip --dry-run", "ampcio import export.zip --rate 500"},
	"sandbox": {"ampcio sandbox", "ampcio sandbox --region eu --site-id s --api-key k", "ampcio sandbox --fault 503=0.05 --outage 10s+5s"},
	"version": {"ampcio version", "ampcio version --json"},
}

// withExamples ends a verb's help with examples: those above, or else those that its text
// ends with.
func withExamples(path string, c *cli.Command) {
	lines := examples[path]
	for _, title := range []string{exampleTitle, "Example:"} { // what it shows itself
		if before, own, found := strings.Cut(c.Description, title); found {
			c.Description = before
			if len(lines) > 0 {
				break
			}
			for line := range strings.Lines(strings.TrimSpace(own)) {
				lines = append(lines, strings.TrimSpace(line))
			}
			break
		}
	}
	if len(lines) == 0 {
		return
	}
	if c.Description = strings.TrimRight(c.Description, "\n"); c.Description != "" {
		c.Description += "\n\n"
	}
	c.Description += exampleTitle + "\n  " + strings.Join(lines, "\n  ")
}

// exampleTitle stands before the examples in a verb's help, which are indented.
const exampleTitle = "Examples:"
