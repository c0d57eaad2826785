package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/custody"
	"kms-plugin.io/internal/harden"
	"kms-plugin.io/internal/httpserver"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/internal/systemd"
	"kms-plugin.io/internal/unixsocket"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/pkg/plugin"
)

// drainTimeout bounds how long a stopping server waits for calls in flight. It
// is above the 2.5 s that any call may take.
const drainTimeout = 3 * time.Second

// Options are what the command line gives.
type Options struct {
	Source Source
	Force  bool // let the first configuration pass the guards of custody
	Log    io.Writer
	// Reload is read as "look at the configuration now" (SIGHUP).
	Reload <-chan os.Signal
	// Passed is the socket that systemd holds for us, nil to bind our own.
	Passed *os.File
	Notify *systemd.Notifier // nil tells nobody
	// Confine is called when every listener is bound; nil leaves the process as
	// it is, as tests need that run the daemon within their own.
	Confine func(harden.Policy) *harden.Result
	// Broker is called before that if a profile of this host names a program that
	// gives credentials; nil has this process start it.
	Broker func() (*awskms.Broker, error)
}

// daemon is one running instance.
type daemon struct {
	source   Source
	observer *observer
	notify   *notifier
	custody  *custody.Custodian
	loaded   loaded
	stateDir string
	anchor   func() string // nil: probes carry nothing
	keepers  *keepers
	sandbox  *harden.Result // nil: not confined
	broker   *awskms.Broker // nil: no program gives credentials, or this process starts it
}

// loaded is the configuration in force.
type loaded struct {
	hash   string
	config *config.Config
	keks   map[string]keys.KEK
}

// Run serves until ctx ends. The socket listens before the first call to any
// KMS, and stays up whatever the KMS does.
func Run(ctx context.Context, o Options) error {
	removed := awskms.ScrubEnvironment()
	first, err := start(ctx, o)
	if err != nil {
		return err
	}
	d, c := first.daemon, first.daemon.loaded.config
	log := d.observer.log
	if len(removed) > 0 {
		log.Warn("environment ignored: endpoints and CA bundles come from the configuration alone", "names", removed)
	}
	sock, err := listenSocket(c.Socket.Path, o.Passed)
	if err != nil {
		return err
	}
	web, err := listenHTTP(c.ListenAddress)
	if err != nil {
		return errors.Join(err, sock.Close())
	}
	server := plugin.NewServer(plugin.NewService(d.custody, d.observer), plugin.ServerConfig{
		Credentials: d.peers(c), Observer: d.observer, Log: log,
	})
	d.confine(ctx, o.Confine)
	log.Info("serving", "socket", c.Socket.Path, "passed", o.Passed != nil, "clusterID", c.ClusterID, "version", cli.Version(), "http", address(web))
	return d.serve(ctx, o, first.registry, server, sock, web)
}

// serve runs all parts until ctx ends or one fails, then drains.
func (d *daemon) serve(ctx context.Context, o Options, reg *prometheus.Registry, server *grpc.Server, sock net.Listener, web net.Listener) error {
	// The audit log outlives the calls that it records.
	auditCtx, stopAudit := context.WithCancel(context.WithoutCancel(ctx))
	auditDone := make(chan error, 1)
	go func() { auditDone <- d.observer.audit.Run(auditCtx) }()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.keepers.run(ctx) })
	g.Go(func() error { return d.custody.Run(ctx) })
	g.Go(func() error { return server.Serve(sock) })
	g.Go(func() error {
		<-ctx.Done()
		d.notify.stopping()
		drain(server, sock)
		return nil
	})
	g.Go(func() error {
		d.observer.publish(ctx, d.custody.Report, d.keepers.report)
		return nil
	})
	g.Go(func() error { return d.watch(ctx, o.Reload) })
	g.Go(func() error {
		d.notify.heartbeat(ctx, func() { d.custody.Report() })
		return nil
	})
	d.notify.ready()
	if web != nil {
		metricsHandler := promhttp.HandlerFor(d.observer.Gatherer(reg), promhttp.HandlerOpts{})
		g.Go(func() error {
			return httpserver.Run(ctx, web, httpserver.Config{Ready: d.custody.Ready, Metrics: metricsHandler})
		})
	}
	err := g.Wait()
	stopAudit()
	err = errors.Join(err, <-auditDone, d.observer.audit.Close())
	d.observer.log.Info("stopped")
	return err
}

// drain lets calls in flight finish. Serve closes the listener, which removes
// only our own socket file; who dials a socket that systemd holds waits for the
// next process.
func drain(s *grpc.Server, sock net.Listener) {
	if held, ok := sock.(*unixsocket.Adopted); ok {
		held.Pause()
	}
	force := time.AfterFunc(drainTimeout, s.Stop)
	defer force.Stop()
	s.GracefulStop()
}

type started struct {
	daemon   *daemon
	registry *prometheus.Registry
}

// start loads the configuration and builds everything that listens to nothing.
func start(ctx context.Context, o Options) (started, error) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m := metrics.New(reg, cli.Version())
	broker, err := broker(ctx, o.Broker)
	if err != nil {
		return started{}, err
	}
	choice, err := o.Source.first(ctx, links{m, broker})
	if err != nil {
		return started{}, err
	}
	c := choice.config
	obs := &observer{Metrics: m, log: newLogger(o.Log, c.LogLevel), changed: make(chan struct{}, 1)}
	obs.audit, err = audit.Open(audit.Config{Path: c.Audit.Path, Refuse: c.Audit.OnFailure == "refuse", Sync: audit.Sync(c.Audit.Sync), OnError: func(err error) {
		m.AuditFailed()
		obs.log.Error("audit record is lost", "error", err.Error())
	}})
	if err != nil {
		return started{}, cli.WithHint(err, "audit.path names it; leave it out for no audit log")
	}
	d := &daemon{source: o.Source, observer: obs, notify: &notifier{to: o.Notify, log: obs.log}, stateDir: c.StateDir, keepers: newKeepers(obs), broker: broker}
	if c.Audit.Anchor {
		d.anchor = obs.audit.Anchor
	}
	if err := d.adopt(choice, o.Force); err != nil {
		return started{}, err
	}
	return started{d, reg}, nil
}

// adopt builds custody on the first configuration that may follow what this
// instance remembers: the file on disk, else the last one that was in force.
func (d *daemon) adopt(choice candidate, force bool) error {
	for {
		c, err := custody.New(custody.Config{Ring: choice.ring, Tuning: tuning(choice.config), StateDir: d.stateDir, Force: force, Observer: d.observer, Anchor: d.anchor})
		if err == nil {
			d.custody = c
			d.inForce(choice)
			if choice.rejected != nil {
				d.rejected(choice.rejected)
			}
			return nil
		}
		next := choice.fallback(err)
		if next == nil {
			return err
		}
		choice = *next
	}
}

// inForce notes a configuration that serves from now on.
func (d *daemon) inForce(c candidate) {
	d.loaded = loaded{hash: c.hash, config: c.config, keks: c.keks}
	d.keepers.set(c.ring.Entries())
	d.observer.Reloaded(true, c.hash)
	d.observer.bounds(tuning(c.config))
	d.observer.DiskDiffers(c.rejected != nil)
	d.notify.diskDiffers(c.rejected != nil)
	if err := d.source.keep(c); err != nil {
		d.observer.log.Error("last good configuration cannot be kept for the next start", "error", err.Error())
	}
	for _, k := range c.config.Keys {
		d.oneRegion(k)
		if k.AWSKMS != nil && k.AWSKMS.AllowStaticCredentials {
			d.observer.log.Warn("static credentials are allowed for a key: they do not expire and work from anywhere", "key", k.Name)
		}
	}
}

// oneRegion says that a key cannot go elsewhere when its region is away.
func (d *daemon) oneRegion(k config.Key) {
	if k.AWSKMS == nil || len(k.AWSKMS.Replicas) > 0 || k.Role == keys.RoleRetired {
		return
	}
	hint := "a single-Region key has no replicas; alsoWrapWith lets a second key open what it wraps"
	if strings.Contains(k.AWSKMS.KeyARN, ":key/mrk-") {
		hint = "it is a multi-Region key: name its replicas in awskms.replicas"
	}
	d.observer.log.Warn("key is reached in one region alone and cannot fail over", "key", k.Name, "hint", hint)
}

// rejected tells of a file on disk that is not in force.
func (d *daemon) rejected(err error) {
	d.observer.Reloaded(false, "")
	d.observer.DiskDiffers(true)
	hint := ""
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		hint = h.Hint()
	}
	d.notify.diskDiffers(true)
	d.observer.log.Error("configuration on disk is not in force; the last good one serves", "error", err.Error(), "hint", hint)
	_ = d.observer.audit.Record(audit.Record{Op: "reload", Outcome: "refused", Error: err.Error()}) // counted by OnError
}

func (d *daemon) peers(c *config.Config) *unixsocket.PeerCredentials {
	return unixsocket.NewPeerCredentials(c.Socket.AllowedUIDs, func(p unixsocket.Peer, err error) {
		d.observer.PeerRefused()
		hint := "add its uid to socket.allowedUIDs if it is kube-apiserver"
		if errors.Is(err, unixsocket.ErrFull) {
			hint = "find out what keeps connections open: ss -xp"
		}
		d.observer.log.Error("peer refused", "uid", p.UID, "pid", p.PID, "error", err.Error(), "hint", hint)
		_ = d.observer.audit.Record(audit.Record{Op: "connect", Outcome: "refused", Error: fmt.Sprintf("%v, pid %d", err, p.PID)})
	})
}

func newLogger(w io.Writer, level string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // validated by package config
	return slog.New(newSampler(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})))
}
