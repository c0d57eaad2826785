package keys

// Region is a KEK asked in one region alone: it never goes to another one.
type Region struct {
	Name string
	KEK  KEK
}

// Regional is a KEK that is to be had in several regions: the same key and the
// same material, but with a state, a policy and outages of its own in each. Wrap
// and Unwrap go to another region when one does not answer. Its identity has no
// region.
type Regional interface {
	KEK

	// Regions are all of them, in order of preference. A prober asks each: its
	// answers decide where Wrap and Unwrap go first. At least two.
	Regions() []Region

	// InUse names the region that the next call goes to first.
	InUse() string
}

// Quorum says whose word on the state of a key counts, where several regions
// have one.
type Quorum string

// The quorums. The zero value is QuorumAny.
const (
	QuorumAny Quorum = "any" // a key disabled or gone in one region is a key taken away
	QuorumAll Quorum = "all" // it is only taken away where no region serves it any more
)
