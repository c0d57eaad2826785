package rotation

// Work is what a run has in hand while it counts: its name, what it counts, and what
// was done to that.
type Work struct{ Name, Things, Done string }

// The kinds of work.
var (
	Reading      = Work{"reading etcd", "keys", "read"}
	Reencrypting = Work{"re-encrypting", "objects", "written again"} // of those that are stale
	Proving      = Work{"proving", "keys", "read"}
)

func (o Options) progress(w Work, done, total int64) {
	if o.Progress != nil {
		o.Progress(w, done, total)
	}
}

// reading is Progress for a scan.
func (o Options) reading(w Work) func(done, total int64) {
	return func(done, total int64) { o.progress(w, done, total) }
}

// meet counts a stale object.
func (m *migration) meet() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.met++
}

// tell reports how many are written again of those that were counted, or of more if
// more turned up since. While none is known, tellRead reports how far it looked.
func (m *migration) tell() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if total := max(m.total, m.met); total > 0 {
		m.o.progress(Reencrypting, m.written.Load()-m.before, total)
	}
}

func (m *migration) tellRead(n, keys int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.total == 0 && m.met == 0 {
		m.o.progress(Reading, n, keys)
	}
}
