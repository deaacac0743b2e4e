//! Properties of the stuck threads: which of them wait for each other, and what prevents a proof.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use super::wakers::{Index, Node, Resource, Sets, Wait};
use super::{Because, Doubt, Stuck};
use crate::diagnosis::wake_channel;
use crate::guard::facts::Process;
use crate::proc::fds::Fd;
use crate::proc::waits::{On, Thread};
use crate::recorder::call_site::Names;

/// The most doubts that are reported for one wait.
const DOUBTS: usize = 16;
/// The total number of steps in the search for cycles.
const STEPS: usize = 10_000_000;

/// The graph of the stuck threads and their wakers.
pub(super) struct Graph<'a> {
    index: &'a Index<'a>,
    nodes: &'a [Node<'a>],
    sets: &'a Sets,
    stuck: &'a [bool],
    /// Cache: the wakers of all threads that wait for the same sets.
    lists: RefCell<HashMap<&'a BTreeSet<usize>, Rc<Vec<usize>>>>,
    steps: RefCell<usize>,
}

impl<'a> Graph<'a> {
    pub(super) fn new(
        index: &'a Index<'a>,
        nodes: &'a [Node<'a>],
        sets: &'a Sets,
        stuck: &'a [bool],
    ) -> Graph<'a> {
        Graph { index, nodes, sets, stuck, lists: RefCell::default(), steps: RefCell::new(STEPS) }
    }

    /// Edges from each thread to its sets (numbered after the threads), and from each set to its members.
    fn edges(&self, sets_of: impl Fn(&Wait) -> Vec<usize>) -> Vec<Vec<usize>> {
        let count = self.nodes.len();
        let of_node = |(at, node): (usize, &Node<'_>)| {
            let wait = node.wait.as_ref().filter(|_| self.stuck[at]);
            wait.map(&sets_of).unwrap_or_default().into_iter().map(|set| count + set).collect()
        };
        let nodes = self.nodes.iter().enumerate().map(of_node);
        nodes.chain(self.sets.members.iter().cloned()).collect()
    }

    /// The wakers of a thread, in order. Those of a futex wait include the thread itself.
    fn wakers(&self, at: usize) -> Rc<Vec<usize>> {
        let Some(wait) = &self.nodes[at].wait else { return Rc::default() };
        let mut lists = self.lists.borrow_mut();
        let list = lists.entry(&wait.wakers).or_insert_with(|| {
            let all = wait.wakers.iter().flat_map(|set| &self.sets.members[*set]).copied();
            Rc::new(all.collect::<BTreeSet<usize>>().into_iter().collect())
        });
        Rc::clone(list)
    }

    pub(super) fn conclude(&self, names: &Names) -> Vec<Stuck> {
        let edges = self.edges(|wait| wait.wakers.iter().copied().collect());
        let (rings, count) = components(&edges);
        // The number of threads of each component.
        let mut sizes = vec![0; count];
        rings[..self.nodes.len()].iter().for_each(|ring| sizes[*ring] += 1);
        drop(edges);
        let doubts = self.doubts();
        let all = (0..self.nodes.len()).filter(|at| self.stuck[*at]);
        all.filter_map(|at| {
            let is_futex = matches!(self.nodes[at].thread.on, On::Futex { .. });
            let cycle = sizes[rings[at]] > 1 || !is_futex && self.wakers(at).binary_search(&at).is_ok();
            self.conclude_one(at, cycle, doubts[at].clone(), names)
        })
        .collect()
    }

    /// The doubts about each wait, including those about all waits that it depends on.
    fn doubts(&self) -> Vec<Vec<Doubt>> {
        let edges = self.edges(|wait| wait.wakers.union(&wait.secondary_wakers).copied().collect());
        let (parts, count) = components(&edges);
        let mut known: HashMap<Doubt, usize> = HashMap::new();
        let mut all: Vec<Doubt> = Vec::new();
        let mut number = |doubt: Doubt| {
            *known.entry(doubt).or_insert_with_key(|doubt| {
                all.push(doubt.clone());
                all.len() - 1
            })
        };
        // The members of one component depend on each other, so they share their doubts.
        let mut of_part: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); count];
        let mut of_all: Option<Vec<usize>> = None;
        for (at, node) in self.nodes.iter().enumerate().filter(|(at, _)| self.stuck[*at]) {
            let part = &mut of_part[parts[at]];
            part.extend(self.index.doubts(node).into_iter().map(&mut number));
            if !matches!(node.thread.on, On::Futex { .. } | On::Thread { .. } | On::Child { .. }) {
                let of_all = of_all
                    .get_or_insert_with(|| self.index.doubts_of_all().into_iter().map(&mut number).collect());
                part.extend(of_all.iter().copied());
            }
        }
        let mut vertices: Vec<Vec<usize>> = vec![Vec::new(); count];
        parts.iter().enumerate().for_each(|(vertex, part)| vertices[*part].push(vertex));
        // Components that this one leads to have lower numbers.
        for part in 0..count {
            let next: BTreeSet<usize> =
                vertices[part].iter().flat_map(|vertex| &edges[*vertex]).map(|next| parts[*next]).collect();
            let mut doubts = std::mem::take(&mut of_part[part]);
            for next in next.into_iter().filter(|next| *next != part) {
                doubts.extend(of_part[next].iter().copied());
            }
            of_part[part] = doubts.into_iter().take(DOUBTS).collect();
        }
        let of_node = |at: usize| of_part[parts[at]].iter().map(|doubt| all[*doubt].clone()).collect();
        (0..self.nodes.len()).map(of_node).collect()
    }

    fn conclude_one(&self, at: usize, cycle: bool, doubts: Vec<Doubt>, names: &Names) -> Option<Stuck> {
        let Node { process, owner, thread, wait } = &self.nodes[at];
        let wait = wait.as_ref()?;
        let mut wakers: Vec<i32> = Vec::new();
        let is_futex = matches!(thread.on, On::Futex { .. });
        for waker in self.wakers(at).iter().filter(|waker| !is_futex || **waker != at) {
            let pid = self.nodes[*waker].process.pid;
            // Threads of one process are adjacent.
            if wakers.last() != Some(&pid) {
                wakers.push(pid);
            }
        }
        let mut sockets = self.index.sockets_of(thread, wait, names);
        let (mut reads, mut writes) = self.index.pipes_of(thread, wait, sockets.is_empty());
        let idles = wake_channel::idles(self.index.facts, names, process, thread);
        if thread.on.is_set() {
            let is_channel = |ino: &u64| self.is_wake_channel(process, thread, names, *ino);
            sockets.retain(|end| !is_channel(&end.ino));
            reads.retain(|pipe| !is_channel(pipe));
            writes.retain(|pipe| !is_channel(pipe));
        }
        let at_socket = sockets.iter().find(|end| end.own).or(sockets.first());
        let own_socket = at_socket.is_some_and(|end| end.own);
        let writes_to = |pipe: &&u64| self.index.has(*owner, Resource::Writer(**pipe));
        let own = reads.iter().find(writes_to).filter(|_| writes.is_empty());
        // A pipe of which it holds the other end explains more than one of which it does not.
        let pipe = own.or(reads.last()).or(writes.last()).filter(|_| own.is_some() || !own_socket);
        let at_socket = at_socket.filter(|_| pipe.is_none());
        let to_write = match &thread.on {
            On::Write { .. } => true,
            _ => at_socket.map_or(reads.is_empty() && !writes.is_empty(), |end| end.writes),
        };
        let to_read = !to_write && writes.is_empty() && (pipe.is_some() || at_socket.is_some());
        let both_ends = at_socket.is_some_and(|end| {
            let peer = self.index.sockets.get(&end.ino).and_then(|socket| socket.other_end());
            !end.writes && sockets.iter().any(|other| Some(other.ino) == peer)
        });
        let because = match &thread.on {
            On::Futex { .. } => self.index.inherited(process, thread, names).unwrap_or(Because::Cycle),
            // Whatever the other holders do, it waits for itself.
            _ if own.is_some() || to_read && at_socket.is_some_and(|end| end.own) => Because::OwnWriteEnd,
            _ if to_write && wakers == [process.pid] => Because::NoReaderRuns,
            _ if cycle => Because::Cycle,
            On::Thread { .. } => Because::StuckThread,
            On::Child { .. } => Because::StuckChild,
            On::Lock { .. } => Because::StuckHolder,
            _ if to_write || !writes.is_empty() => Because::NoReaderRuns,
            _ => Because::NoWriter,
        };
        let ring = if cycle { self.ring(at) } else { Vec::new() };
        Some(Stuck {
            pid: process.pid,
            tid: thread.tid,
            because,
            pipe: pipe.copied(),
            socket: at_socket.map(|end| end.ino),
            writes: to_write,
            both_ends,
            idles,
            wakers,
            ring,
            doubts,
        })
    }

    /// Whether a pipe or socket in the poll set of a thread serves to wake the thread's own process.
    fn is_wake_channel(&self, process: &Process, thread: &Thread, names: &Names, ino: u64) -> bool {
        let is_it = |fd: &i32| process.fd(*fd).and_then(Fd::pipe_or_socket) == Some(ino);
        let mut same = wake_channel::entries(thread).into_iter().filter(is_it);
        same.any(|fd| wake_channel::is_one(self.index.facts, names, process, thread, fd))
    }

    /// The shortest cycle of wakers through a thread.
    fn ring(&self, at: usize) -> Vec<i32> {
        let mut came_from: HashMap<usize, usize> = HashMap::new();
        let mut pending = VecDeque::from([at]);
        let mut steps = self.steps.borrow_mut();
        while let Some(next) = pending.pop_front() {
            let is_futex = matches!(self.nodes[next].thread.on, On::Futex { .. });
            let wakers = self.wakers(next);
            if (!is_futex || next != at) && wakers.binary_search(&at).is_ok() {
                let mut way = vec![next];
                while let Some(before) =
                    way.last().filter(|last| **last != at).and_then(|last| came_from.get(last))
                {
                    way.push(*before);
                }
                return way.iter().rev().map(|at| self.nodes[*at].thread.tid).collect();
            }
            // With thousands of threads, a missing cycle is acceptable.
            let Some(left) = steps.checked_sub(wakers.len()) else { break };
            *steps = left;
            for waker in wakers.iter().copied() {
                came_from.entry(waker).or_insert_with(|| {
                    pending.push_back(waker);
                    next
                });
            }
        }
        Vec::new()
    }
}

/// The strongly connected components of a graph: the number of each vertex's component, and the number of
/// components. Edges lead to components with lower or equal numbers (Tarjan 1972, without recursion).
fn components(edges: &[Vec<usize>]) -> (Vec<usize>, usize) {
    const NONE: usize = usize::MAX;
    let mut part = vec![NONE; edges.len()];
    let mut index = vec![NONE; edges.len()];
    let mut low = vec![0; edges.len()];
    let (mut parts, mut seen) = (0, 0);
    let mut open: Vec<usize> = Vec::new();
    // Each vertex with the number of its edges that were followed.
    let mut way: Vec<(usize, usize)> = Vec::new();
    for root in 0..edges.len() {
        if index[root] == NONE {
            way.push((root, 0));
        }
        while let Some((at, followed)) = way.last_mut() {
            let at = *at;
            if index[at] == NONE {
                (index[at], low[at]) = (seen, seen);
                seen += 1;
                open.push(at);
            }
            if let Some(next) = edges[at].get(*followed).copied() {
                *followed += 1;
                if index[next] == NONE {
                    way.push((next, 0));
                } else if part[next] == NONE {
                    low[at] = low[at].min(index[next]);
                }
                continue;
            }
            way.pop();
            if let Some((before, _)) = way.last() {
                low[*before] = low[*before].min(low[at]);
            }
            if low[at] == index[at] {
                while let Some(member) = open.pop() {
                    part[member] = parts;
                    if member == at {
                        break;
                    }
                }
                parts += 1;
            }
        }
    }
    (part, parts)
}
#[cfg(test)]
mod tests {
    use super::components;

    #[test]
    fn a_component_leads_to_lower_ones() {
        // 0 -> 1 <-> 2 -> 3, and 4 with an edge to itself.
        let (part, count) = components(&[vec![1], vec![2], vec![1, 3], vec![], vec![4]]);
        assert_eq!((count, &part[..]), (4, &[2, 1, 1, 0, 3][..]));
        assert_eq!(components(&[]), (Vec::new(), 0));
    }
}
