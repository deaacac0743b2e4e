//! Finds what was asked for among all processes of the machine, and what earlier runs of tests have left there.
//!
//! What they have left is known by three facts together: its parent is not the process that started it
//! ([`adopted`]), it is a test's, by the folder that its program lies in or by a variable of its environment, and no
//! process of its run is left ([`run`]). Where one of them is not shown, the process is left alone, with the reason.

mod adopted;
mod run;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use crate::proc::process::{self, KEPT, Stat};
use crate::proc::runners;
use crate::proc::started::{self, Unit};
use crate::proc::tree::Tree;
use crate::sys::{self, Pid};

/// What net and fork server of a guard call themselves.
const NET: &str = process::NET;

/// A process that was asked for; everything below it was so with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) stat: Stat,
    /// The nearest first, up to the first process.
    pub(crate) ancestors: Vec<Ancestor>,
    /// Its parent is not the process that started it.
    pub(crate) is_adopted: bool,
    /// The file of its program; `None` if it may not be read.
    pub(crate) program: Option<PathBuf>,
    /// Empty if it may not be read.
    pub(crate) command_line: Vec<String>,
    pub(crate) age: Option<Duration>,
    /// Why it is in the list.
    pub(crate) traces: Vec<Trace>,
    /// What a guard has kept and was asked for, if this is that guard's topmost process.
    pub(crate) asked_for: Vec<Root>,
}

/// A process above another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ancestor {
    pub(crate) pid: Pid,
    pub(crate) comm: String,
    /// It is a guard's own process: the test or command that it guards, empty if that is not known.
    pub(crate) guards: Option<String>,
}

/// Why a process is in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// It was asked for by its number.
    Pid,
    Pattern(String),
    /// Its program lies in a target folder of cargo's.
    TargetFolder(PathBuf),
    /// A variable that a test runner sets is in its environment.
    Variable {
        name: &'static str,
        value: String,
    },
    /// A guard has stopped it and kept it: the guard of this test or command, empty if that is not known.
    Kept(String),
}

/// Why a process is not one that an earlier run has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoProcess,
    Zombie,
    /// It is this process, or one above it.
    Above,
    /// The process that started it is there.
    HasParent(Ancestor),
    /// A guard is above it: its run goes on.
    Guarded(Ancestor),
    /// A process of the same run is still there.
    RunGoesOn(Ancestor),
    /// It is in another PID namespace: a container's.
    OtherNamespace,
    /// A test may have started it, and its parent as well.
    MayHaveParent(Ancestor),
    /// A test may have started it, and it is in this service.
    Service(String),
    /// Nothing shows that a test has started it.
    NoTrace,
    /// What would show it may not be read: the user that it runs as.
    Unreadable(Option<u32>),
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) roots: Vec<Root>,
    /// Numbers that no process has.
    pub(crate) missing: Vec<Pid>,
    /// Orphans of which it may not be read what started them.
    pub(crate) unreadable: usize,
    /// What a test may have started and is left alone, and why: most of it is of a run that goes on.
    pub(crate) doubtful: Vec<(Pid, Refusal)>,
}

impl Found {
    /// Adds what was found by another question. What both have found is there once.
    pub(crate) fn join(&mut self, other: Found) {
        let known: HashSet<Pid> = self.roots.iter().map(|root| root.stat.pid).collect();
        let is_new = |root: &Root| {
            !known.contains(&root.stat.pid) && !root.ancestors.iter().any(|above| known.contains(&above.pid))
        };
        let new: Vec<Root> = other.roots.into_iter().filter(is_new).collect();
        let new_pids: HashSet<Pid> = new.iter().map(|root| root.stat.pid).collect();
        self.roots.retain(|root| !root.ancestors.iter().any(|above| new_pids.contains(&above.pid)));
        self.roots.extend(new);
        self.missing.extend(other.missing);
        self.unreadable += other.unreadable;
        self.doubtful.extend(other.doubtful);
    }
}

/// All processes of the machine, and what they were started as.
pub(crate) struct Survey {
    tree: Tree,
    /// This process and those above it.
    own: HashSet<Pid>,
    started: HashMap<Pid, Started>,
}

/// What a process was started as, as far as that may be read.
#[derive(Clone, Default)]
struct Started {
    program: Option<PathBuf>,
    environment: Option<HashMap<String, String>>,
    command_line: Vec<String>,
    folder: Option<PathBuf>,
    pid_namespace: Option<PathBuf>,
    unit: Unit,
}

impl Started {
    fn of(pid: Pid) -> Started {
        Started {
            program: started::program(pid),
            environment: runners::environment(pid),
            command_line: process::command_line(pid),
            folder: started::working_folder(pid),
            pid_namespace: started::pid_namespace(pid),
            unit: Unit::of(pid),
        }
    }

    fn variable(&self, name: &str) -> Option<&String> {
        self.environment.as_ref()?.get(name)
    }
}

impl Survey {
    /// Reads all processes.
    pub(crate) fn read() -> Survey {
        let tree = Tree::read();
        let own = sys::own_pid();
        let above = above(&tree, own).into_iter().map(|stat| stat.pid).chain([own]).collect();
        let alive = |stat: &&Stat| !stat.is_zombie() && !stat.is_kernel_thread;
        let all = tree.processes().filter(alive);
        let started = all.map(|stat| (stat.pid, Started::of(stat.readable_id()))).collect();
        Survey { tree, own: above, started }
    }

    /// All processes.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The processes with these numbers, and those that `matches` names a pattern of.
    pub(crate) fn asked_for(&self, pids: &[Pid], matches: impl Fn(&str, &str) -> Option<String>) -> Found {
        let mut found = Found::default();
        for pid in pids {
            match self.tree.get(*pid).filter(|stat| !stat.is_zombie() && !stat.is_kernel_thread) {
                Some(stat) => found.roots.push(self.root(stat, vec![Trace::Pid])),
                None => found.missing.push(*pid),
            }
        }
        for stat in self.others() {
            let line = process::command_line(stat.readable_id()).join(" ");
            if let Some(pattern) = matches(&stat.comm, &line) {
                found.roots.push(self.root(stat, vec![Trace::Pattern(pattern)]));
            }
        }
        self.keep_topmost(&mut found.roots);
        found
    }

    /// What earlier runs have left, and of other orphans those that `matches` names a pattern of.
    pub(crate) fn orphans(&self, matches: impl Fn(&str, &str) -> Option<String>) -> Found {
        let mut found = Found::default();
        for stat in self.others() {
            match self.orphan(stat) {
                Ok(root) => found.roots.push(root),
                Err(why @ (Refusal::RunGoesOn(_) | Refusal::MayHaveParent(_) | Refusal::Service(_))) => {
                    found.doubtful.push((stat.pid, why));
                }
                Err(Refusal::Unreadable(_)) => found.unreadable += 1,
                Err(Refusal::NoTrace) => {
                    let line = process::command_line(stat.readable_id()).join(" ");
                    let pattern = matches(&stat.comm, &line).map(Trace::Pattern);
                    found.roots.extend(pattern.map(|pattern| self.root(stat, vec![pattern])));
                }
                Err(_) => {}
            }
        }
        self.keep_topmost(&mut found.roots);
        found
    }

    /// A process that an earlier run has left, or why it is none.
    pub(crate) fn orphan_with(&self, pid: Pid) -> Result<Root, Refusal> {
        let stat = self.tree.get(pid).filter(|stat| !stat.is_kernel_thread).ok_or(Refusal::NoProcess)?;
        if stat.is_zombie() {
            return Err(Refusal::Zombie);
        }
        if self.own.contains(&pid) {
            return Err(Refusal::Above);
        }
        self.orphan(stat)
    }

    fn orphan(&self, stat: &Stat) -> Result<Root, Refusal> {
        let above = above(&self.tree, stat.pid);
        if let Some(guard) = above.iter().copied().chain([stat]).rfind(|stat| is_guard(stat)) {
            return match kept_by(&above) {
                Some(kept_by) if guard.pid != stat.pid => {
                    let names =
                        above.iter().filter(|above| is_guard(above)).filter_map(|above| guarded_by(above));
                    let kept = Trace::Kept(names.max_by_key(String::len).unwrap_or_default());
                    let asked_for = vec![self.root(stat, vec![kept.clone()])];
                    Ok(Root { asked_for, ..self.root(kept_by, vec![kept]) })
                }
                _ => Err(Refusal::Guarded(Ancestor::of(guard))),
            };
        }
        let parent = above.first().copied();
        let is_adopted = self.is_adopted(stat);
        if !is_adopted && !parent.is_some_and(|parent| self.adopts(parent)) {
            return Err(parent.map_or(Refusal::NoTrace, |parent| Refusal::HasParent(Ancestor::of(parent))));
        }
        let started = self.started(stat.pid);
        let unreadable = || match parent.filter(|_| !is_adopted) {
            Some(parent) => Refusal::HasParent(Ancestor::of(parent)),
            None => Refusal::Unreadable(process::effective_uid(stat.pid)),
        };
        match (&started.pid_namespace, &self.started(sys::own_pid()).pid_namespace) {
            (Some(namespace), Some(own)) if namespace != own => return Err(Refusal::OtherNamespace),
            (Some(_), Some(_)) => {}
            _ => return Err(unreadable()),
        }
        let traces = self.traces(stat);
        if traces.is_empty() {
            let is_read = started.program.is_some() && started.environment.is_some();
            return Err(match is_read {
                true => Refusal::NoTrace,
                false => unreadable(),
            });
        }
        // With a guard of its own it is a harness, which ends by itself.
        if let Some(other) = self.guard_below(stat).or_else(|| self.of_same_run(stat)) {
            return Err(Refusal::RunGoesOn(Ancestor::of(other)));
        }
        if let Some(service) = self.other_service(stat).filter(|_| !is_of_test(&traces)) {
            return Err(Refusal::Service(service.to_owned()));
        }
        match parent.filter(|_| !is_adopted) {
            Some(parent) => Err(Refusal::MayHaveParent(Ancestor::of(parent))),
            None => Ok(self.root(stat, traces)),
        }
    }

    /// A guard that a process has for what it runs, and that does not only stay with what was kept.
    fn guard_below(&self, stat: &Stat) -> Option<&Stat> {
        let is_running = |stat: &&Stat| is_guard(stat) && !keeps(stat) && kept_by(&[stat]).is_none();
        self.tree.below(stat.pid, &[]).into_iter().find(is_running)
    }

    /// What shows that a test, or what ran it, has started a process.
    fn traces(&self, stat: &Stat) -> Vec<Trace> {
        let started = self.started(stat.pid);
        let variable = started.environment.as_ref().and_then(started::runner);
        let variable = variable.map(|(name, value)| Trace::Variable { name, value: value.to_owned() });
        // A program may be run from there as a service, whose manager starts it in a session or a unit of its own.
        let may_be_service = stat.sid == stat.pid || matches!(started.unit, Unit::Service(_));
        let program = started.program.as_ref().filter(|_| variable.is_some() || !may_be_service);
        let folder = program.and_then(|program| started::target_folder(program)).map(Trace::TargetFolder);
        variable.into_iter().chain(folder).collect()
    }

    /// The processes that are neither this one, nor above it, nor dead.
    fn others(&self) -> impl Iterator<Item = &Stat> {
        let is_other = |stat: &&Stat| {
            !stat.is_zombie() && !stat.is_kernel_thread && stat.pid != 1 && !self.own.contains(&stat.pid)
        };
        self.tree.processes().filter(is_other)
    }

    fn started(&self, pid: Pid) -> &Started {
        static NONE: LazyLock<Started> = LazyLock::new(Started::default);
        self.started.get(&pid).unwrap_or(&NONE)
    }

    fn root(&self, stat: &Stat, traces: Vec<Trace>) -> Root {
        let ancestors = above(&self.tree, stat.pid).into_iter().map(Ancestor::of).collect();
        let program = self.started(stat.pid).program.clone();
        Root {
            stat: stat.clone(),
            ancestors,
            is_adopted: self.is_adopted(stat),
            program,
            command_line: process::command_line(stat.readable_id()),
            age: process::age(stat),
            traces,
            asked_for: Vec::new(),
        }
    }

    /// Leaves out what is below another that was found, and has each once, the oldest first.
    fn keep_topmost(&self, roots: &mut Vec<Root>) {
        let all: HashSet<Pid> = roots.iter().map(|root| root.stat.pid).collect();
        roots.retain(|root| !root.ancestors.iter().any(|above| all.contains(&above.pid)));
        roots.sort_by_key(|root| (root.stat.start_ticks, root.stat.pid));
        roots.dedup_by(|root, before| {
            let is_same = root.stat.pid == before.stat.pid;
            if is_same {
                before.asked_for.append(&mut root.asked_for);
            }
            is_same
        });
    }
}

/// Whether a runner that is no service itself has named the test in the environment of what it has started.
fn is_of_test(traces: &[Trace]) -> bool {
    traces.iter().any(|trace| matches!(trace, Trace::Variable { name, .. } if !name.starts_with("CARGO_")))
}

impl Ancestor {
    fn of(stat: &Stat) -> Ancestor {
        Ancestor { pid: stat.pid, comm: stat.comm.clone(), guards: guarded_by(stat) }
    }
}

/// Whether a process guards others, or is the tool that has it done.
fn is_guard(stat: &Stat) -> bool {
    process::is_of_guard(&stat.comm)
}

/// The test or command whose guard a process is, empty if it does not say; `None` if it is no guard, or the tool itself.
fn guarded_by(stat: &Stat) -> Option<String> {
    if !is_guard(stat) {
        return None;
    }
    process::guarded(&stat.comm, &process::command_line(stat.readable_id()))
}

/// The topmost process of the guard that has kept a process with these above it, the nearest first. A guard ends with its run,
/// unless it keeps something: then it has another name.
fn kept_by<'a>(above: &[&'a Stat]) -> Option<&'a Stat> {
    let mut guards = above.iter().copied().skip_while(|stat| !is_guard(stat));
    let nearest = guards.next().filter(|nearest| keeps(nearest))?;
    // Above it there may be the guard of another run.
    Some(guards.take_while(|stat| keeps(stat) || stat.comm == NET).last().unwrap_or(nearest))
}

/// Whether a process is a guard that stays with what it has kept.
fn keeps(stat: &Stat) -> bool {
    stat.comm.as_bytes() == KEPT.to_bytes()
}

/// The processes above one, the nearest first.
fn above(tree: &Tree, pid: Pid) -> Vec<&Stat> {
    let mut above: Vec<&Stat> = Vec::new();
    let mut next = tree.get(pid).and_then(|stat| tree.get(stat.ppid));
    // Parents may change while the list is read: no ring is followed.
    while let Some(stat) =
        next.filter(|stat| stat.pid != pid && above.iter().all(|known| known.pid != stat.pid))
    {
        above.push(stat);
        next = tree.get(stat.ppid);
    }
    above
}

#[cfg(test)]
mod tests;
