package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// patience is how long sockets may take to answer.
const patience = 3 * time.Second

// oldest is the oldest engine that is tested with, and clockSkew how far its
// clock may be off: its API's answers carry whole seconds.
const (
	oldest    = "20.10"
	clockSkew = 5 * time.Second
)

// engine: does its API answer, and what does it say?
func (x *exam) engine() []Finding {
	if x.Engine == "" {
		return nil
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", x.Engine)
		},
	}}
	req, err := http.NewRequestWithContext(x.ctx, http.MethodGet, "http://engine/version", nil)
	if err != nil {
		return []Finding{{Level: Fail, Seen: err.Error()}}
	}
	answer, err := client.Do(req)
	if err != nil {
		return []Finding{{Level: Fail, Seen: "the engine doesn't answer on " + x.Engine, Why: "containers' names are not known, nor which the engine has forgotten", Remedy: x.start("docker", "dockerd")}}
	}
	defer func() { _ = answer.Body.Close() }()
	var version struct{ Version string }
	if err := json.NewDecoder(answer.Body).Decode(&version); err != nil || answer.StatusCode != http.StatusOK {
		return []Finding{{Level: Fail, Seen: fmt.Sprintf("the engine answers %s on %s", answer.Status, x.Engine), Why: "that is no engine, or it is unwell", Remedy: x.restart("docker")}}
	}
	var found []Finding
	if older(version.Version, oldest) {
		found = append(found, Finding{Level: Warn, Seen: "the engine is version " + version.Version, Why: "extip is tested with " + oldest + " and later", Remedy: "docker version"})
	}
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		if skew := time.Since(date).Abs(); skew > clockSkew {
			found = append(found, Finding{Level: Warn, Seen: fmt.Sprintf("the engine's clock differs from this one by %s", skew.Round(time.Second)),
				Why: "ages and events are told wrongly", Remedy: "timedatectl set-ntp true"})
		}
	}
	return found
}

// older compares versions by their first two numbers.
func older(version, than string) bool {
	var a, b [2]int
	if _, err := fmt.Sscanf(version, "%d.%d", &a[0], &a[1]); err != nil {
		return false
	}
	_, _ = fmt.Sscanf(than, "%d.%d", &b[0], &b[1])
	return slices.Compare(a[:], b[:]) < 0
}

// plugin: can the engine reach it, and will it when the host boots?
func (x *exam) plugin() (found []Finding) {
	if x.Plugin == "" {
		return nil
	}
	c, err := net.DialTimeout("unix", x.Plugin, patience)
	if err != nil {
		found = append(found, Finding{Level: Fail, Seen: "nobody listens on " + x.Plugin, Why: "the engine can't start containers on extip's networks; what is there stays, but isn't repaired",
			Remedy: x.start("extip", "extip serve")})
	} else {
		_ = c.Close()
	}
	if !bySystemd() || x.systemctl("show", "-P", "LoadState", "extip.service") != "loaded" {
		return found
	}
	if state := x.systemctl("is-enabled", "extip.service"); state != "enabled" {
		found = append(found, Finding{Level: Warn, Seen: "extip.service is " + state, Why: "the plugin isn't started when the host boots", Remedy: "systemctl enable extip.service"})
	}
	before := strings.Fields(x.systemctl("show", "-P", "Before", "extip.service"))
	if !slices.Contains(before, "docker.service") && x.systemctl("show", "-P", "LoadState", "docker.service") == "loaded" {
		found = append(found, Finding{Level: Warn, Seen: "extip.service isn't started before docker.service", Why: "an engine that starts its containers without the plugin leaves them stopped",
			Remedy: `mkdir -p /etc/systemd/system/extip.service.d && printf '[Unit]\nBefore=docker.service\n' >/etc/systemd/system/extip.service.d/order.conf && systemctl daemon-reload`})
	}
	return found
}

// start is the command that starts a service, or else its program.
func (x *exam) start(service, program string) string {
	if bySystemd() {
		return "systemctl start " + service
	}
	return program
}

func (x *exam) restart(service string) string {
	if bySystemd() {
		return "systemctl restart " + service
	}
	return "docker version"
}

// bySystemd tells whether systemd runs this host (sd_booted(3)).
func bySystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// systemctl is what it prints, without its end; it says much by its exit status,
// too, which nobody needs.
func (x *exam) systemctl(args ...string) string {
	ctx, cancel := context.WithTimeout(x.ctx, patience)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "systemctl", args...).Output()
	return strings.TrimSpace(string(out))
}
