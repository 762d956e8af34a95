package e2e

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

// No image is pulled: they are made here, and loaded by `docker import`.
const (
	probeImage  = "probe"
	recipeImage = "recipe"
)

// build compiles a package of this module to a static program. Cleaned up at
// once: the labs keep copies.
func build(pkg string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "extip-e2e-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cmd := onMachine("go", "build", "-buildvcs=false", "-o", dir+"/program", pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return os.ReadFile(dir + "/program")
}

var (
	buildProbe = sync.OnceValues(func() ([]byte, error) { return build("./probe") })
	buildExtip = sync.OnceValues(func() ([]byte, error) { return build("github.com/extip/extip") })
	makeRecipe = sync.OnceValues(func() (string, error) { return cached("recipe", recipeCommand) })
)

func probeBinary(t testing.TB) []byte { return succeed(t, buildProbe) }
func extipBinary(t testing.TB) []byte { return succeed(t, buildExtip) }

func succeed[T any](t testing.TB, make func() (T, error)) T {
	t.Helper()
	v, err := make()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// onMachine prepares a program that runs in the machine's own namespaces, for
// what may need to download: the tests' network reaches nothing. The process
// that nettest.Main left behind to wait for us is still there.
func onMachine(args ...string) *exec.Cmd {
	wd, _ := os.Getwd() // another mount namespace, but the same disk
	enter := []string{"-t", fmt.Sprint(os.Getppid()), "-m", "-n", "--", "env", "--chdir=" + wd, "--"}
	return exec.Command("nsenter", append(enter, args...)...)
}

// importProbe loads the image that holds the probe and nothing else.
func (l *lab) importProbe() {
	l.t.Helper()
	program := probeBinary(l.t)
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Name: "probe", Mode: 0o755, Size: int64(len(program))}); err != nil {
		l.t.Fatal(err)
	}
	if _, err := w.Write(program); err != nil {
		l.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		l.t.Fatal(err)
	}
	cmd := l.command("docker", "import", "-", probeImage)
	cmd.Stdin = &image
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("import the probe: %v\n%s", err, out)
	}
}

// importRecipe loads an image with the real sshd and Apache of the distribution.
func (l *lab) importRecipe() {
	l.t.Helper()
	nettest.RequireTool(l.t, "mmdebstrap")
	l.docker("import", succeed(l.t, makeRecipe), recipeImage)
}

// recipeCommand makes the recipe's image, but for the names of the release and
// of its file.
var recipeCommand = []string{"mmdebstrap", "--quiet", "--variant=essential",
	"--include=openssh-server,apache2", "--dpkgopt=path-exclude=/usr/share/doc/*", "--format=tar"}

// cacheDir is where later runs find what takes long to get.
func cacheDir() string {
	return filepath.Join(cmp.Or(os.Getenv("XDG_CACHE_HOME"), "/var/cache"), "extip")
}

// cached returns the file that a command of mmdebstrap makes. That takes half a
// minute, so it is kept where later runs find it, named by what it is made of.
func cached(name string, command []string) (string, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(append(release, strings.Join(command, " ")...))
	file := filepath.Join(cacheDir(), fmt.Sprintf("%s-%x.tar", name, key[:6]))
	if exists(file) {
		return file, nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	codename := ""
	for line := range strings.Lines(string(release)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			codename = v
		}
	}
	partial := file + ".partial"
	for range 3 { // a mirror may have its moments
		var out []byte
		out, err = onMachine(append(command, codename, partial)...).CombinedOutput()
		if err == nil {
			return file, os.Rename(partial, file)
		}
		err = fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
	}
	return "", err
}
