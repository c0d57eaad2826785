package stored

import "bytes"

// Key is what a key in etcd tells.
type Key struct {
	Resource GroupResource
	// Exempt values are never encrypted, whatever the EncryptionConfiguration
	// says (kube-apiserver's own bookkeeping).
	Exempt bool
	// Known is false for a resource that is neither a custom resource nor one
	// of kube-apiserver 1.37: its group is a guess, and empty.
	Known bool
	// Place is how many segments below the prefix tell the resource; what follows
	// is [namespace/]name.
	Place int
	// Outside keys are not below the prefix, and not kube-apiserver's.
	Outside bool
}

// exempt are the keys that kube-apiserver keeps beside its prefix
// (k8s.io/apiserver pkg/storage/etcd3/compact.go) or never encrypts
// (the upstream test TestEncryptAll lists them).
var exempt = map[string]bool{
	"masterleases": true, "peerserverleases": true, "ranges/serviceips": true, "ranges/servicenodeports": true,
	"ranges/secondaryserviceips": true, "compact_rev_key": true,
}

// Beside tells of a key that is not below the prefix whether kube-apiserver keeps it
// there, as the record of its compactions.
func Beside(key []byte) bool { return exempt[string(firstSegment(key))] }

// ParseKey finds the resource of a key below prefix, "/registry" by default.
// Keys elsewhere have the resource "(outside <prefix>)".
func ParseKey(key []byte, prefix string) Key {
	rest, ok := bytes.CutPrefix(key, []byte(prefix+"/"))
	if !ok {
		if Beside(key) {
			return Key{Resource: GroupResource{Resource: string(key)}, Exempt: true, Known: true}
		}
		return Key{Resource: GroupResource{Resource: "(outside " + prefix + ")"}, Outside: true}
	}
	first := firstSegment(rest)
	two := rest
	if len(rest) > len(first) {
		two = rest[:len(first)+1+len(firstSegment(rest[len(first)+1:]))]
	}
	if g, ok := builtin[string(two)]; ok {
		return Key{Resource: g, Known: true, Place: 1 + bytes.Count(two, []byte("/"))}
	}
	if g, ok := builtin[string(first)]; ok {
		return Key{Resource: g, Known: true, Place: 1}
	}
	if exempt[string(first)] || exempt[string(two)] {
		return Key{Resource: GroupResource{Resource: string(two[:exemptLen(first, two)])}, Exempt: true, Known: true}
	}
	if bytes.IndexByte(first, '.') >= 0 && len(two) > len(first)+1 {
		// Groups of custom resources have a dot (apiextensions validation).
		return Key{Resource: GroupResource{string(first), string(two[len(first)+1:])}, Known: true, Place: 2}
	}
	return Key{Resource: GroupResource{Resource: string(first)}}
}

func exemptLen(first, two []byte) int {
	if exempt[string(first)] {
		return len(first)
	}
	return len(two)
}

func firstSegment(b []byte) []byte {
	if i := bytes.IndexByte(b, '/'); i >= 0 {
		return b[:i]
	}
	return b
}

// groups are the groups of kube-apiserver 1.37 with their resources. A test holds
// them against upstream's list. Resources of older releases stay.
var groups = map[string][]string{
	"": {"configmaps", "endpoints", "events", "limitranges", "namespaces", "nodes", "persistentvolumeclaims", "persistentvolumes",
		"pods", "podtemplates", "replicationcontrollers", "resourcequotas", "secrets", "serviceaccounts", "services"},
	"admissionregistration.k8s.io": {"mutatingadmissionpolicies", "mutatingadmissionpolicybindings", "mutatingwebhookconfigurations",
		"validatingadmissionpolicies", "validatingadmissionpolicybindings", "validatingwebhookconfigurations"},
	"apps":                         {"controllerrevisions", "daemonsets", "deployments", "replicasets", "statefulsets"},
	"autoscaling":                  {"horizontalpodautoscalers"},
	"batch":                        {"cronjobs", "jobs"},
	"certificates.k8s.io":          {"certificatesigningrequests", "clustertrustbundles", "podcertificaterequests"},
	"coordination.k8s.io":          {"leasecandidates", "leases"},
	"discovery.k8s.io":             {"endpointslices"},
	"flowcontrol.apiserver.k8s.io": {"flowschemas", "prioritylevelconfigurations"},
	"internal.apiserver.k8s.io":    {"storageversions"},
	"lifecycle.k8s.io":             {"evictionrequests", "evictions"},
	"networking.k8s.io":            {"ingressclasses", "ingresses", "ipaddresses", "networkpolicies", "servicecidrs"},
	"node.k8s.io":                  {"runtimeclasses"},
	"policy":                       {"poddisruptionbudgets", "podsecuritypolicies"},
	"rbac.authorization.k8s.io":    {"clusterrolebindings", "clusterroles", "rolebindings", "roles"},
	"resource.k8s.io": {"deviceclasses", "devicetaintrules", "podschedulingcontexts", "resourceclaimparameters", "resourceclaims",
		"resourceclaimtemplates", "resourceclassparameters", "resourceclasses", "resourcepoolstatusrequests", "resourceslices"},
	"scheduling.k8s.io":       {"compositepodgroups", "podgroups", "priorityclasses", "workloads"},
	"storage.k8s.io":          {"csidrivers", "csinodes", "csistoragecapacities", "storageclasses", "volumeattachments", "volumeattributesclasses"},
	"storagemigration.k8s.io": {"storageversionmigrations"},
}

// places are the resources that do not lie under their own name
// (pkg/kubeapiserver SpecialDefaultResourcePrefixes).
var places = map[string]string{
	"replicationcontrollers": "controllers", "endpoints": "services/endpoints", "nodes": "minions",
	"services": "services/specs", "ingresses": "ingress",
}

// builtin finds a resource by its place below the prefix.
var builtin = placesOf(groups)

func placesOf(groups map[string][]string) map[string]GroupResource {
	m := map[string]GroupResource{}
	for group, resources := range groups {
		for _, r := range resources {
			place := r
			if p, ok := places[r]; ok {
				place = p
			}
			m[place] = GroupResource{group, r}
		}
	}
	return m
}
