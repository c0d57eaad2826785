// Package await waits until a plugin serves its socket, for what must start after
// it. It must not know keys, or who waits.
package await

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	grpcstatus "google.golang.org/grpc/status"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/kmsclient"
)

// Options say what is waited for.
type Options struct {
	Socket    string
	Listening bool // until the socket accepts; else until Status answers as kube-apiserver wants it
	Poll      time.Duration
}

// DefaultPoll is quick for a person and nothing for a processor.
const DefaultPoll = 200 * time.Millisecond

// Served returns when the socket serves. When ctx ends first, the error names
// what it was that did not. Each try dials anew: gRPC's own back-off grows to two
// minutes, and what is waited for appears within seconds.
func Served(ctx context.Context, o Options) error {
	begun := time.Now()
	tick := time.NewTicker(o.Poll)
	defer tick.Stop()
	var last error
	for {
		err := try(ctx, o)
		if err == nil {
			return nil
		}
		if last == nil || !over(ctx) {
			last = err // the try that ctx cut off would only say so
		}
		select {
		case <-ctx.Done():
			return givenUp(o, time.Since(begun), last)
		case <-tick.C:
			if over(ctx) {
				return givenUp(o, time.Since(begun), last)
			}
		}
	}
}

// over is true from the deadline on; ctx.Err() follows when its timer has run.
func over(ctx context.Context) bool {
	end, limited := ctx.Deadline()
	return ctx.Err() != nil || limited && !time.Now().Before(end)
}

func try(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, kmsclient.Timeout)
	defer cancel()
	if o.Listening {
		c, err := new(net.Dialer).DialContext(ctx, "unix", o.Socket)
		if err == nil {
			err = c.Close()
		}
		return err
	}
	c, err := kmsclient.Dial(o.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Status(ctx)
	switch {
	case err != nil:
		return err
	case s.GetVersion() != "v2" || s.GetHealthz() != "ok" || s.GetKeyId() == "":
		return fmt.Errorf("it answers version %q, healthz %q, key_id %q", s.GetVersion(), s.GetHealthz(), s.GetKeyId())
	}
	return nil
}

func givenUp(o Options, waited time.Duration, last error) error {
	hint := "look at the plugin: systemctl status kms-plugin, or crictl logs; its log says what it waits for"
	var h interface{ Hint() string }
	if errors.As(last, &h) {
		hint = h.Hint()
	}
	text := last.Error()
	if s, isStatus := grpcstatus.FromError(last); isStatus {
		text = fmt.Sprintf("%s: %s", s.Code(), s.Message())
	}
	return cli.WithHint(fmt.Errorf("socket %q does not serve after %s: %s", o.Socket, waited.Round(100*time.Millisecond), text), hint)
}
