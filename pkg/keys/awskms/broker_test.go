package awskms_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/test/fakekms"
)

// Through a broker it is the same: the credential, and what an error means.
func TestCredentialProcessBrokered(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	answer := answerOf(t, s)
	helper := put(t, "signing_helper", "", 0o700)
	does := func(script string) {
		t.Helper()
		if err := os.WriteFile(helper, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	clear(t)
	t.Setenv("AWS_CONFIG_FILE", put(t, "config", "[default]\ncredential_process = "+helper+"\n", 0o600))
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- awskms.ServeBroker(t.Context(), theirs) }()
	broker := awskms.NewBroker(ours)
	with := func() *awskms.KEK {
		t.Helper()
		k, err := awskms.New(t.Context(), awskms.Config{KeyARN: arn, Endpoint: s.URL(), Broker: broker})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	does("echo '" + answer + "'")
	mustWrap(t, with(), "process", "signing_helper")
	does("echo AccessDenied >&2; exit 1")
	mustFail(t, with(), keys.ClassCredential, "exit status 1")
	does(`echo '{"Version":1,"AccessKeyId":"a","SecretAccessKey":"hunter2hunter2"}'`)
	mustFail(t, with(), keys.ClassCredential, "long-lived static one")
	does(`echo '{"Version":1,"AccessKeyId":"a","SecretAccessKey":"x","SessionToken":"t","Expiration":"hunter2hunter2"}'`)
	k := with()
	mustFail(t, k, keys.ClassCredential, "not a time as in RFC 3339")
	if text := fmt.Sprint(k.Credential().Err); strings.Contains(text, "hunter2") {
		t.Errorf("the error quotes the answer: %s", text)
	}
	t.Setenv("AWS_CONFIG_FILE", put(t, "config", "[default]\nregion=eu-west-1\n", 0o600))
	if _, err := awskms.New(t.Context(), awskms.Config{KeyARN: arn, Endpoint: s.URL(), Broker: broker}); err != nil {
		t.Errorf("a profile without a program, with a broker: %v", err)
	}
	t.Setenv("AWS_CONFIG_FILE", put(t, "config", "[default]\ncredential_process = "+helper+"\n", 0o600))
	k = with()
	theirs.Close()
	mustFail(t, k, keys.ClassOutage, "has ended; restart kms-plugin")
	if err := <-served; err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("ServeBroker = %v", err)
	}
	mustFail(t, with(), keys.ClassOutage, "has ended; restart kms-plugin")
}
