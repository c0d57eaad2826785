package status

import (
	"cmp"
	"slices"
	"sort"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
)

func decode(f map[string]*dto.MetricFamily) *Plugin {
	// A plugin of another version may not have them all.
	value := func(name string) float64 {
		if m := f[name].GetMetric(); len(m) > 0 {
			return m[0].GetGauge().GetValue()
		}
		return 0
	}
	p := &Plugin{Ready: value("kms_plugin_ready") == 1, DiskDiffers: value("kms_plugin_config_disk_differs") == 1, LocalKEKs: int(value("kms_plugin_local_keks"))}
	byName := map[string]*Key{}
	for _, m := range f["kms_plugin_key_state"].GetMetric() {
		if m.GetGauge().GetValue() != 1 {
			continue
		}
		l := Labels(m)
		k := byName[l["key"]]
		if k == nil {
			k = &Key{Name: l["key"]}
			byName[k.Name] = k
		}
		if l["op"] == "wrap" {
			k.Wrap = l["state"]
		} else {
			k.Unwrap = l["state"]
		}
	}
	for _, m := range f["kms_plugin_key_info"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil && m.GetGauge().GetValue() == 1 {
			k.Role, k.Active = Labels(m)["role"], Labels(m)["active"] == "true"
		}
	}
	for _, m := range f["kms_plugin_last_good_probe_timestamp_seconds"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil {
			t := moment(m)
			k.LastGood = &t
		}
	}
	decodeCredentials(f, byName)
	decodeRegions(f, byName)
	decodeRevocation(f, byName)
	for _, m := range f["process_start_time_seconds"].GetMetric() {
		p.Started = moment(m)
	}
	for _, m := range f["kms_plugin_revocation_bound_seconds"].GetMetric() {
		if p.Bounds == nil {
			p.Bounds = map[string]float64{}
		}
		p.Bounds[Labels(m)["class"]] = m.GetGauge().GetValue()
	}
	for _, m := range f["kms_plugin_build_info"].GetMetric() {
		p.Version = Labels(m)["version"]
	}
	for _, m := range f["kms_plugin_key_id_hash_info"].GetMetric() {
		if m.GetGauge().GetValue() == 1 {
			p.KeyIDHash = Labels(m)["key_id_hash"]
		}
	}
	for _, m := range f["kms_plugin_config_hash_info"].GetMetric() {
		if m.GetGauge().GetValue() == 1 {
			p.ConfigHash = Labels(m)["sha256"]
		}
	}
	for _, m := range f["kms_plugin_local_kek_info"].GetMetric() {
		if m.GetGauge().GetValue() == 1 {
			p.LocalKEKIDs = append(p.LocalKEKIDs, Labels(m)["local_kek"])
		}
	}
	sort.Strings(p.LocalKEKIDs)
	for _, m := range f["kms_plugin_retired_key_opens_total"].GetMetric() {
		if p.RetiredOpens == nil {
			p.RetiredOpens = map[string]int{}
		}
		p.RetiredOpens[Labels(m)["key"]] += int(m.GetCounter().GetValue())
	}
	decodeHardening(f, p)
	for _, k := range byName {
		p.Keys = append(p.Keys, *k)
	}
	sort.Slice(p.Keys, func(i, j int) bool { return p.Keys[i].Name < p.Keys[j].Name })
	return p
}

func decodeHardening(f map[string]*dto.MetricFamily, p *Plugin) {
	for _, m := range f["kms_plugin_hardening_info"].GetMetric() {
		if m.GetGauge().GetValue() == 1 {
			if p.Hardening == nil {
				p.Hardening = map[string]string{}
			}
			p.Hardening[Labels(m)["measure"]] = Labels(m)["state"]
		}
	}
}

func decodeCredentials(f map[string]*dto.MetricFamily, byName map[string]*Key) {
	for _, m := range f["kms_plugin_credential_info"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil && m.GetGauge().GetValue() == 1 {
			k.Credential = &Credential{Kind: Labels(m)["kind"], Source: Labels(m)["source"]}
		}
	}
	for _, m := range f["kms_plugin_credential_expiry_timestamp_seconds"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil && k.Credential != nil {
			t := time.Unix(int64(m.GetGauge().GetValue()), 0).UTC()
			k.Credential.Ends = &t
		}
	}
	for _, m := range f["kms_plugin_credential_renewal_failing"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil && k.Credential != nil {
			k.Credential.Failing = m.GetGauge().GetValue() == 1
		}
	}
}

// Labels are the labels of a metric.
func Labels(m *dto.Metric) map[string]string {
	out := map[string]string{}
	for _, l := range m.GetLabel() {
		out[l.GetName()] = l.GetValue()
	}
	return out
}

// decodeRegions lists the regions that have a state, the one in use first.
func decodeRegions(f map[string]*dto.MetricFamily, byName map[string]*Key) {
	for _, m := range f["kms_plugin_region_state"].GetMetric() {
		l := Labels(m)
		k := byName[l["key"]]
		if k == nil || m.GetGauge().GetValue() != 1 {
			continue
		}
		i := slices.IndexFunc(k.Regions, func(r Region) bool { return r.Name == l["region"] })
		if i < 0 {
			i = len(k.Regions)
			k.Regions = append(k.Regions, Region{Name: l["region"]})
		}
		if l["op"] == "wrap" {
			k.Regions[i].Wrap = l["state"]
		} else {
			k.Regions[i].Unwrap = l["state"]
		}
	}
	for _, m := range f["kms_plugin_region_in_use"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil && m.GetGauge().GetValue() == 1 {
			for i := range k.Regions {
				k.Regions[i].InUse = k.Regions[i].Name == Labels(m)["region"]
			}
		}
	}
	for _, k := range byName {
		slices.SortFunc(k.Regions, func(a, b Region) int {
			if a.InUse != b.InUse {
				if a.InUse {
					return -1
				}
				return 1
			}
			return strings.Compare(a.Name, b.Name)
		})
	}
}

func decodeRevocation(f map[string]*dto.MetricFamily, byName map[string]*Key) {
	place := map[string]float64{}
	for _, m := range f["kms_plugin_key_recipient_info"].GetMetric() {
		l := Labels(m)
		if k := byName[l["key"]]; k != nil && !slices.Contains(k.Recipients, l["recipient"]) {
			k.Recipients = append(k.Recipients, l["recipient"])
			place[k.Name+"/"+l["recipient"]] = m.GetGauge().GetValue()
		}
	}
	for _, k := range byName {
		slices.SortFunc(k.Recipients, func(a, b string) int { return cmp.Compare(place[k.Name+"/"+a], place[k.Name+"/"+b]) })
	}
	for _, m := range f["kms_plugin_key_closed_timestamp_seconds"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil {
			k.Closed = &Closed{Class: Labels(m)["class"], Since: moment(m)}
		}
	}
	for _, m := range f["kms_plugin_last_open_timestamp_seconds"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil {
			t := moment(m)
			k.LastOpened = &t
		}
	}
}

func moment(m *dto.Metric) time.Time {
	return time.UnixMilli(int64(m.GetGauge().GetValue() * 1000)).UTC()
}
