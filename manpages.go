package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"ampcio/admin"
)

// exitCodes says what each exit code means.
var exitCodes = []struct {
	code int
	says string
}{
	{0, "All is well."},
	{exitFailed, "You said no, explain --expect found a difference, or something failed; the message says what."},
	{exitUnbalanced, "audit: the books do not balance."},
	{exitUsage, "Wrong usage."},
	{exitData, "What was asked for cannot be, as things are."},
	{exitUnconfigured, "serve: the configuration is the example, as it was installed. The unit does not start it again until it is filled in and you do."},
	{exitUnavailable, "Not available: an address in use, Customer.io or the daemon not to be reached."},
	{exitCantCreate, "The storage folder cannot be created or written."},
	{exitIO, "The disk failed: what it holds is unknown until the next start looks; systemd starts it again."},
	{exitTemporary, "Another ampcio uses the storage folder, or this one is starting or stopping, or you ended it: the same command goes on in a moment."},
	{exitConfig, "The configuration is wrong; the message says where."},
}

func manAmpcio(a *cli.App) string {
	r := newRoff("ampcio", 8, a.Usage)
	r.section("Synopsis")
	r.asIs([]string{"ampcio COMMAND [FLAGS] [ARGUMENTS]", "ampcio COMMAND --help"})
	r.section("Description")
	r.text(`Amplitude's SDKs send ampcio events and user updates; it writes them to disk, answers, and streams them to Customer.io, in order for each user.
Nothing is lost and nothing comes twice, through crashes, restarts and outages of any length: an answer of 200 means that the events are on stable storage.

    Amplitude SDKs --HTTP--> ampcio --> disk --> rules --> Customer.io

It is configured by one file, ampcio.toml(5), in which four values have to be filled in, and run by systemd. What waits, and why: ampcio-queue-stats(8).`)
	r.section("First steps")
	r.asIs([]string{
		"sudoedit /etc/ampcio/config.toml           # the four values marked 1 to 4",
		"sudo install -m 0600 /dev/null /etc/ampcio/customerio_api_key",
		"sudoedit /etc/ampcio/customerio_api_key    # Customer.io's Track API key, nothing else",
		"sudo ampcio check-config --online",
		"sudo systemctl start ampcio",
		"sudo ampcio send-test",
	})
	r.section("Commands")
	r.text(`Every command that needs the configuration takes --config FILE, else $AMPCIO_CONFIG, else /etc/ampcio/config.toml. Commands work while the daemon runs, by asking it through its admin socket, and
when it is stopped. Members of the socket's group (ampcio) may do all of this while it runs; root may always. Flags may stand before or behind the arguments.`)
	for _, c := range a.Commands {
		manVerb(r, c, "ampcio "+c.Name)
	}
	r.section("Exit status")
	for _, e := range exitCodes {
		r.item(fmt.Sprint(e.code), e.says)
	}
	r.section("Environment")
	r.item("AMPCIO_CONFIG", "The configuration file, where --config is not given.")
	r.item("AMPCIO_SYNC_NAME_API_KEY", "The Track API key of sync NAME (in capitals, - as _), instead of api_key_file.")
	r.item("CREDENTIALS_DIRECTORY", "Set by systemd: where a relative api_key_file is looked for.")
	r.item("NO_COLOR", "When it is set and not empty, no colours at a terminal.")
	r.section("Signals")
	r.item("SIGTERM, SIGINT", "End: requests that have come are answered, what is in flight to Customer.io may finish, within 20 seconds. The second one ends it at once. Nothing that was answered is lost either way.")
	r.item("SIGHUP", "Read the configuration again, as ampcio reload does; with a mistake in it the old one stays.")
	r.section("Files")
	r.item("/etc/ampcio/config.toml", "The configuration, readable for the group ampcio.")
	r.item("/etc/ampcio/customerio_api_key", "The secret Track API key, root's; systemd hands it to the service.")
	r.item("/var/lib/ampcio", "The queue. Removing the package keeps it.")
	r.item("/run/ampcio/admin.sock", "The admin socket.")
	r.item("/usr/share/doc/ampcio", "README.md and the guides.")
	r.section("The package")
	r.text(`Installing enables ampcio.socket and ampcio.service, and starts them once check-config passes. systemd holds the listening socket, so an upgrade refuses no connection: it restarts the service if it ran, and only
if the new version takes the configuration. Removing stops it and keeps configuration and queue. Purging deletes both, unless something waits in the queue or is a dead letter:
that is kept, and said, unless the environment has AMPCIO_PURGE_QUEUE=yes.`)
	r.section("Licence")
	r.text(`The owner of ampcio has chosen no licence for it yet. Those of the modules that are linked into it are in /usr/share/doc/ampcio/NOTICE.`)
	r.section("See also")
	r.text(`ampcio.toml(5), ampcio-queue-stats(8), systemctl(1), journalctl(1)`)
	return r.String()
}

func manConfig(*cli.App) string {
	r := newRoff("ampcio.toml", 5, "the configuration of ampcio")
	r.section("Synopsis")
	r.asIs([]string{"/etc/ampcio/config.toml"})
	r.section("Description")
	r.text(`One file in TOML holds everything. ampcio check-config names every mistake with its line; a key that is not known is one. ampcio reload, or systemctl reload ampcio, puts all of a changed file in force, or nothing.
server.listen, server.admin, server.socket, storage.dir and log.format need a restart; reload says so.

Durations are written "500ms", "30s", "72h", "90d"; sizes "128MiB", "20GiB", "512MB". TOML knows each table only once.

These have to be filled in: amplitude_api_keys, region, site_id, and the file that api_key_file names. And events are sent only where a [[sync.NAME.select]] says so.`)
	r.section("Tables and keys")
	r.text(`With the value that stands in the example, or the default. app and production are names that you choose; names of syncs match [a-z0-9_-]{1,32}, and there may be several of each.`)
	for _, t := range configTables(configExample) {
		r.part(t.name)
		if t.says != "" {
			r.text(sentence(t.says))
		}
		for _, k := range t.keys {
			r.item(k.name+" = "+k.value, sentence(k.says))
		}
	}
	r.section("Selecting events")
	r.text(`The first [[sync.NAME.select]] whose event and all where lines match decides; no match means not sent. To leave something out, put a rule with action = "drop" before the one that would send it.

A path is event.NAME, user.NAME, or a built-in: user_id device_id event_type platform os device country region city language app_version library session_id price quantity revenue currency productId insert_id. What follows the first dot is the name of the property as it is.

Operators: is, is not, contains, does not contain, <, <=, >, >=, glob match, regex match, is set, is not set. A list as the value means any of these.`)
	r.section("Keys and secrets")
	r.text(`api_key_file is looked for in $CREDENTIALS_DIRECTORY when that is set, as systemd does for LoadCredential=, else beside the configuration file. For the key of a second workspace:
systemctl edit ampcio, [Service], LoadCredential=NAME:/etc/ampcio/NAME, and api_key_file = "NAME".`)
	r.section("Files")
	r.item("/usr/share/doc/ampcio/examples/config.toml", "The example: every key, with its default.")
	r.section("See also")
	r.text("ampcio(8), ampcio-queue-stats(8)")
	return r.String()
}

// statuses says of every status of a sync what it means and what to do.
var statuses = []struct{ word, means, do string }{
	{admin.StatusOK, "All is well.", ""},
	{admin.StatusChecking, "Region and credentials are being confirmed.", "Wait some seconds."},
	{admin.StatusUnreachable, "Customer.io does not answer, or with errors; one user at a time is tried.", "Nothing: it goes on by itself, in order. Or at once: ampcio sync retry NAME."},
	{admin.StatusBlocked, "Customer.io refuses key or region, or the keys are another workspace's. Nothing is lost.", "The line \"to do\" says what; then systemctl restart ampcio."},
	{admin.StatusDryRun, "dry_run = true: everything but sending.", "ampcio dry-run report."},
	{admin.StatusPaused, "An operator holds it, over restarts too.", "ampcio sync resume NAME."},
	{admin.StatusDisabled, "enabled = false: new events are not taken, what is pending is held.", "Enable it to go on."},
	{admin.StatusOrphaned, "The sync is gone from the configuration; its pending events are kept.", "Put it back, or ampcio sync rename, or ampcio sync remove."},
	{admin.StatusStopped, "The daemon does not run; this was read from its files.", "systemctl start ampcio."},
}

func manQueueStats(a *cli.App) string {
	c := a.Command("queue-stats")
	r := newRoff("ampcio-queue-stats", 8, c.Usage)
	r.section("Synopsis")
	manUsage(r, c, "ampcio queue-stats")
	r.section("Description")
	r.text(c.Description)
	r.text(`Read the second column, then the lines "to do". A row relay.NAME is the relay of that project to Amplitude.`)
	r.section("Options")
	r.item("--config FILE", "The configuration (default: /etc/ampcio/config.toml) [$AMPCIO_CONFIG]. With a mistake in it the daemon that runs is asked all the same.")
	manFlags(r, c.Flags)
	r.section("Status")
	for _, s := range statuses {
		r.item(s.word, strings.TrimSpace(s.means+" "+s.do))
	}
	r.section("What it shows")
	r.item("aside", "Users who wait by themselves: what is sent for them fails, or they have more waiting than a sync reads ahead. They hold up nobody, and go on in their own order.")
	r.item("not sent", "Why events and user updates were filtered, with a count and an example.")
	r.item("refused", "Which requests were turned away, and from where.")
	r.item("books", "The account of every record ever taken: taken (+ rewound) = delivered + filtered + dead + discarded + lost + pending. If it is ever not balanced, tell us; ampcio audit reads the disk and says the exact difference.")
	r.section("For machines")
	r.text(`--json prints one object: times as RFC 3339, ages in seconds and sizes in bytes as integers, null for what is unknown. Members may be added: ignore those that you do not know. Users are shown as a short hash that is the same for as long as the storage folder lives.`)
	r.section("Files")
	r.item("/run/ampcio/admin.sock", "Where the daemon is asked; members of the group ampcio may.")
	r.item("/var/lib/ampcio", "What is read when it is stopped.")
	r.section("See also")
	r.text("ampcio(8), ampcio.toml(5)")
	return r.String()
}
