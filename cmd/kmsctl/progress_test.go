package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// screen is what a terminal was sent, and the keyboard before it.
type screen struct {
	keyboard *os.File
	mu       sync.Mutex
	b        bytes.Buffer
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// terminal is a pseudoterminal of 100 columns (pty(7)), and what is to be seen on it.
func terminal(t *testing.T) (*os.File, *screen) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudoterminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	s := &screen{keyboard: master}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.b.Write(b[:n])
			s.mu.Unlock()
		}
	}()
	return tty, s
}

func (s *screen) until(t *testing.T, text string, meanwhile func()) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(s.String(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the terminal does not show %q:\n%q", text, s.String())
		}
		meanwhile()
	}
}

// On a terminal there is a bar with the count, the rate and the time that is left, and
// lines that stay are whole; elsewhere there are lines alone.
func TestProgress(t *testing.T) {
	tty, seen := terminal(t)
	p := newProgress(tty, "reading")
	done := int64(0)
	more := func() { done += 5; p.set(min(done, 9_000), 10_000) }
	p.set(0, 10_000)
	seen.until(t, "it/s", more)
	seen.until(t, "/10000", more)
	seen.until(t, "s]", more) // [gone:left]
	p.say("starting again")
	seen.until(t, "starting again\r\n", func() {})
	if !strings.Contains(seen.String(), "reading") {
		t.Errorf("the bar does not say what is done:\n%q", seen.String())
	}
	p.set(10, 100)
	p.end()

	var file bytes.Buffer
	p = newProgress(&file, "reading")
	p.set(0, 10)
	p.set(5, 10)
	p.say("revision %d was compacted away", 7)
	p.end()
	if file.String() != "revision 7 was compacted away\n" {
		t.Errorf("a file gets %q", file.String())
	}
}
