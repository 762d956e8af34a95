// Package cli is the command line of extip but for `extip serve`: it asks the
// plugin over its control API, and the engine for the names of containers and
// networks. The plugin itself never asks for them: the engine may be waiting
// for it.
//
// Each verb is a file of its own, and a line in verbs.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
)

// AdminSocket is where the control API is, unless told otherwise.
const AdminSocket = "/run/extip/admin.sock"

// Groups of verbs in the help.
const (
	groupLook   = "look"
	groupChange = "change"
)

// An app is the command line's one run.
type app struct {
	version string
	// What flags say.
	adminSocket, engineSocket string
	json, quiet, dryRun       bool
	network                   string
	// Where answers come from; tests have their own.
	plugin *admin.Client
	engine engine
	now    func() time.Time
	// patience ends questions that are asked by the way: for names, and by
	// shells.
	patience time.Duration
	// width is of the terminal, in columns; 0 if the output is none, and
	// lines may have any. color tells whether to use it.
	width int
	color bool
}

// New returns the command extip with all verbs but serve.
func New(version string) *cobra.Command {
	return newCommand(&app{version: version, now: time.Now, patience: patience})
}

func newCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "extip",
		Short: "External IP addresses for Docker containers",
		Long: `External IP addresses for Docker containers: the plugin is "extip serve", and
everything else asks it, or has it change things while containers run.

Exit codes: 0 all is well; 1 it failed, or a difference was found; 2 the command
line is wrong; 3 the plugin can't be reached.`,
		Example: `  extip status
  extip attach web
  extip move 203.0.113.56 web-new --drain`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       a.version,
		// How many letters may be wrong of a word that is no verb.
		SuggestionsMinimumDistance: 2,
		Args:                       a.noVerb,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddGroup(&cobra.Group{ID: groupLook, Title: "Verbs that look:"}, &cobra.Group{ID: groupChange, Title: "Verbs that change:"})
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%v", err) })
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(a.verbs()...)
	root.SetOut(os.Stdout)
	return root
}

// verbs are in the order of the help.
func (a *app) verbs() []*cobra.Command {
	look := []*cobra.Command{
		a.status(),
		a.show(),
		a.networks(),
		a.reservations(),
		a.hosts(),
		a.rules(),
		a.check(),
		a.doctor(),
		a.trace(),
		a.export(),
		a.events(),
		a.about(),
	}
	change := []*cobra.Command{
		a.attach(),
		a.detach(),
		a.move(),
		a.ports(),
		a.allow(),
		a.limit(),
		a.reserve(),
		a.unreserve(),
		a.adopt(),
		a.reconcile(),
	}
	for _, cmd := range look {
		cmd.GroupID = groupLook
	}
	for _, cmd := range change {
		cmd.GroupID = groupChange
		f := cmd.Flags()
		f.BoolVar(&a.dryRun, "dry-run", false, "say what would be done, and do nothing")
		f.BoolVarP(&a.quiet, "quiet", "q", false, "print nothing but errors")
	}
	all := append(look, change...)
	for _, cmd := range all {
		f := cmd.Flags()
		f.BoolVar(&a.json, "json", false, "print JSON, for programs")
		f.StringVar(&a.adminSocket, "admin-socket", os.Getenv("EXTIP_ADMIN_SOCKET"), "the plugin's control API (default "+AdminSocket+")")
		f.StringVar(&a.engineSocket, "engine-socket", os.Getenv("EXTIP_ENGINE_SOCKET"), "the engine's API, asked for names (default DOCKER_HOST or /run/docker.sock)")
		for _, name := range []string{"admin-socket", "engine-socket"} {
			_ = cmd.MarkFlagFilename(name)
		}
		// Said in the text, so that the help is the same whatever is set.
		f.Lookup("admin-socket").DefValue, f.Lookup("engine-socket").DefValue = "", ""
		cmd.PreRun = func(cmd *cobra.Command, _ []string) { a.prepare(cmd.OutOrStdout()) }
	}
	return all
}

// prepare opens what flags say.
func (a *app) prepare(out io.Writer) {
	if a.plugin == nil {
		a.plugin = admin.NewClient(socketOf(a.adminSocket))
	}
	if a.engine == nil {
		a.engine = newDocker(a.engineSocket)
	}
	if f, ok := out.(*os.File); ok && a.width == 0 {
		a.width = terminalWidth(f)
		a.color = a.width > 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
}

// socketOf is the control API's path: where it was said to be, or usually is,
// or where the engine has that of a managed plugin.
func socketOf(said string) string {
	if said != "" {
		return said
	}
	if _, err := os.Stat(AdminSocket); err != nil {
		if managed, _ := filepath.Glob("/run/docker/plugins/*/admin.sock"); len(managed) == 1 {
			return managed[0]
		}
	}
	return AdminSocket
}

// noVerb refuses words that are no verb, and says which one may be meant.
func (a *app) noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		return usage(cmd, "unknown verb %q; is it %q?", args[0], like[0])
	}
	return usage(cmd, "unknown verb %q", args[0])
}

// print writes v as JSON if that was asked for, or else what text does.
func (a *app) print(cmd *cobra.Command, v any, text func(io.Writer)) error {
	out := cmd.OutOrStdout()
	if a.json {
		return writeJSON(out, v)
	}
	if !a.quiet {
		text(out)
	}
	return nil
}

// words wants between min and max arguments; max is -1 for any number. Their
// names are those of the verb's line of use.
func words(min, max int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < min:
			return usage(cmd, "%s is missing", strings.Fields(cmd.Use)[1+len(args)])
		case max >= 0 && len(args) > max:
			return usage(cmd, "%q is too much", args[max])
		}
		return nil
	}
}

// patience is the program's: nobody is to wait for an engine that hangs.
const patience = 2 * time.Second

func (a *app) briefly(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background() // a shell's completion has none
	}
	return context.WithTimeout(ctx, a.patience)
}

func short(id string) string { return id[:min(len(id), 12)] }

// age is how long something has been, in two to four characters.
func (a *app) age(since time.Time) string {
	if since.IsZero() {
		return "-"
	}
	d := max(a.now().Sub(since), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}
