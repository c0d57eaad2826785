// Package etcdstore reads every key of an etcd as it was at one revision, live or
// from a snapshot file, and never writes. It must not know what the values mean.
package etcdstore

import (
	"context"
	"time"
)

// KV is one key as of the revision. Its slices are valid until Visit returns.
type KV struct {
	Key, Value  []byte
	ModRevision int64
}

// Info is what is being read.
type Info struct {
	Kind      string    `json:"kind"` // live or snapshot
	ClusterID string    `json:"clusterID,omitempty"`
	Endpoints []string  `json:"endpoints,omitempty"`
	File      string    `json:"file,omitempty"`
	SHA256    string    `json:"sha256,omitempty"` // of the whole file, as sha256sum prints it
	Verified  bool      `json:"verified"`         // the snapshot's own hash was there and right
	FileTime  time.Time `json:"fileTime,omitzero"`
	Bytes     int64     `json:"bytes,omitempty"` // of the file
	Revision  int64     `json:"revision"`
	Compacted int64     `json:"compacted,omitempty"` // history before this revision is gone; 0 if it cannot be told
	Version   string    `json:"etcdVersion,omitempty"`
	Keys      int64     `json:"-"` // about how many there are, for a progress bar
}

// Visit takes one key; an error ends the scan.
type Visit func(KV) error

// Source is an etcd.
type Source interface {
	// Scan visits every key once, as of one revision, in no promised order. It
	// calls begin before the first key, and again if it must start over because
	// the revision was compacted away meanwhile; what was visited before then
	// counts no more. An error means that the scan is not complete.
	Scan(ctx context.Context, begin func(Info) (Visit, error)) error
}

// Walker is an etcd whose keys can be visited at any pace.
type Walker interface {
	Source
	// Walk visits keys in their order, each once at most and as it is when it is
	// read. It holds on to no revision, so that nothing is lost to it by
	// compaction, however long the visits take. A key that is there all the time is
	// visited; of what is written meanwhile nothing is certain, so what a walk finds
	// proves nothing: Scan does.
	Walk(ctx context.Context, begin func(Info) (Visit, error)) error
}
