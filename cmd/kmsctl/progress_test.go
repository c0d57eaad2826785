package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"kms-plugin.io/internal/rotation"
	"kms-plugin.io/test/lack"
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
		lack.Skip(t, "no pseudoterminals here: %v", err)
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

// The bar says what goes on and what is counted, also when the work changes, more turns
// up than was known, or there is less to do than a moment ago.
func TestProgressOfRotation(t *testing.T) {
	tty, seen := terminal(t)
	p := newProgress(tty, "reading etcd")
	done, total, work := int64(0), int64(50_000), rotation.Reencrypting
	more := func() { done += 5; p.show(work, done, total) }
	p.show(rotation.Reading, 0, 1_000)
	seen.until(t, "reading etcd", func() {})
	p.show(work, 0, 50_000)
	seen.until(t, "re-encrypting", more)
	seen.until(t, "objects/s", more)
	seen.until(t, "/50000", more)
	total = 60_000
	seen.until(t, "/60000", more)
	work, done = rotation.Proving, 0
	seen.until(t, "proving", more)
	seen.until(t, "keys/s", more)
	bar := p.bar
	p.say("a line")
	seen.until(t, "a line\r\n", func() {})
	if more(); p.bar != bar {
		t.Error("a line made the bar forget when the work began")
	}
	if p.show(work, 0, total); p.bar == bar {
		t.Error("work that began anew goes on in the old bar")
	}
	p.show(rotation.Reencrypting, 3, 3)
	p.show(rotation.Reencrypting, 3, 77_777)
	seen.until(t, "/77777", func() { p.show(rotation.Reencrypting, 4, 77_777) })
	p.end()
}

// A log gets a line every 15 s at most, with the rate since the last one, and none of
// work that ends sooner.
func TestProgressInALog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := newProgress(&log, "reading etcd")
		goOn := func(seconds int, work rotation.Work, from, rate, total int64) (done int64) {
			for i := range seconds {
				p.show(work, from+int64(i)*rate, total)
				time.Sleep(time.Second)
			}
			return from + int64(seconds)*rate
		}
		goOn(40, rotation.Work{Name: "reading etcd"}, 0, 1_000, 40_000) // other commands
		goOn(14, rotation.Reading, 0, 0, 60)
		done := goOn(20, rotation.Reencrypting, 0, 100, 5_000)
		p.say("revision %d was compacted away", 7)
		done = goOn(15, rotation.Reencrypting, done, 0, 5_000)
		done = goOn(20, rotation.Reencrypting, done, 0, 5_000)
		goOn(16, rotation.Reencrypting, done, 1, 500_000)
		goOn(14, rotation.Reencrypting, 0, 100, 1_000) // the next round
		goOn(20, rotation.Proving, 0, 10, 10_000)
		goOn(16, rotation.Reading, 0, 10, 100) // more came meanwhile
		p.end()
		want := `re-encrypting: 1500 of 5000 objects written again, 100/s, about 35 s left
revision 7 was compacted away
re-encrypting: 2000 of 5000 objects written again, 33/s, about 90 s left
re-encrypting: 2000 of 5000 objects written again
re-encrypting: 2005 of 500000 objects written again, 0.3/s, about 415 h left
proving: 150 of 10000 keys read, 10/s, about 16 min left
reading etcd: 150 of 150 keys read, 10/s, about 0 s left
`
		if log.String() != want {
			t.Errorf("the log is\n%s, want\n%s", log.String(), want)
		}
	})
}
