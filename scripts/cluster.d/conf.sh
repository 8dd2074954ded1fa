# What this machine can do, and the configuration files that follow from it. Sourced by scripts/cluster.
# shellcheck shell=bash disable=SC2153 # the options are set there

CONTROLLERS=(freezer cpuset memory devices)

# slurmd's cgroup/v1 plugin makes directories in these four hierarchies.
can_cgroup() {
  local c dir
  for c in "${CONTROLLERS[@]}"; do
    dir=/sys/fs/cgroup/$c/swapserve-probe
    mkdir "$dir" 2>/dev/null && rmdir "$dir" || return 1
  done
}

# Sets NET, PROCTRACK, TASK, CONSTRAIN_CORES and DEVICES, and says where less than usual is had.
choose_mode() {
  if [ "$NET" = auto ]; then
    NET=netns
    can_netns || {
      NET=loopback
      warn "no network namespaces here: all nodes share this host's network and name"
    }
  fi
  if [ "$PROCTRACK" = auto ]; then
    PROCTRACK=cgroup
    can_cgroup || {
      PROCTRACK=linuxproc
      warn "cgroup v1 cannot be written here: proctrack/linuxproc, and nothing bounds a job's cores, memory and devices"
    }
  elif [ "$PROCTRACK" = cgroup ]; then
    can_cgroup || die "--proctrack cgroup needs the cgroup v1 hierarchies ${CONTROLLERS[*]}, writable"
  fi
  TASK=task/none CONSTRAIN_CORES=no CONSTRAIN=no
  if [ "$PROCTRACK" = cgroup ]; then
    TASK=task/cgroup CONSTRAIN=yes
    if [ "$CPUS" -le "$(nproc)" ]; then
      TASK=task/affinity,task/cgroup CONSTRAIN_CORES=yes
    else
      warn "$CPUS CPUs a node, $(nproc) here: jobs are not bound to cores"
    fi
  fi
  printf 'nodes=%s net=%s proctrack=%s task=%s gpus=%s\n' "$NODES" "$NET" "$PROCTRACK" "$TASK" "$GPUS" >"$LAB/run/mode"
}

# GRES wants character devices. 195 is the major number of NVIDIA's; nothing stands behind ours (ENXIO).
make_devices() {
  local i
  for ((i = 0; i < GPUS; i++)); do
    mknod -m 666 "$LAB/dev/nvidia$i" c 195 "$i" 2>/dev/null || {
      warn "device files cannot be made here: the nodes have no GPUs"
      GPUS=0
      rm -f "$LAB"/dev/nvidia*
    }
  done
}

write_conf() {
  make_devices
  write_slurm_conf >"$LAB/etc/slurm.conf"
  write_gres_conf >"$LAB/etc/gres.conf"
  cat >"$LAB/etc/cgroup.conf" <<EOF
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainCores=$CONSTRAIN_CORES
ConstrainRAMSpace=$CONSTRAIN
ConstrainSwapSpace=$CONSTRAIN
ConstrainDevices=$CONSTRAIN
AllowedSwapSpace=0
EOF
}

write_gres_conf() {
  [ "$GPUS" -gt 0 ] || return 0
  local i
  echo "AutoDetect=off"
  for i in $(seq "$NODES"); do
    echo "NodeName=n$i Name=gpu Type=fake File=$LAB/dev/nvidia[0-$((GPUS - 1))]"
  done
}

write_slurm_conf() {
  local host=127.0.0.1 i
  [ "$NET" = loopback ] || host=$SUBNET.1
  cat <<EOF
ClusterName=lab
SlurmctldHost=$(hostname -s)($host)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$LAB/run/munge.sock
CryptoType=crypto/munge
SlurmctldPort=27000
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/run/slurmctld.pid
SlurmdPidFile=$LAB/run/slurmd.%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd.%n.log
LogTimeFormat=iso8601_ms
MailProg=/bin/true
MpiDefault=none
# Ports for srun --resv-ports, one way to an endpoint port that no other job has.
MpiParams=ports=28000-28099
SwitchType=switch/none
ProctrackType=proctrack/$PROCTRACK
TaskPlugin=$TASK
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
AccountingStorageType=accounting_storage/none
# Without slurmdbd, how a job ended is read here.
JobCompType=jobcomp/filetxt
JobCompLoc=$LAB/log/jobs.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Nodes may claim more CPUs than the machine has.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=$KILL_WAIT
OverTimeLimit=0
MinJobAge=3600
DefMemPerCPU=256
EOF
  [ "$GPUS" -eq 0 ] || echo "GresTypes=gpu"
  for i in $(seq "$NODES"); do
    local name=$host address=$host gres=
    [ "$NET" = loopback ] && name=$(hostname -s) || name=n$i address=$(node_address "$i")
    [ "$GPUS" -eq 0 ] || gres="Gres=gpu:fake:$GPUS"
    echo "NodeName=n$i NodeHostname=$name NodeAddr=$address Port=$((27000 + i)) CPUs=$CPUS Sockets=1" \
      "CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM $gres State=UNKNOWN"
  done
  echo "PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=5 State=UP OverSubscribe=NO"
  printf '%s' "$EXTRA_CONF"
}
