package fakekms

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

// IMDS is the metadata service of an instance whose role is a principal of the
// fake.
type IMDS struct {
	*httptest.Server
	// AllowV1 also answers requests without a token, as IMDSv1 does.
	AllowV1 bool
}

// StartIMDS starts one; close it. Its URL is for
// AWS_EC2_METADATA_SERVICE_ENDPOINT.
func (s *Server) StartIMDS(principal string, allowV1 bool) *IMDS {
	m := &IMDS{AllowV1: allowV1}
	token := randomHex(20)
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && r.URL.Path == "/latest/api/token" {
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", r.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds"))
			fmt.Fprint(w, token)
			return
		}
		if given := r.Header.Get("X-Aws-Ec2-Metadata-Token"); given != token && (given != "" || !m.AllowV1) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		s.metadata(w, r, principal)
	}))
	return m
}

func (s *Server) metadata(w http.ResponseWriter, r *http.Request, principal string) {
	const roles = "/latest/meta-data/iam/security-credentials/"
	switch {
	case r.URL.Path == roles || r.URL.Path == strings.TrimSuffix(roles, "/"):
		fmt.Fprint(w, principal)
	case r.URL.Path == "/latest/meta-data/instance-id":
		fmt.Fprint(w, "i-0123456789abcdef0")
	case r.URL.Path == roles+principal:
		c, _ := s.open(principal)
		if c == nil {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": s.now().UTC().Format(time.RFC3339),
			"AccessKeyId": c.AccessKeyID, "SecretAccessKey": c.Secret, "Token": c.Token, "Expiration": c.Ends.UTC().Format(time.RFC3339)}) // the client may be gone
	default:
		http.NotFound(w, r)
	}
}
