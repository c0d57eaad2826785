package awskms

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// programGrace is how long after the end of a program its output is still read.
const programGrace = time.Second

// programSource is the SDK's provider for credential_process, whose processes all end
// with the request.
type programSource struct{ *processcreds.Provider }

// newProgram runs a command line as the SDK does, but in a process group of its own,
// without standard input: whom the program starts is ended with it.
func newProgram(line string) programSource {
	return programSource{processcreds.NewProviderCommand(processcreds.NewCommandBuilderFunc(func(ctx context.Context) (*exec.Cmd, error) {
		c := exec.CommandContext(ctx, "sh", "-c", line) // #nosec G204 -- it is what credential_process of the AWS configuration means
		c.Env, c.Stderr = os.Environ(), os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		c.Cancel = func() error {
			if err := syscall.Kill(-c.Process.Pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
				return err
			}
			return os.ErrProcessDone
		}
		c.WaitDelay = programGrace // a process that it left behind may hold its output open
		if s, ok := ctx.Value(startedKey{}).(*started); ok {
			s.Cmd = c
		}
		return c, nil
	}), func(o *processcreds.Options) { o.Timeout = fetchTimeout })}
}

// started is the command of one Retrieve, which the SDK keeps to itself.
type started struct{ *exec.Cmd }

type startedKey struct{}

// end kills what a program that has ended itself left behind in its group.
func (s *started) end() {
	if s.Cmd != nil && s.Process != nil {
		_ = syscall.Kill(-s.Process.Pid, syscall.SIGKILL) // mostly nobody is left
	}
}

// IsCredentialsProvider answers aws.IsCredentialsProvider: it is what it wraps.
func (programSource) IsCredentialsProvider(target aws.CredentialsProvider) bool {
	_, ok := target.(*processcreds.Provider)
	return ok
}

// request is one retrieve, as programs see it: the SDK's caches hide the end of a
// context from what they ask, but not its values.
type request struct {
	ctx     context.Context
	running sync.Mutex
}

type requestKey struct{}

// Retrieve implements aws.CredentialsProvider.
func (p programSource) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		ctx = r.ctx
		r.running.Lock()
		defer r.running.Unlock()
	}
	var s started
	defer s.end()
	return p.Provider.Retrieve(context.WithValue(ctx, startedKey{}, &s))
}

// retrieve asks a chain. When it returns, no program runs for it any more.
func retrieve(ctx context.Context, chain aws.CredentialsProvider) (aws.Credentials, error) {
	r := &request{ctx: ctx}
	c, err := chain.Retrieve(context.WithValue(ctx, requestKey{}, r))
	r.running.Lock() // one that begins later finds ctx ended
	defer r.running.Unlock()
	return c, err
}

// chained are options that put a program at the begin of the chain of cfg, where the
// SDK has one of its own; found tells whether it has.
func chained(cfg aws.Config, p programSource) (options []func(*config.LoadOptions) error, found *bool) {
	found = new(bool)
	cfg.Credentials = p
	placed := false
	return []func(*config.LoadOptions) error{
		config.WithProcessCredentialOptions(func(*processcreds.Options) { *found = true }),
		config.WithAssumeRoleCredentialOptions(func(o *stscreds.AssumeRoleOptions) {
			if *found && !placed && o.Client != nil { // the SDK also calls this to see the options only
				placed, o.Client = true, sts.NewFromConfig(cfg)
			}
		}),
	}, found
}

// startsProgram says whether a profile, or the source of its role, has a
// credential_process.
func startsProgram(profile config.SharedConfig) bool {
	for p := &profile; p != nil; p = p.Source {
		if p.CredentialProcess != "" {
			return true
		}
	}
	return false
}

// commandLine is the credential_process at the begin of a chain of roles.
func commandLine(profile config.SharedConfig) string {
	p := &profile
	for p.Source != nil {
		p = p.Source
	}
	return p.CredentialProcess
}
