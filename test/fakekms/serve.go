package fakekms

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// failure is an error answer of KMS.
type failure struct {
	status     int
	code, text string
}

func refuse(code, text string) *failure { return &failure{http.StatusBadRequest, code, text} }

// input holds the fields of all operations.
type input struct {
	KeyId, SourceKeyId, DestinationKeyId string
	Plaintext, CiphertextBlob            []byte
	EncryptionContext                    map[string]string
	SourceEncryptionContext              map[string]string
	DestinationEncryptionContext         map[string]string
	DryRun                               bool
	DryRunModifiers                      []string
	NumberOfBytes                        int
	KeySpec                              string
	PendingWindowInDays                  int
	IncludeKeyMaterial                   string
}

// ServeHTTP implements http.Handler: the KMS API, the one operation of STS, and
// the credentials endpoint.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if name, ok := strings.CutPrefix(r.URL.Path, "/credentials/"); ok {
		s.credentials(w, name)
		return
	}
	w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
	op, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err == nil && strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		s.sts(w, r, body)
		return
	}
	var in input
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	if !ok || err != nil {
		writeFailure(w, "", refuse("SerializationException", "not a request of KMS"))
		return
	}
	s.call(w, r, op, in)
}

func (s *Server) call(w http.ResponseWriter, r *http.Request, op string, in input) {
	id := randomHex(16)
	s.mu.Lock()
	who, region, fail := s.caller(r)
	kind := in.EncryptionContext["kms-plugin-type"]
	s.count(op, kind, who)
	faults := s.due(op, region, in.KeyId, who, kind)
	if fail == nil && !s.quota.take() {
		fail = answerOf(Fault{Kind: Throttle})
	}
	s.mu.Unlock()
	defer s.done()
	out := map[string]any{}
	if fail == nil {
		for _, f := range faults {
			if !pause(r, f.Latency) {
				return
			}
		}
		fail = s.faulty(faults, func() *failure {
			s.mu.Lock()
			defer s.mu.Unlock()
			var e *failure
			out, e = s.operate(op, who, region, in)
			return e
		})
	}
	seen := Request{Op: op, KeyID: in.KeyId, Principal: who, RequestID: id, Context: in.EncryptionContext}
	if fail != nil {
		seen.Error = fail.code
	}
	s.record(seen)
	if s.strange(w, r, faults, out) {
		return
	}
	if fail != nil {
		writeFailure(w, id, fail)
		return
	}
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(out) // the client may be gone
}

// faulty runs an operation under faults: those that fail before keep it from
// being done, those that fail after only replace its answer.
func (s *Server) faulty(faults []Fault, do func() *failure) *failure {
	for _, f := range faults {
		if e := answerOf(f); e != nil && !f.AfterEffect {
			return e
		}
		if (f.Kind == Hang || f.Kind == Reset) && !f.AfterEffect {
			return &failure{}
		}
	}
	if e := do(); e != nil {
		return e
	}
	for _, f := range faults {
		if e := answerOf(f); e != nil {
			return e
		}
	}
	return nil
}

// strange gives the answers that are none of KMS.
func (s *Server) strange(w http.ResponseWriter, r *http.Request, faults []Fault, out map[string]any) bool {
	for _, f := range faults {
		switch f.Kind {
		case Hang:
			<-r.Context().Done()
			return true
		case Reset:
			if h, ok := w.(http.Hijacker); ok {
				if c, _, err := h.Hijack(); err == nil {
					resetConn(c)
				}
			}
			return true
		case Garbage:
			w.Header().Set("Content-Type", "application/x-amz-json-1.1")
			_, _ = io.WriteString(w, "<<not json>>")
			return true
		case HTMLError:
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "<html>bad gateway</html>")
			return true
		case WrongKey:
			if id, ok := out["KeyId"].(string); ok {
				out["KeyId"] = id[:len(id)-12] + "ffffffffffff"
			}
		}
	}
	return false
}

func resetConn(c net.Conn) {
	switch x := c.(type) {
	case *gated:
		reset(x.Conn)
	case interface{ NetConn() net.Conn }: // TLS
		resetConn(x.NetConn())
	default:
		_ = c.Close()
	}
}

func pause(r *http.Request, d time.Duration) bool {
	if d == 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

func (s *Server) count(op, kind, who string) {
	s.counts.Ops[op]++
	s.counts.Types[op+"/"+kind]++
	s.counts.Principals[who]++
	s.inFlight++
	s.counts.MaxInFlight = max(s.counts.MaxInFlight, s.inFlight)
}

func (s *Server) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight--
}

func writeFailure(w http.ResponseWriter, id string, f *failure) {
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": f.code, "message": f.text}) // the client may be gone
}
