// Probe is the one program of the containers in the end-to-end tests. It
// speaks the protocol of internal/nettest: a server answers with its own name
// and the address that it sees its caller by, so that one question proves
// both who answered and what NAT made of the caller.
package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

const usage = `usage:
  probe serve PORT...            answer on tcp and udp, named by the host name
  probe ask tcp|udp ADDR:PORT    print the answer
  probe sleep                    wait for SIGTERM
  probe init                     adopt and reap orphans until standard input ends
`

// patience is how long ask waits for an answer.
const patience = 30 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	verb := ""
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	switch {
	case verb == "serve" && len(args) > 0:
		return serve(args)
	case verb == "ask" && len(args) == 2:
		return ask(args[0], args[1])
	case verb == "sleep" && len(args) == 0:
		return untilTerminated()
	case verb == "init" && len(args) == 0:
		return reap()
	}
	fmt.Fprint(os.Stderr, usage)
	return fmt.Errorf("no such verb, or wrong arguments: %q", os.Args[1:])
}

// untilTerminated waits for the signal of `docker stop`, which the first
// process of a container gets only if it asks for it.
func untilTerminated() error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTERM)
	<-c
	return nil
}

func serve(ports []string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	for _, port := range ports {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		pc, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go serveTCP(name, l)
		go serveUDP(name, pc)
	}
	return untilTerminated()
}

func answer(name string, peer net.Addr) []byte {
	host := netip.MustParseAddrPort(peer.String()).Addr().Unmap()
	return fmt.Appendf(nil, "%s saw %s", name, host)
}

func serveTCP(name string, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write(answer(name, c.RemoteAddr()))
		_ = c.Close()
	}
}

func serveUDP(name string, pc net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		_, peer, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = pc.WriteTo(answer(name, peer), peer)
	}
}

func ask(network, addr string) error {
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
	}
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n", buf[:n])
	return nil
}

// reap is the first process of a process namespace. When its starter closes
// the other end of standard input, or dies, it ends, and the kernel ends
// everything else in the namespace.
func reap() error {
	go func() {
		for {
			_, err := os.Stdin.Read(make([]byte, 1))
			if err != nil {
				os.Exit(0)
			}
		}
	}()
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGCHLD)
	fmt.Println("ready")
	for range c {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}
