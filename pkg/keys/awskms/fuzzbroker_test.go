package awskms

import (
	"bytes"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/awsenv"
)

// Whatever a daemon that was taken over sends to its broker, whose profile here names no
// program: it ends with its asker, answers what it was asked alone, and gives no
// credential, not even that of the environment.
func FuzzBroker(f *testing.F) {
	awsenv.Clear(f)
	f.Setenv("AWS_CONFIG_FILE", "/dev/null")
	f.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	f.Setenv("AWS_ACCESS_KEY_ID", "AKIAX")
	f.Setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-environment")
	for _, s := range []string{
		`{"ID":1,"Region":"eu-west-1"}`,
		`{"ID":1,"Region":"eu-west-1","Limit":1}` + "\n" + `{"ID":1,"Cancel":true}`,
		`{"ID":2,"CABundle":"/etc/hostname","Proxy":"http://127.0.0.1:1"}`,
		`{"ID":-1}`, `{"ID":1,"Limit":-9223372036854775808}`, `{`, "\n\n", `null`,
		strings.Repeat(`{"ID":3}`+"\n", 70), `{"Region":"` + strings.Repeat("x", 1<<17) + `"}`,
	} {
		f.Add([]byte(s + "\n"))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		ours, theirs := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = ServeBroker(t.Context(), theirs)
			_ = theirs.Close()
		}()
		go func() {
			_, _ = ours.Write(sent)
			_ = ours.SetWriteDeadline(time.Now())
		}()
		_ = ours.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		for in := messages(ours); in.Scan(); {
			var a brokered
			if err := json.Unmarshal(in.Bytes(), &a); err != nil {
				t.Fatalf("answer %q: %v", in.Bytes(), err)
			}
			if a.Err == nil || a.Err.Text == "" || a.Credentials.HasKeys() || bytes.Contains(in.Bytes(), []byte("a-secret-of")) {
				t.Errorf("%q is answered by %q", sent, in.Bytes())
			}
		}
		_ = ours.Close()
		select {
		case <-served:
		case <-time.After(30 * time.Second):
			t.Fatal("it goes on without its asker")
		}
	})
}
