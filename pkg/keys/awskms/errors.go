package awskms

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"kms-plugin.io/pkg/keys"
)

// meaning is what an error code of KMS says about the key.
type meaning struct {
	class keys.Class
	retry bool
	hint  string
}

// codes maps the error codes of Encrypt and Decrypt. Sources: the Errors
// sections of https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html
// and API_Encrypt.html, CommonErrors.html there, the types of
// aws-sdk-go-v2/service/kms/types, and, for throttling, the list
// DefaultThrottleErrorCodes of aws-sdk-go-v2/aws/retry.
var codes = map[string]meaning{
	"DisabledException":          {keys.ClassKeyState, false, "enable the key again: aws kms enable-key --key-id <ARN>"},
	"KMSInvalidStateException":   {keys.ClassKeyState, false, "look at KeyState and DeletionDate: aws kms describe-key --key-id <ARN>; a pending deletion can be cancelled"},
	"NotFoundException":          {keys.ClassKeyState, false, "the key does not exist in this region and account, or was deleted: compare keyARN"},
	"InvalidKeyUsageException":   {keys.ClassKeyState, false, "the key must be symmetric with usage ENCRYPT_DECRYPT"},
	"InvalidGrantTokenException": {keys.ClassAuthorization, false, ""},
	"AccessDeniedException":      {keys.ClassAuthorization, false, "allow kms:Encrypt and kms:Decrypt on the key for this identity, and compare the conditions on kms:EncryptionContext"},
	"AccessDenied":               {keys.ClassAuthorization, false, "allow kms:Encrypt and kms:Decrypt on the key for this identity"},
	"NotAuthorized":              {keys.ClassAuthorization, false, ""},
	"OptInRequired":              {keys.ClassAuthorization, false, "the account is not subscribed to KMS in this region"},

	"ExpiredTokenException":       {keys.ClassCredential, false, "the credential expired and was not renewed: look at the instance role or Roles Anywhere helper"},
	"UnrecognizedClientException": {keys.ClassCredential, false, "the access key is not known to AWS (any more)"},
	"InvalidClientTokenId":        {keys.ClassCredential, false, "the access key is not known to AWS (any more)"},
	"InvalidSignatureException":   {keys.ClassCredential, false, "the secret key does not belong to the access key"},
	"IncompleteSignature":         {keys.ClassCredential, false, ""},
	"MissingAuthenticationToken":  {keys.ClassCredential, false, ""},

	// STS has other names for some (its CommonErrors.html).
	"ExpiredToken":          {keys.ClassCredential, false, "the credential expired and was not renewed: look at the instance role or Roles Anywhere helper"},
	"SignatureDoesNotMatch": {keys.ClassCredential, false, "the secret key does not belong to the access key"},

	"InvalidCiphertextException": {keys.ClassData, false, "the blob is damaged or was wrapped under another encryption context"},
	"IncorrectKeyException":      {keys.ClassData, false, "the blob was wrapped by another key"},

	"RequestExpired":                         {keys.ClassOutage, false, "set the clock of this node"},
	"KeyUnavailableException":                {keys.ClassOutage, true, ""},
	"KMSInternalException":                   {keys.ClassOutage, true, ""},
	"DependencyTimeoutException":             {keys.ClassOutage, true, ""},
	"InternalFailure":                        {keys.ClassOutage, true, ""},
	"ServiceUnavailable":                     {keys.ClassOutage, true, ""},
	"LimitExceededException":                 {keys.ClassOutage, true, "a quota of KMS is used up"},
	"ThrottlingException":                    {keys.ClassOutage, true, "the request quota of KMS for this account and region is used up"},
	"Throttling":                             {keys.ClassOutage, true, ""},
	"ThrottledException":                     {keys.ClassOutage, true, ""},
	"RequestThrottled":                       {keys.ClassOutage, true, ""},
	"RequestThrottledException":              {keys.ClassOutage, true, ""},
	"RequestLimitExceeded":                   {keys.ClassOutage, true, ""},
	"TooManyRequestsException":               {keys.ClassOutage, true, ""},
	"ProvisionedThroughputExceededException": {keys.ClassOutage, true, ""},
	"SlowDown":                               {keys.ClassOutage, true, ""},
}

// Codes of our own, for answers that have none.
const (
	codeTimeout     = "Timeout"
	codeUnreachable = "Unreachable"
	codeGarbage     = "UnreadableAnswer"
	codeWrongKey    = "WrongKeyAnswered"
	codeClock       = "ClockSkew"
	codeCredentials = "NoCredentials"
)

// judge turns an error of the SDK into ours. Branching is on types and codes;
// the one text looked at is AWS' own for a clock that is off, which it reports
// under the code of a wrong signature.
func judge(err error) (e keys.Error, retry bool) {
	e.Err = err
	var cred *credentialError
	if errors.As(err, &cred) {
		return judgeCredential(cred), false
	}
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) {
		e.RequestID = resp.ServiceRequestID()
	}
	var api smithy.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode() != "" && api.ErrorCode() != "UnknownError":
		return judgeCode(e, api, resp)
	case resp != nil && resp.HTTPStatusCode() != 0: // 0: there was no answer
		e.Class, e.Code, e.Err = keys.ClassOutage, codeGarbage, errors.New("the answer is not one of KMS: is the endpoint, or a proxy before it, right?")
		status := resp.HTTPStatusCode()
		return e, status < http.StatusBadRequest || status >= http.StatusInternalServerError
	}
	e.Class, e.Code = keys.ClassOutage, codeUnreachable
	var timeout net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		e.Code = codeTimeout
	}
	e.Err = cause(err)
	return e, true
}

func judgeCode(e keys.Error, api smithy.APIError, resp *awshttp.ResponseError) (keys.Error, bool) {
	e.Code = api.ErrorCode()
	m, known := codes[e.Code]
	text := api.ErrorMessage()
	switch {
	case !known && resp != nil && resp.HTTPStatusCode() >= http.StatusInternalServerError:
		m = meaning{keys.ClassOutage, true, ""}
	case !known:
		// A refusal nobody foresaw: it must bite in the end, but not within
		// minutes, for it may be a new kind of hiccup.
		m = meaning{keys.ClassCredential, false, "this release does not know the code; please report it"}
	case e.Code == "InvalidSignatureException" && (strings.Contains(text, "Signature expired") || strings.Contains(text, "Signature not yet current")):
		// The SDK has learned from the answer by how much the clock is off, and signs
		// the next attempt with it.
		e.Code, m = codeClock, meaning{keys.ClassOutage, true, "set the clock of this node"}
	}
	if text == "" {
		text = "no message"
	}
	e.Class, e.Hint, e.Err = m.class, m.hint, errors.New(text)
	e.Absent = e.Code == "NotFoundException"
	return e, m.retry
}

// credentialError is a failure to get credentials at all.
type credentialError struct{ err error }

func (e *credentialError) Error() string { return "get credentials: " + unquoted(e.err) }

// unquoted is the text of an error with nothing of what a source answered: it may have
// mixed up its fields.
func unquoted(err error) string {
	var quoting *time.ParseError
	if errors.As(err, &quoting) {
		return "the Expiration in the answer is not a time as in RFC 3339"
	}
	return cause(err).Error()
}
func (e *credentialError) Unwrap() error { return e.err }

// errStatic is a credential that this configuration does not accept.
var errStatic = errors.New("the credential found is a long-lived static one")

// judgeCredential sorts failures to get a credential as design.md's classes want it:
// a source that is not reached, or has a fault of its own, is an outage: the cloud
// may be well and nobody took anything away. A source that answers with a refusal, or
// is not there at all, is a denial of the credential: so a withdrawn role bites after
// health.credential. A credential_process that ends with a failure says no more than
// that; it counts as a denial, since that is how a withdrawn trust shows, and the
// price is that an outage of its service closes the key sooner than others would.
func judgeCredential(c *credentialError) keys.Error {
	e := keys.Error{Class: keys.ClassCredential, Code: codeCredentials, Err: c,
		Hint: "look at the source of the credential: instance role, Roles Anywhere helper or credential endpoint"}
	if errors.Is(c, errStatic) {
		e.Hint = "use a workload identity (instance role, Roles Anywhere), or set allowStaticCredentials: true for this key"
		return e
	}
	if sourceAway(c.err) {
		e.Class = keys.ClassOutage
	}
	return e
}

// sourceAway says whether a source was not reached or failed by itself.
func sourceAway(err error) bool {
	var brokered *brokerError
	if errors.As(err, &brokered) {
		return brokered.Away
	}
	var api smithy.APIError
	if errors.As(err, &api) && (codes[api.ErrorCode()].class == keys.ClassOutage || api.ErrorCode() == "IDPCommunicationError") {
		return true // STS: throttled, or the identity provider did not answer it
	}
	var resp interface{ HTTPStatusCode() int }
	if errors.As(err, &resp) && resp.HTTPStatusCode() > 0 {
		s := resp.HTTPStatusCode()
		return s >= http.StatusInternalServerError || s == http.StatusTooManyRequests || s == http.StatusRequestTimeout
	}
	if errors.As(err, &api) && api.ErrorFault() == smithy.FaultServer {
		return true
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return !exit.Exited() // killed, as after a timeout
	}
	var file *fs.PathError
	if errors.As(err, &file) {
		return false // its errno would count as a net.Error
	}
	var n net.Error
	return errors.As(err, &n) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// cause is the innermost error: the SDK's own texts repeat operation, attempt
// and URL around it.
func cause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		var op *net.OpError
		if errors.As(err, &op) && !errors.As(next, &op) {
			return op
		}
		if o, ok := err.(*net.OpError); ok {
			return o
		}
		err = next
	}
}
