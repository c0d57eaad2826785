package main

import (
	"fmt"
	"io"
	"math"
	"time"

	"github.com/schollz/progressbar/v3"

	"kms-plugin.io/internal/rotation"
)

// lineEvery is how often a log may get a line about work that goes on.
const lineEvery = 15 * time.Second

// progress is a bar on a terminal. Elsewhere it is a line now and then for work that
// says what it counts, and nothing for other work.
type progress struct {
	w    io.Writer
	work rotation.Work
	tty  bool
	bar  *progressbar.ProgressBar
	done int64

	// Of lines: when the last one was due, or the work began, and what was done then.
	at    time.Time
	since int64
}

func newProgress(w io.Writer, what string) *progress {
	return &progress{w: w, work: rotation.Work{Name: what}, tty: terminalWidth(w) > 0}
}

// show is set for the work that goes on now.
func (p *progress) show(work rotation.Work, done, total int64) {
	if p.work != work {
		p.end()
		p.work, p.at = work, time.Time{}
	}
	p.set(done, total)
}

// set tells how much is done; less than before means that the work began anew.
func (p *progress) set(done, total int64) {
	again := done < p.done
	p.done, total = done, max(done, total) // more may have come than there was at first
	switch {
	case p.tty:
		p.draw(again, done, total)
	case again || p.at.IsZero():
		p.at, p.since = time.Now(), done
	case p.work.Things != "":
		p.line(done, total)
	}
}

func (p *progress) draw(again bool, done, total int64) {
	if again || p.bar != nil && p.bar.IsFinished() && done < total {
		p.end()
	}
	switch {
	case p.bar == nil:
		options := []progressbar.Option{progressbar.OptionSetWriter(p.w), progressbar.OptionSetDescription(p.work.Name),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionThrottle(100 * time.Millisecond),
			progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth()}
		if p.work.Things != "" {
			options = append(options, progressbar.OptionSetItsString(p.work.Things))
		}
		p.bar = progressbar.NewOptions64(total, options...)
	case p.bar.GetMax64() != total:
		p.bar.ChangeMax64(total)
	}
	_ = p.bar.Set64(min(done, total))
}

// line prints at most every lineEvery, with the rate since the last time.
func (p *progress) line(done, total int64) {
	gone := time.Since(p.at)
	if gone < lineEvery {
		return
	}
	rate := float64(done-p.since) / gone.Seconds()
	p.at, p.since = time.Now(), done
	text := fmt.Sprintf("%s: %d of %d %s %s", p.work.Name, done, total, p.work.Things, p.work.Done)
	if rate > 0 {
		text += fmt.Sprintf(", %s/s, about %s left", short(rate), roughly(float64(total-done)/rate))
	}
	fmt.Fprintln(p.w, text)
}

func short(rate float64) string {
	if rate < 10 {
		return fmt.Sprintf("%.1f", rate)
	}
	return fmt.Sprintf("%.0f", rate)
}

// roughly is a time that nobody knows exactly.
func roughly(seconds float64) string {
	switch {
	case seconds < 2*60:
		return fmt.Sprintf("%.0f s", math.Ceil(seconds))
	case seconds < 2*60*60:
		return fmt.Sprintf("%.0f min", seconds/60)
	}
	return fmt.Sprintf("%.0f h", seconds/60/60)
}

// say prints a line that stays.
func (p *progress) say(format string, args ...any) {
	if p.bar != nil {
		_ = p.bar.Clear() // it is drawn again below the line
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
}
