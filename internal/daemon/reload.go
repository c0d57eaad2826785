package daemon

import (
	"context"
	"os"
	"time"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/config"
)

// watch reloads when the file's bytes change or a signal asks for it. It compares
// hashes of what it reads rather than watching inodes: that sees every way of
// replacing a file, also through the symbolic links of a mounted ConfigMap.
func (d *daemon) watch(ctx context.Context, signals <-chan os.Signal) error {
	if d.source.Fixed != nil {
		<-ctx.Done()
		return nil
	}
	told := map[string]bool{}
	refused := "" // hash of a file that was refused already
	for {
		timer := time.NewTimer(d.loaded.config.Reload.Interval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-signals:
			timer.Stop()
			d.notify.reloading()
			if err := d.observer.audit.Reopen(); err != nil {
				d.observer.log.Error("audit log cannot be opened again", "error", err.Error())
			}
			refused = ""
		case <-timer.C:
		}
		d.moved(told)
		refused = d.reload(ctx, refused)
		d.notify.reloaded()
	}
}

// reload puts a changed file in force, or changes nothing. It returns the hash
// of the file it refused, so that it is reported once.
func (d *daemon) reload(ctx context.Context, refused string) string {
	data, err := d.source.read()
	if err != nil {
		if refused != "unreadable" {
			d.rejected(err)
		}
		return "unreadable"
	}
	hash := config.Hash(data)
	switch hash {
	case d.loaded.hash:
		d.observer.DiskDiffers(false)
		d.notify.diskDiffers(false)
		return ""
	case refused:
		return refused
	}
	d.notify.reloading()
	var next candidate
	if err = d.outside(ctx, data); err == nil {
		next, err = parse(ctx, data, links{d.observer.Metrics, d.broker}, d.loaded.keks)
	}
	if err == nil {
		err = d.restartNeeded(next.config)
	}
	if err == nil {
		err = d.custody.Replace(next.ring, tuning(next.config))
	}
	if err != nil {
		d.rejected(err)
		return hash
	}
	d.inForce(next)
	d.observer.log.Info("configuration reloaded", "sha256", hash)
	_ = d.observer.audit.Record(audit.Record{Op: "reload", Outcome: "ok"}) // counted by OnError
	return ""
}

// restartNeeded refuses a file whose changes a reload would silently not make.
func (d *daemon) restartNeeded(c *config.Config) error {
	if c.ClusterID != d.loaded.config.ClusterID {
		return config.Problems{{Line: c.Line("clusterID"), Path: "clusterID", Message: "everything stored is bound to it; it cannot change",
			Hint: "put " + d.loaded.config.ClusterID + " back"}}
	}
	for _, p := range config.Compare(d.loaded.config, c) {
		if p.Note && p.Hint == config.RestartHint {
			return config.Problems{p}
		}
	}
	return nil
}
