package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"ampcio/config"
)

func userCommand() *cli.Command {
	device := &cli.BoolFlag{Name: "device", Usage: "U is a device_id"}
	project := &cli.StringFlag{Name: "project", Usage: "in the project `P`; may be left out when there is only one"}
	ids := &cli.BoolFlag{Name: "show-ids", Usage: "show ids and values of properties, instead of hashes and kinds"}
	return &cli.Command{
		Name: "user", Usage: "see what is known of a person, or forget them",
		UsageText:   "ampcio user show|forget U",
		Description: "U is a user_id, or the hash that lists show for it.",
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "properties, devices, what Customer.io was sent, what is pending",
				UsageText:   "ampcio user show U [--device] [--project P] [--show-ids] [--json]",
				Description: "Nothing is changed, and deliveries go on.",
				Flags:       []cli.Flag{configFlag, device, project, ids, jsonFlag}, Action: showUserAction,
			},
			{
				Name: "forget", Usage: "forget a person: here, not at Amplitude or Customer.io",
				UsageText: "ampcio user forget U [--device] [--project P] [--dry-run] [--yes] [--json]",
				Description: "At once: properties, device links and insert_ids, what each sync's identifiers of them were last sent, what is pending, and\n" +
					"dead letters. What is pending counts as discarded (forgotten) in the books. What is on its way to Customer.io is waited\n" +
					"for. Their requests are erased from the files of dry runs. Their records in the log are never read again, also by a rewind,\n" +
					"and are erased when their file is deleted.\n" +
					"What comes in afterwards is of somebody new. An SDK that repeats an event from before is taken for new, too.\n" +
					"It does not reach: Amplitude, Customer.io (delete the person there), backups, damaged files that were put aside.",
				Flags: []cli.Flag{configFlag, device, project, ids, dryRunFlag, yesFlag, jsonFlag}, Action: forgetUserAction,
			},
		},
	}
}

func askAboutUser(c *cli.Context) (*operator, aboutUser, error) {
	o, args, err := named(c, "U")
	if err != nil {
		return nil, aboutUser{}, err
	}
	if args[0] == "" {
		return nil, aboutUser{}, exit(exitUsage, errors.New("an empty id is nobody's"))
	}
	return o, aboutUser{Project: c.String("project"), ID: args[0], IsDevice: c.Bool("device"), ShowIDs: c.Bool("show-ids"), DryRun: c.Bool("dry-run")}, nil
}

func showUserAction(c *cli.Context) error {
	o, asked, err := askAboutUser(c)
	if err != nil {
		return err
	}
	s, err := doOne[shownUser](c.Context, o, "user-show", asked)
	if err != nil {
		return err
	}
	return shown(c, s, func(w io.Writer) { s.write(w, asked.ShowIDs) })
}

// writeProperties says whether there are any.
func (s *shownUser) writeProperties(w io.Writer, title string, object json.RawMessage, values bool) bool {
	var properties map[string]json.RawMessage
	_ = json.Unmarshal(object, &properties) // an object, as it was stored
	if len(properties) == 0 {
		return false
	}
	fmt.Fprintf(w, "  %s\n", title)
	for _, name := range sortedKeys(properties) {
		value := string(properties[name])
		if !values {
			value = strings.Trim(value, `"`)
		}
		fmt.Fprintf(w, "    %-24s %s\n", clipText(name, 60), clipText(value, 200))
	}
	return true
}

func (s *shownUser) write(w io.Writer, values bool) {
	fmt.Fprintf(w, "%s %s in project %s\n", s.Kind, s.ID, s.Project)
	if s.Forgotten != nil {
		fmt.Fprintf(w, "  somebody of this id was forgotten at %s; what follows is since then. %s in the log until their file goes.\n",
			clock(*s.Forgotten), counted(s.ErasedWith, "record of them is", "records of them are"))
	}
	if s.Behind > 0 {
		fmt.Fprintf(w, "  ampcio was killed: what %s did is not taken up before it starts again\n", records(s.Behind))
	}
	if !s.Known {
		fmt.Fprintln(w, "  nothing is known, and nothing is kept")
		return
	}
	if s.User != "" {
		fmt.Fprintf(w, "  linked to user %s, whose properties these are\n", s.User)
	}
	some := s.writeProperties(w, "properties", s.Properties, values)
	if !some {
		fmt.Fprintln(w, "  no properties")
	}
	some = s.writeProperties(w, "built-in properties", s.Builtins, values) || some
	if !values && some {
		fmt.Fprintln(w, "    (values: --show-ids)")
	}
	if s.Kind == "user" {
		fmt.Fprintf(w, "  %s", counted(uint64(len(s.Devices)), "linked device", "linked devices"))
		for i, d := range s.Devices {
			if i == 20 {
				fmt.Fprint(w, " … (all: --json)")
				break
			}
			fmt.Fprintf(w, " %s", clipText(d, 60))
		}
		fmt.Fprintln(w)
	}
	if s.Changed != nil && s.Changed.Unix() > 0 {
		fmt.Fprintf(w, "  last change in the hour of %s\n", clock(*s.Changed))
	}
	if s.Last != nil {
		fmt.Fprintf(w, "  %s in the log, received from %s to %s\n", records(s.Records), clock(*s.First), clock(*s.Last))
	} else {
		fmt.Fprintln(w, "  no records in the log")
	}
	for _, y := range s.Syncs {
		fmt.Fprintf(w, "  %s: %s pending", y.Sync, many(y.Pending))
		if y.Aside > 0 {
			fmt.Fprintf(w, " (%s in the side place)", many(y.Aside))
		}
		fmt.Fprintf(w, ", %s\n", letters(y.DeadLetters))
		if y.Failed > 0 && y.Next != nil {
			fmt.Fprintf(w, "    waits after %s: %s; next try at %s\n", counted(uint64(y.Failed), "failed try", "failed tries"), y.Reason, clock(*y.Next))
		}
		for _, id := range y.Identifiers {
			sent := "was sent nothing, as far as is known"
			if id.Sent != nil {
				sent = "last identified at " + clock(*id.Sent)
				if len(id.Has) > 0 {
					sent += " with " + clipText(strings.Join(id.Has, ", "), 200)
				}
				if len(id.Refused) > 0 {
					sent += "; Customer.io refused " + clipText(strings.Join(id.Refused, ", "), 200)
				}
			}
			fmt.Fprintf(w, "    %s %s\n", clipText(id.ID, 160), sent)
		}
	}
}

func forgetUserAction(c *cli.Context) error {
	o, asked, err := askAboutUser(c)
	if err != nil {
		return err
	}
	if !asked.DryRun && !c.Bool("yes") {
		would := asked
		would.DryRun = true
		f, err := doOne[forgottenUser](c.Context, o, "user-forget", would)
		if err != nil {
			return err
		}
		f.write(c.App.ErrWriter)
		if err := confirm(c, "Forget this person?"); err != nil {
			return err
		}
	}
	f, err := doOne[forgottenUser](c.Context, o, "user-forget", asked)
	if err != nil {
		return err
	}
	return shown(c, f, f.write)
}

func (f *forgottenUser) write(w io.Writer) {
	is, were := "is forgotten", "discarded"
	if f.DryRun {
		is, were = "would be forgotten", "would be discarded"
	}
	fmt.Fprintf(w, "%s %s in project %s %s: %s, %s, %s in the log.\n", f.Kind, f.ID, f.Project, is,
		counted(uint64(f.Properties), "property", "properties"), counted(uint64(f.Devices), "linked device", "linked devices"), records(f.Records))
	if !f.Known {
		fmt.Fprintln(w, "Nothing was known of them: is the id right?")
	}
	for _, y := range f.Syncs {
		fmt.Fprintf(w, "  %s: %s pending and %s %s; what was last sent, of %s\n", y.Sync, many(y.Pending), letters(y.DeadLetters), were,
			counted(uint64(y.Sent), "identifier", "identifiers"))
	}
	if f.DryRuns > 0 {
		fmt.Fprintf(w, "  dry runs: %s erased from their files; what was counted stays counted\n", counted(uint64(f.DryRuns), "operation", "operations"))
	}
	if f.Finished > 0 {
		fmt.Fprintf(w, "Finished, too: %s whom a crash or an error had left half forgotten.\n", counted(uint64(f.Finished), "person", "people"))
	}
	if f.Records > 0 {
		fmt.Fprintf(w, "Their records in the log are not read any more. They are erased from disk with their file: at the latest %s after every sync is\ndone with all that is in it (storage.rotate_after %s, then keep %s).\n",
			humanizeSeconds(f.RotateAfter+f.Keep), humanizeSeconds(f.RotateAfter), humanizeSeconds(f.Keep))
	}
	for _, r := range f.Remains {
		fmt.Fprintf(w, "Old bytes may stand for longer in %s.\n", r)
	}
	fmt.Fprintln(w, "ampcio cannot reach: Amplitude (its User Privacy API), Customer.io (delete the person there, after this), your backups.")
}

func humanizeSeconds(s int64) string {
	d := time.Duration(s) * time.Second
	if d > 0 && d%time.Hour == 0 {
		return humanize.Comma(int64(d/time.Hour)) + " h"
	}
	return config.Duration(d).String()
}
