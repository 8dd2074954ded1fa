//! Who belongs to a tree of processes.
//!
//! Four signs make a process a member, each of them found in a single pass over `/proc`:
//!
//! 1. its parent is a member (or it is the root);
//! 2. it was a member before: membership is never lost, whoever adopts the orphan;
//! 3. it is in a session or process group that a member began;
//! 4. it was started with the tree's marker in its environment, which finds the double-forked daemon that
//!    left its session before it was ever seen.
//!
//! The fourth is asked only once a process, and only of those that the first three do not explain.

use std::collections::{HashMap, HashSet};
use std::io;

use super::stat::{ProcFs, ProcId, Stat, value_in};

/// An environment variable and its value that every process of a tree was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The variable's name.
    pub name: String,
    /// Its whole value.
    pub value: String,
}

/// The tree that grew from one process. It remembers who was in it, so keep it as long as the tree lives.
#[derive(Clone, Debug)]
pub struct Tree {
    proc: ProcFs,
    root: ProcId,
    root_is_member: bool,
    marker: Option<Marker>,
    /// Members seen alive at the last look.
    known: HashMap<i32, ProcId>,
    /// Sessions and groups that a member began and that still have members.
    began: HashSet<i32>,
    /// Those without the marker, so that their environment is read only once.
    strangers: HashMap<i32, ProcId>,
}

impl Tree {
    /// The tree of `root`, itself included.
    pub fn of(root: ProcId) -> Self {
        Self {
            proc: ProcFs::default(),
            root,
            root_is_member: true,
            marker: None,
            known: HashMap::from([(root.pid, root)]),
            began: HashSet::new(),
            strangers: HashMap::new(),
        }
    }

    /// Leaves the root itself out: only those below it are members.
    pub fn below_root(mut self) -> Self {
        self.root_is_member = false;
        self.known.clear();
        self
    }

    /// Also counts whoever was started with `name=value` in its environment.
    pub fn with_marker(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.marker = Some(Marker { name: name.into(), value: value.into() });
        self
    }

    /// Reads another `/proc`.
    pub fn in_proc(mut self, proc: ProcFs) -> Self {
        self.proc = proc;
        self
    }

    /// The process it grew from.
    pub fn root(&self) -> ProcId {
        self.root
    }

    /// Members seen alive at the last look, which may be a while ago.
    pub fn last_seen(&self) -> impl Iterator<Item = ProcId> {
        self.known.values().copied()
    }

    /// The process above the tree, if it is one that ends with it: a warden.
    pub(super) fn warden(&self) -> Option<ProcId> {
        (!self.root_is_member && self.root.pid != std::process::id().cast_signed()).then_some(self.root)
    }

    pub(super) fn proc(&self) -> &ProcFs {
        &self.proc
    }

    /// Looks at every process once and returns those of the tree that live, parents before their
    /// children.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn members(&mut self) -> io::Result<Vec<Stat>> {
        let table = self.proc.scan()?;
        Ok(self.members_among(table))
    }

    /// The same from a pass that was made already, shared between trees.
    pub fn members_among(&mut self, mut table: Vec<Stat>) -> Vec<Stat> {
        table.retain(|stat| !stat.is_dead());
        let live: HashMap<i32, ProcId> = table.iter().map(|stat| (stat.id.pid, stat.id)).collect();
        self.forget_gone(&live, &table);
        let me = std::process::id().cast_signed();

        let mut inside: HashSet<i32> = self.known.keys().copied().collect();
        if live.get(&self.root.pid) == Some(&self.root) {
            inside.insert(self.root.pid);
        }
        // A child can have a smaller number than its parent, so go on until a round adds nobody.
        loop {
            let before = inside.len();
            for stat in &table {
                let pid = stat.id.pid;
                if pid == me || inside.contains(&pid) {
                    continue;
                }
                // A root that is no member does not lend its own group: its neighbours there are strangers.
                let outside = (!self.root_is_member).then_some(self.root.pid);
                let began = |leader: &i32| {
                    (inside.contains(leader) && Some(*leader) != outside) || self.began.contains(leader)
                };
                let ours = inside.contains(&stat.ppid)
                    || began(&stat.session)
                    || began(&stat.group)
                    || self.is_marked(stat);
                if ours {
                    inside.insert(pid);
                }
            }
            if inside.len() == before {
                break;
            }
        }
        if !self.root_is_member {
            inside.remove(&self.root.pid);
        }
        table.retain(|stat| inside.contains(&stat.id.pid));
        self.known = table.iter().map(|stat| (stat.id.pid, stat.id)).collect();
        for stat in &table {
            self.began
                .extend([stat.session, stat.group].into_iter().filter(|leader| inside.contains(leader)));
        }
        // Parents start before their children.
        table.sort_by_key(|stat| (stat.id.start, stat.id.pid));
        table
    }

    /// Drops what the kernel may have given to others by now: the numbers of ended processes, and of
    /// sessions and groups that are empty or have another leader.
    fn forget_gone(&mut self, live: &HashMap<i32, ProcId>, table: &[Stat]) {
        // A number stays taken while a session or group of that name has a process in it.
        let held: HashSet<i32> = table.iter().flat_map(|stat| [stat.session, stat.group]).collect();
        let known = &self.known;
        self.began.retain(|leader| {
            held.contains(leader) && live.get(leader).is_none_or(|id| known.get(leader) == Some(id))
        });
        let alive = |pid: &i32, id: &mut ProcId| live.get(pid) == Some(id);
        self.known.retain(alive);
        self.strangers.retain(alive);
    }

    fn is_marked(&mut self, stat: &Stat) -> bool {
        let Some(marker) = &self.marker else { return false };
        let id = stat.id;
        if id.start < self.root.start || self.strangers.get(&id.pid) == Some(&id) {
            return false;
        }
        let environ = self.proc.environ(id.pid);
        let found = |environ: &Vec<u8>| value_in(environ, &marker.name) == Some(marker.value.as_bytes());
        let marked = environ.as_ref().is_ok_and(found);
        // An empty one may be that of a process just executing its program: ask again next time.
        if !marked && environ.is_ok_and(|environ| !environ.is_empty()) {
            self.strangers.insert(id.pid, id);
        }
        marked
    }
}
