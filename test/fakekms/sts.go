package fakekms

import (
	"fmt"
	"net/http"
	"net/url"
)

// stsCodes are the names that STS has for what KMS calls otherwise
// (https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html).
var stsCodes = map[string]string{
	"ExpiredTokenException":       "ExpiredToken",
	"UnrecognizedClientException": "InvalidClientTokenId",
	"InvalidSignatureException":   "SignatureDoesNotMatch",
}

// sts answers GetCallerIdentity, in the query protocol.
func (s *Server) sts(w http.ResponseWriter, r *http.Request, body []byte) {
	form, err := url.ParseQuery(string(body))
	s.mu.Lock()
	who, _, fail := s.caller(r)
	s.count("GetCallerIdentity", "", who)
	for _, f := range s.due("GetCallerIdentity", "", "", who, "") {
		if e := answerOf(f); e != nil {
			fail = e
		}
	}
	s.mu.Unlock()
	defer s.done()
	if err != nil || form.Get("Action") != "GetCallerIdentity" {
		fail = refuse("InvalidAction", "only GetCallerIdentity is modelled")
	}
	w.Header().Set("Content-Type", "text/xml")
	if fail != nil {
		code := fail.code
		if c, ok := stsCodes[code]; ok {
			code = c
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>", code, fail.text, randomHex(16))
		return
	}
	fmt.Fprintf(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>`+
		`<Arn>arn:aws:sts::%[1]s:assumed-role/%[2]s/test</Arn><UserId>AROATEST:test</UserId><Account>%[1]s</Account>`+
		`</GetCallerIdentityResult><ResponseMetadata><RequestId>%[3]s</RequestId></ResponseMetadata></GetCallerIdentityResponse>`, s.account, who, randomHex(16))
}
