#!/bin/bash
# Process 1 of a node's namespaces (mount, network, pid, uts, ipc; then cgroup).
# It makes a machine out of them on which a kubelet may do as it likes: what it
# writes goes to $NODE_DIR or to memory, and the rest of the host is read-only.
# It needs NODE_DIR, NODE_NAME, NODE_IP, NODE_GATEWAY, NODE_CGROUP and NODE_PATH.
set -euo pipefail

# Into cgroups of its own, and from there into a namespace where they are the root.
if [ "${1:-}" != inside ]; then
  for d in /sys/fs/cgroup/*/"$NODE_CGROUP"; do
    [ -L "${d%/*}" ] || echo 0 > "$d/cgroup.procs"
  done
  exec unshare --cgroup -- /bin/bash "$0" inside
fi

N=$NODE_DIR
export PATH=$NODE_PATH HOME=/tmp
mount --make-rprivate /
mount -t proc proc /proc
mkdir -p "$N"/{mnt,sysctl,overlay,kubelet,etcd,containerd,kubernetes,kms-plugin,state,audit,pods}

# cgroups: what is below our own directories, and nothing above.
mount -t tmpfs cgroups "$N/mnt"
for c in /sys/fs/cgroup/*; do
  if [ -L "$c" ]; then
    cp -P "$c" "$N/mnt/"
  elif [ -d "$c/$NODE_CGROUP" ]; then
    mkdir "$N/mnt/${c##*/}"
    mount --bind "$c/$NODE_CGROUP" "$N/mnt/${c##*/}"
  fi
done
umount --recursive --lazy /sys
mount -t sysfs sysfs /sys
mount --move "$N/mnt" /sys/fs/cgroup

# Files: overlays where programs write, our own directories where the tests look.
for d in etc var opt; do
  mkdir -p "$N/overlay/$d"/{upper,work}
  mount -t overlay overlay -o "lowerdir=/$d,upperdir=$N/overlay/$d/upper,workdir=$N/overlay/$d/work" "/$d"
done
own() {
  mkdir -p "$2"
  mount --bind "$N/$1" "$2"
}
own kubelet /var/lib/kubelet
own etcd /var/lib/etcd
own containerd /var/lib/containerd
own kubernetes /etc/kubernetes
own kms-plugin /etc/kms-plugin
own state /var/lib/kms-plugin
own audit /var/log/kms-plugin
own pods /var/log/pods
mkdir -p /var/log/containers
mount --make-rshared /var/lib/kubelet
mount -t tmpfs -o mode=755 tmpfs /run
# The directory of the run may be below /tmp; programs are in it too.
R=${N%/*}
mkdir /run/node
mount --bind "$R" /run/node
mount -t tmpfs -o mode=1777 tmpfs /tmp
if [ ! -d "$R" ]; then mkdir -p "$R"; fi
mount --bind /run/node "$R"
umount /run/node
mount -o remount,bind,ro /

# kubelet sets these for the whole kernel: let it set copies.
for s in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  [ -e "/proc/sys/$s" ] || continue
  cat "/proc/sys/$s" > "$N/sysctl/${s//\//.}"
  mount --bind "$N/sysctl/${s//\//.}" "/proc/sys/$s"
done

# Network: the harness gives us eth0.
hostname "$NODE_NAME"
printf '127.0.0.1 localhost\n%s %s\n' "$NODE_IP" "$NODE_NAME" > /etc/hosts
: > /etc/resolv.conf
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip link set lo up
ip addr add "$NODE_IP/24" dev eth0
ip link set eth0 up
ip route add default via "$NODE_GATEWAY"
echo 1 > /proc/sys/net/ipv4/ip_forward

# restrict_oom_score_adj: runc may lack CAP_SYS_RESOURCE, and then no sandbox starts.
cat > /etc/containerd-node.toml <<'C'
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "kms-plugin.test/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
C
set +e
containerd -c /etc/containerd-node.toml >> "$N/containerd.log" 2>&1 &
touch "$N/up"

# The unit of kubelet: kubeadm writes its configuration and expects it to start.
while :; do
  if [ -f /var/lib/kubelet/config.yaml ]; then
    KUBELET_KUBEADM_ARGS=
    [ ! -f /var/lib/kubelet/kubeadm-flags.env ] || . /var/lib/kubelet/kubeadm-flags.env
    # shellcheck disable=SC2086 # it is a list of flags
    kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
      --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS >> "$N/kubelet.log" 2>&1
    echo "kubelet ended with $?" >> "$N/kubelet.log"
  fi
  sleep 0.5
done
