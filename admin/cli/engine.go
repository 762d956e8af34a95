package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// engine is asked for names.
type engine interface {
	// Networks are the names of all networks, by id.
	Networks(context.Context) (map[string]string, error)
	// Containers are all that run, by their names.
	Containers(context.Context) ([]container, error)
	// Container finds one by its name or id, or a unique beginning of that.
	Container(context.Context, string) (container, error)
}

// container is one as the engine knows it.
type container struct {
	name string
	// endpoints are those of its networks, by network id; a container that
	// doesn't run has none.
	endpoints map[string]string
}

// docker asks an engine by its official client, which speaks to engines from
// 19.03 on.
type docker struct {
	client *client.Client
	err    error
}

// newDocker returns a docker for a socket, or for where DOCKER_HOST says. An
// error is kept for the one who asks.
func newDocker(socket string) *docker {
	host := client.WithHostFromEnv()
	switch {
	case socket != "":
		host = client.WithHost("unix://" + socket)
	case os.Getenv("DOCKER_HOST") == "":
		host = client.WithHost("unix:///run/docker.sock")
	}
	c, err := client.New(host, client.WithTLSClientConfigFromEnv())
	return &docker{c, err}
}

func (d *docker) Networks(ctx context.Context) (map[string]string, error) {
	if d.err != nil {
		return nil, d.err
	}
	list, err := d.client.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, n := range list.Items {
		names[n.ID] = n.Name
	}
	return names, nil
}

func (d *docker) Containers(ctx context.Context) ([]container, error) {
	if d.err != nil {
		return nil, d.err
	}
	list, err := d.client.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, err
	}
	var all []container
	for _, c := range list.Items {
		// Names with another slash are links'.
		i := slices.IndexFunc(c.Names, func(name string) bool { return strings.LastIndex(name, "/") <= 0 })
		if i >= 0 && c.NetworkSettings != nil {
			all = append(all, container{strings.TrimPrefix(c.Names[i], "/"), endpoints(c.NetworkSettings.Networks)})
		}
	}
	slices.SortFunc(all, func(a, b container) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

func (d *docker) Container(ctx context.Context, name string) (container, error) {
	if d.err != nil {
		return container{}, d.err
	}
	answer, err := d.client.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return container{}, errors.New("the engine has no such container")
	}
	if err != nil {
		return container{}, err
	}
	c := container{name: strings.TrimPrefix(answer.Container.Name, "/")}
	if answer.Container.NetworkSettings != nil {
		c.endpoints = endpoints(answer.Container.NetworkSettings.Networks)
	}
	return c, nil
}

// endpoints are those of a container that runs, by network id.
func endpoints(settings map[string]*network.EndpointSettings) map[string]string {
	ids := map[string]string{}
	for _, e := range settings {
		if e != nil && e.EndpointID != "" {
			ids[e.NetworkID] = e.EndpointID
		}
	}
	return ids
}

// endpointOf resolves a CONTAINER argument to its endpoint on a network of the
// plugin's: on the one that --network names, if it is on several.
func (a *app) endpointOf(ctx context.Context, name string) (id string, err error) {
	c, err := a.engine.Container(ctx, name)
	if err != nil {
		return "", fmt.Errorf("container %q: %w", name, err)
	}
	networks, err := a.plugin.Networks(ctx)
	if err != nil {
		return "", err
	}
	names, _ := a.engine.Networks(ctx) // without them ids do
	var found []string
	for _, n := range networks {
		e, ok := c.endpoints[n.ID]
		title := nameOf(names, n.ID)
		if !ok || a.network != "" && a.network != title && !strings.HasPrefix(n.ID, a.network) {
			continue
		}
		found = append(found, title)
		id = e
	}
	switch {
	case len(found) == 1:
		return id, nil
	case len(found) > 1:
		slices.Sort(found)
		return "", &usageError{fmt.Sprintf("container %q is on several networks of extip: say --network, one of %s", c.name, strings.Join(found, ", "))}
	case len(c.endpoints) == 0:
		return "", fmt.Errorf("container %q doesn't run", c.name)
	case a.network != "":
		return "", fmt.Errorf("--network=%s: container %q is on no such network of extip", a.network, c.name)
	default:
		return "", fmt.Errorf("container %q is on no network of extip; docker network connect puts it on one", c.name)
	}
}

// nameOf is a network's name, or the beginning of its id if that isn't known.
func nameOf(names map[string]string, id string) string {
	if name := names[id]; name != "" {
		return name
	}
	return short(id)
}
