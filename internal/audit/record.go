package audit

import (
	"encoding/json"
	"strconv"
	"time"
)

// Record is one line. docs/audit.md describes the fields. Those from Lost on are
// set by Log.
type Record struct {
	Time      time.Time `json:"time"`
	Op        string    `json:"op"`
	UID       string    `json:"uid,omitempty"`
	KeyID     string    `json:"keyID,omitempty"`
	KEK       string    `json:"kek,omitempty"`
	LocalKEK  string    `json:"localKEK,omitempty"`
	RequestID string    `json:"requestID,omitempty"`
	Outcome   string    `json:"outcome"`
	Error     string    `json:"error,omitempty"`
	Lost      uint64    `json:"lost,omitempty"`
	Torn      string    `json:"torn,omitempty"`
	Chain     string    `json:"chain"`
	Seq       uint64    `json:"seq"`
	Prev      string    `json:"prev"`
}

// Ops of the records that the log makes of itself.
const (
	OpOpen = "open" // the log was opened: a start, or SIGHUP
	OpGap  = "gap"  // records were lost
)

// maxField bounds what a caller's uid or a cloud's message can add to a line, in
// bytes. Everything we make ourselves is shorter.
const maxField = 1 << 10

// append encodes a record as encoding/json would (a test compares them), without
// its cost: there is one for every call. It ends before "chain", which link adds.
func (r *Record) append(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = r.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendField(b, "op", r.Op, true)
	b = appendField(b, "uid", r.UID, false)
	b = appendField(b, "keyID", r.KeyID, false)
	b = appendField(b, "kek", r.KEK, false)
	b = appendField(b, "localKEK", r.LocalKEK, false)
	b = appendField(b, "requestID", r.RequestID, false)
	b = appendField(b, "outcome", r.Outcome, true)
	b = appendField(b, "error", r.Error, false)
	if r.Lost > 0 {
		b = strconv.AppendUint(append(b, `,"lost":`...), r.Lost, 10)
	}
	return appendField(b, "torn", r.Torn, false)
}

func appendField(b []byte, name, value string, always bool) []byte {
	if value == "" && !always {
		return b
	}
	if len(value) > maxField {
		value = value[:maxField] + "..."
	}
	b = append(append(append(b, ',', '"'), name...), '"', ':')
	if plain(value) {
		return append(append(append(b, '"'), value...), '"')
	}
	quoted, err := json.Marshal(value)
	if err != nil {
		quoted = []byte(`""`) // cannot happen: a string always encodes
	}
	return append(b, quoted...)
}

// plain strings need no escape in JSON.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}
