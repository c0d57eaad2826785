package awskms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/test/awsenv"
)

// hanging is a credential_process that waits for a process of its own.
type hanging struct {
	t   *testing.T
	dir string
}

func newHanging(t *testing.T, script string) hanging {
	t.Helper()
	h := hanging{t, t.TempDir()}
	for name, data := range map[string]string{
		"helper": "#!/bin/sh\ncut -d' ' -f5 /proc/self/stat > " + h.dir + "/group\n" + strings.ReplaceAll(script, "DIR", h.dir),
		"config": "[default]\ncredential_process = " + h.dir + "/helper\n",
	} {
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte(data), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	awsenv.Clear(t)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_CONFIG_FILE", h.dir+"/config")
	return h
}

const hangs = "sleep 300 &\necho $! > DIR/new.$$ && mv DIR/new.$$ DIR/child\nwait\n"

// child waits for the process that the program starts.
func (h hanging) child() (pid int) {
	h.t.Helper()
	h.until("the program runs", func() bool {
		b, err := os.ReadFile(h.dir + "/child")
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return err == nil
	})
	h.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

func (h hanging) until(what string, done func() bool) {
	h.t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func (h hanging) gone(pid int) {
	h.t.Helper()
	h.until("what the program started has ended", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// When nobody waits for a credential any more, the program that is to give it ends,
// with all that it started.
func TestProgramEndsWithItsAsker(t *testing.T) {
	for name, tt := range map[string]struct {
		limit time.Duration
		end   func(giveUp func(), asker net.Conn)
	}{
		"it gives up":      {time.Minute, func(giveUp func(), _ net.Conn) { giveUp() }},
		"it hangs up":      {time.Minute, func(_ func(), asker net.Conn) { _ = asker.Close() }},
		"its time is over": {6 * time.Second, func(func(), net.Conn) {}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHanging(t, hangs)
			ctx, giveUp := context.WithTimeout(t.Context(), tt.limit)
			defer giveUp()
			ours, theirs := net.Pipe()
			served, asked := make(chan error, 1), make(chan error, 1)
			go func() { served <- ServeBroker(t.Context(), theirs) }()
			b := NewBroker(ours)
			go func() {
				_, err := b.fetch(ctx, brokering{Region: "eu-west-1"})
				asked <- err
			}()
			pid := h.child()
			tt.end(giveUp, ours)
			h.gone(pid)
			if err := <-asked; err == nil {
				t.Error("there is a credential")
			}
			_ = ours.Close()
			if err := <-served; err != nil && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("ServeBroker = %v", err)
			}
		})
	}
}

// The same where this process starts the program itself.
func TestProgramEndsWithItsRequest(t *testing.T) {
	h := newHanging(t, hangs)
	s, _, err := newCredentials(t.Context(), Config{}, "eu-west-1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		_, err := s.source(ctx)
		asked <- err
	}()
	pid := h.child()
	giveUp()
	h.gone(pid)
	if err := <-asked; !sourceAway(err) {
		t.Errorf("fetch = %v, want an outage", err)
	}
}

// A role that is assumed with what a program gave has that program in a group too.
func TestProgramBelowARole(t *testing.T) {
	in := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	h := newHanging(t, `echo '{"Version":1,"AccessKeyId":"of-the-program","SecretAccessKey":"s","SessionToken":"t","Expiration":"`+in+`"}'`)
	asked := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked += strings.SplitN(string(body), "RoleArn=", 2)[1][:34] + " by " + strings.SplitN(r.Header.Get("Authorization"), "/", 2)[0] + "; "
		w.Header().Set("Content-Type", "text/xml")
		fmt.Fprintf(w, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>of-a-role</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`, in)
	}))
	t.Cleanup(s.Close)
	t.Setenv("AWS_ENDPOINT_URL_STS", s.URL)
	config := "[default]\nrole_arn = arn:aws:iam::111122223333:role/b\nsource_profile = a\n[profile a]\nrole_arn = arn:aws:iam::111122223333:role/a\nsource_profile = p\n[profile p]\ncredential_process = " + h.dir + "/helper\n"
	if err := os.WriteFile(h.dir+"/config", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := brokering{Region: "eu-west-1"}.run(t.Context())
	if err != nil || c.AccessKeyID != "of-a-role" {
		t.Errorf("the credential is %s, %v", c.AccessKeyID, err)
	}
	const role = "arn%3Aaws%3Aiam%3A%3A111122223333%"
	if want := role + " by AWS4-HMAC-SHA256 Credential=of-the-program; " + role + " by AWS4-HMAC-SHA256 Credential=of-a-role; "; asked != want {
		t.Errorf("STS was asked %q, want %q", asked, want)
	}
	group, err := os.ReadFile(h.dir + "/group")
	if err != nil || strings.TrimSpace(string(group)) == strconv.Itoa(syscall.Getpgrp()) {
		t.Errorf("the program ran in group %s, which is ours: %v", group, err)
	}
}

// A process that does not read is not waited for, and never sees half a message.
func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		w := wire{Conn: ours}
		begin := time.Now()
		if err := w.send("lost"); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != sendTimeout {
			t.Errorf("send = %v after %s", err, time.Since(begin))
		}
		got := make(chan string, 1)
		go func() {
			in := messages(theirs)
			in.Scan()
			got <- in.Text()
		}()
		if err := w.send("next"); err != nil || <-got != `"next"` {
			t.Errorf("send = %v", err)
		}
		go func() { _, _ = theirs.Read(make([]byte, 2)) }()
		if err := w.send("in part"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("send = %v", err)
		}
		if err := w.send("after it"); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("send after a message in part = %v", err)
		}
		b := NewBroker(theirs)
		if _, err := b.fetch(t.Context(), brokering{}); !errors.Is(err, errBrokerGone) {
			t.Errorf("fetch = %v", err)
		}
	})
}

// Whoever asks for too much is left, and one that waits for its turn can give up.
func TestBrokerIsBounded(t *testing.T) {
	h := newHanging(t, hangs)
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- ServeBroker(t.Context(), theirs) }()
	w := wire{Conn: ours}
	for id := range uint64(maxAsked) {
		if err := w.send(brokering{ID: id, Region: "eu-west-1"}); err != nil {
			t.Fatal(err)
		}
	}
	pid := h.child()
	if err := w.send(brokering{ID: maxAsked - 1, Cancel: true}); err != nil { // there may be room for one more
		t.Fatal(err)
	}
	_ = w.send(brokering{ID: maxAsked + 2})
	_ = w.send(brokering{ID: maxAsked + 3})
	if err := <-served; err == nil || !strings.Contains(err.Error(), "more than 64 requests at once") {
		t.Errorf("ServeBroker = %v", err)
	}
	h.gone(pid)
}

// What a program leaves behind when it ends by itself ends too.
func TestProgramLeavesNobody(t *testing.T) {
	h := newHanging(t, "sleep 300 >/dev/null 2>&1 </dev/null &\necho $! > DIR/child\n"+
		`echo '{"Version":1,"AccessKeyId":"AKID","SecretAccessKey":"s","SessionToken":"t","Expiration":"2999-01-01T00:00:00Z"}'`+"\n")
	c, err := newProgram(h.dir + "/helper").Retrieve(t.Context())
	if err != nil || c.AccessKeyID != "AKID" {
		t.Fatalf("%+v, %v", c.Source, err)
	}
	h.gone(h.child())
}

// Answers that nobody reads count as asked for, until they are dropped: who asks faster
// than that is sent away.
func TestBrokerOfADeafAsker(t *testing.T) {
	newHanging(t, "exit 1\n")
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- ServeBroker(t.Context(), theirs) }()
	w := wire{Conn: ours}
	for id := uint64(1); w.send(brokering{ID: id, Region: "eu-west-1"}) == nil; id++ { // it fails when nobody reads any more
		if id > 100*maxAsked {
			t.Fatalf("%d requests at once are taken", id)
		}
	}
	if err := <-served; err == nil || !strings.Contains(err.Error(), "more than 64 requests at once") {
		t.Errorf("ServeBroker = %v", err)
	}
}
