package fakekms

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

// FaultKind is one way to fail.
type FaultKind string

// The kinds of fault.
const (
	Latency            FaultKind = "latency" // answer well, but late
	Throttle           FaultKind = "throttle"
	InternalError      FaultKind = "internal-error"
	KeyUnavailable     FaultKind = "key-unavailable"
	DependencyTimeout  FaultKind = "dependency-timeout"
	Hang               FaultKind = "hang"
	Reset              FaultKind = "reset"
	Deny               FaultKind = "deny"
	ExpiredToken       FaultKind = "expired-token"
	UnrecognizedClient FaultKind = "unrecognized-client"
	InvalidSignature   FaultKind = "invalid-signature"
	Garbage            FaultKind = "garbage"    // 200 and no JSON
	HTMLError          FaultKind = "html-error" // 503 of some proxy
	WrongKey           FaultKind = "wrong-key"  // answers in the name of another key
	Custom             FaultKind = "custom"     // Code and Status as given
)

// Fault is a fault in force. Zero fields match everything.
type Fault struct {
	Op          string // "Encrypt"
	Region      string
	KeyID       string // as the caller names the key: its ARN
	Principal   string
	ContextType string // value of kms-plugin-type in the encryption context
	Kind        FaultKind
	Code        string        // of Custom
	Text        string        // of Custom, "" for some
	Status      int           // of Custom
	Probability float64       // 0 is always
	Latency     time.Duration // before anything else happens
	AfterEffect bool          // the operation is done, but its answer is lost
	Limit       int           // how many times, 0 is for ever

	id, used int
}

// SetFault puts a fault in force and returns its number.
func (s *Server) SetFault(f Fault) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextFault++
	f.id = s.nextFault
	s.faults = append(s.faults, &f)
	return f.id
}

// ClearFault ends one fault.
func (s *Server) ClearFault(id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = slices.DeleteFunc(s.faults, func(f *Fault) bool { return f.id == id })
}

// ClearFaults ends all faults.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// due finds the faults for a call; the caller holds mu.
func (s *Server) due(op, region, key, who, kind string) []Fault {
	var out []Fault
	for _, f := range s.faults {
		if f.Op != "" && f.Op != op || f.Region != "" && f.Region != region || f.KeyID != "" && f.KeyID != key || f.Principal != "" && f.Principal != who ||
			f.ContextType != "" && f.ContextType != kind || f.Limit > 0 && f.used >= f.Limit ||
			f.Probability > 0 && rand.Float64() >= f.Probability {
			continue
		}
		f.used++
		out = append(out, *f)
	}
	return out
}

// answerOf is the error a kind of fault answers with, nil if it is no error.
func answerOf(f Fault) *failure {
	switch f.Kind {
	case Throttle:
		return refuse("ThrottlingException", "You have exceeded the rate at which you may call KMS.")
	case InternalError:
		return &failure{http.StatusInternalServerError, "KMSInternalException", "internal"}
	case KeyUnavailable:
		return &failure{http.StatusInternalServerError, "KeyUnavailableException", "the key is not available, try again"}
	case DependencyTimeout:
		return &failure{http.StatusServiceUnavailable, "DependencyTimeoutException", "a dependency timed out"}
	case Deny:
		return refuse("AccessDeniedException", "User is not authorized to perform this operation")
	case ExpiredToken:
		return refuse("ExpiredTokenException", "The security token included in the request is expired")
	case UnrecognizedClient:
		return refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	case InvalidSignature:
		return refuse("InvalidSignatureException", "The request signature we calculated does not match the signature you provided.")
	case Custom:
		return &failure{f.Status, f.Code, cmp.Or(f.Text, "a custom fault")}
	}
	return nil
}

// quota is a token bucket over all operations.
type quota struct {
	rate, burst, have float64
	last              time.Time
}

// SetQuota throttles what exceeds perSecond after a burst; 0 is no quota.
func (s *Server) SetQuota(perSecond, burst int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quota = quota{float64(perSecond), float64(burst), float64(burst), time.Now()}
}

func (q *quota) take() bool {
	if q.rate == 0 {
		return true
	}
	now := time.Now()
	q.have = min(q.burst, q.have+q.rate*now.Sub(q.last).Seconds())
	q.last = now
	if q.have < 1 {
		return false
	}
	q.have--
	return true
}

// Counts are the calls seen since the last ResetCounts.
type Counts struct {
	Ops         map[string]int // by operation
	Types       map[string]int // by operation and kms-plugin-type: "Decrypt/local-kek"
	Principals  map[string]int
	Connections int
	MaxInFlight int
}

func (c *Counts) reset() {
	*c = Counts{Ops: map[string]int{}, Types: map[string]int{}, Principals: map[string]int{}}
}

// Total is the number of calls of all operations.
func (c Counts) Total() (n int) {
	for _, v := range c.Ops {
		n += v
	}
	return n
}

// Calls reads the counts.
func (s *Server) Calls() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts
	c.Ops, c.Types, c.Principals = maps.Clone(c.Ops), maps.Clone(c.Types), maps.Clone(c.Principals)
	return c
}

// ResetCounts starts counting again; open connections stay open and uncounted.
func (s *Server) ResetCounts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.reset()
	s.log = nil
}

func (s *Server) countConnection() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Connections++
}

// Request is one call as it came.
type Request struct {
	Op, KeyID, Principal, RequestID, Error string
	Context                                map[string]string
	Time                                   time.Time
}

// Requests are the last 1000 calls.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// Trail is what CloudTrail would have of the last 1000 calls, as in a file of S3.
func (s *Server) Trail() []byte {
	type event map[string]any
	records := []event{}
	for i, r := range s.Requests() {
		e := event{"eventVersion": "1.11", "eventSource": "kms.amazonaws.com", "eventName": r.Op, "eventTime": r.Time.UTC().Format(time.RFC3339),
			"eventID": fmt.Sprintf("event-%d", i), "requestID": r.RequestID, "requestParameters": nil,
			"userIdentity": event{"type": "AssumedRole", "principalId": r.Principal}}
		if r.Error != "" {
			e["errorCode"] = r.Error
		} else {
			e["requestParameters"] = event{"keyId": r.KeyID, "encryptionAlgorithm": "SYMMETRIC_DEFAULT", "encryptionContext": r.Context}
		}
		records = append(records, e)
	}
	out, err := json.Marshal(event{"Records": records})
	if err != nil {
		panic(err) // strings and maps of them always encode
	}
	return out
}

func (s *Server) record(r Request) {
	r.Time = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log = append(s.log, r); len(s.log) > 1000 {
		s.log = s.log[1:]
	}
}
