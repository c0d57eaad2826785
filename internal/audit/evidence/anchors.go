package evidence

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/pkg/keys"
)

// Anchor is a head that a probe carried into the KMS' log.
type Anchor struct {
	audit.Head
	At    time.Time // when it was first logged
	Event string    // id of that event
}

// Anchors are by chain and number.
type Anchors map[string]map[uint64][]Anchor

// event is what is read of an event of CloudTrail
// (https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html).
type event struct {
	EventSource string    `json:"eventSource"`
	EventName   string    `json:"eventName"`
	EventTime   time.Time `json:"eventTime"`
	EventID     string    `json:"eventID"`
	ErrorCode   string    `json:"errorCode"`
	Parameters  *struct {
		Context map[string]any `json:"encryptionContext"`
	} `json:"requestParameters"`
}

// document is any of the forms in which events come: a file of a trail in S3, the
// answer of `aws cloudtrail lookup-events`, or an event by itself.
type document struct {
	Records []event `json:"Records"`
	Events  []struct {
		CloudTrailEvent string `json:"CloudTrailEvent"`
	} `json:"Events"`
	event
}

// LoadAnchors reads files of CloudTrail events, also compressed ones. What is no
// successful probe of this plugin is passed over.
func LoadAnchors(files []string) (Anchors, error) {
	out := Anchors{}
	for _, f := range files {
		in, closer, err := open(f)
		if err != nil {
			return nil, fmt.Errorf("anchors: %w", err)
		}
		err = errors.Join(out.read(in), closer.Close())
		if err != nil {
			return nil, fmt.Errorf("anchors: %q is not JSON of CloudTrail: %w", f, err)
		}
	}
	return out, nil
}

func (a Anchors) read(in io.Reader) error {
	dec := json.NewDecoder(in)
	for n := 0; ; n++ {
		var d document
		err := dec.Decode(&d)
		if errors.Is(err, io.EOF) && n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if d.Records == nil && d.Events == nil && d.EventSource == "" {
			return errors.New("there are no events in it")
		}
		a.add(d.event)
		for _, e := range d.Records {
			a.add(e)
		}
		for _, wrapped := range d.Events {
			var e event
			if err := json.Unmarshal([]byte(wrapped.CloudTrailEvent), &e); err != nil {
				return fmt.Errorf("CloudTrailEvent: %w", err)
			}
			a.add(e)
		}
	}
}

// add takes a probe that the KMS served. One that it denied proves nothing: anyone
// can send it.
func (a Anchors) add(e event) {
	if e.EventSource != "kms.amazonaws.com" || e.ErrorCode != "" || e.Parameters == nil {
		return
	}
	text, _ := e.Parameters.Context[keys.ContextAudit].(string)
	h, err := audit.ParseAnchor(text)
	if err != nil || e.Parameters.Context[keys.ContextType] != keys.BlobProbe.String() {
		return
	}
	if a[h.Chain] == nil {
		a[h.Chain] = map[uint64][]Anchor{}
	}
	known := a[h.Chain][h.Seq]
	i := slices.IndexFunc(known, func(x Anchor) bool { return x.Head == h })
	switch {
	case i < 0:
		a[h.Chain][h.Seq] = append(known, Anchor{h, e.EventTime, e.EventID})
	case e.EventTime.Before(known[i].At):
		known[i].At, known[i].Event = e.EventTime, e.EventID
	}
}

func (a Anchors) chains() []string { return slices.Sorted(maps.Keys(a)) }

// last is the anchor of a chain with the highest number.
func (a Anchors) last(chain string) (best Anchor, ok bool) {
	for _, list := range a[chain] {
		if list[0].Seq > best.Seq {
			best, ok = list[0], true
		}
	}
	return best, ok
}

func (a Anchors) count() (n int) {
	for _, chain := range a {
		for _, list := range chain {
			n += len(list)
		}
	}
	return n
}
