//! What follows for the threads that are stuck: which wait for each other, and what keeps that from
//! being a proof.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use super::wakers::{Node, Scene, Sets, Thing, Wait};
use super::{Because, Stuck};
use crate::diagnosis::Names;
use crate::proc::waits::On;

/// How many doubts of one wait are told.
const DOUBTS: usize = 16;
/// How many threads are looked at for rings, in all.
const STEPS: usize = 10_000_000;

/// The threads that are stuck, and what leads from one to the other.
pub(super) struct Graph<'a> {
    scene: &'a Scene<'a>,
    nodes: &'a [Node<'a>],
    sets: &'a Sets,
    stuck: &'a [bool],
    /// Who could wake those that wait for the same sets.
    lists: RefCell<HashMap<&'a BTreeSet<usize>, Rc<Vec<usize>>>>,
    steps: RefCell<usize>,
}

impl<'a> Graph<'a> {
    pub(super) fn new(
        scene: &'a Scene<'a>,
        nodes: &'a [Node<'a>],
        sets: &'a Sets,
        stuck: &'a [bool],
    ) -> Graph<'a> {
        Graph { scene, nodes, sets, stuck, lists: RefCell::default(), steps: RefCell::new(STEPS) }
    }

    /// From each thread to its sets, which come after the threads, and from those to their members.
    fn edges(&self, sets_of: impl Fn(&Wait) -> Vec<usize>) -> Vec<Vec<usize>> {
        let count = self.nodes.len();
        let of_node = |(at, node): (usize, &Node<'_>)| {
            let wait = node.wait.as_ref().filter(|_| self.stuck[at]);
            wait.map(&sets_of).unwrap_or_default().into_iter().map(|set| count + set).collect()
        };
        let nodes = self.nodes.iter().enumerate().map(of_node);
        nodes.chain(self.sets.members.iter().cloned()).collect()
    }

    /// Who could wake a thread, in order. A futex has its own thread in it.
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
        // How many threads lie on one ring.
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

    /// What keeps each wait, and all that it depends on, from being proved.
    fn doubts(&self) -> Vec<Vec<String>> {
        let edges = self.edges(|wait| wait.wakers.union(&wait.meddlers).copied().collect());
        let (parts, count) = components(&edges);
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut texts: Vec<String> = Vec::new();
        let mut number = |doubt: String| {
            *known.entry(doubt).or_insert_with_key(|doubt| {
                texts.push(doubt.clone());
                texts.len() - 1
            })
        };
        // Those of one part depend on each other: they have the same doubts.
        let mut of_part: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); count];
        let mut of_all: Option<Vec<usize>> = None;
        for (at, node) in self.nodes.iter().enumerate().filter(|(at, _)| self.stuck[*at]) {
            let part = &mut of_part[parts[at]];
            part.extend(self.scene.doubts(node).into_iter().map(&mut number));
            if !matches!(node.thread.on, On::Futex { .. } | On::Thread { .. } | On::Child { .. }) {
                let of_all = of_all
                    .get_or_insert_with(|| self.scene.doubts_of_all().into_iter().map(&mut number).collect());
                part.extend(of_all.iter().copied());
            }
        }
        let mut vertices: Vec<Vec<usize>> = vec![Vec::new(); count];
        parts.iter().enumerate().for_each(|(vertex, part)| vertices[*part].push(vertex));
        // What a part leads to has a lower number.
        for part in 0..count {
            let next: BTreeSet<usize> =
                vertices[part].iter().flat_map(|vertex| &edges[*vertex]).map(|next| parts[*next]).collect();
            let mut doubts = std::mem::take(&mut of_part[part]);
            for next in next.into_iter().filter(|next| *next != part) {
                doubts.extend(of_part[next].iter().copied());
            }
            of_part[part] = doubts.into_iter().take(DOUBTS).collect();
        }
        let told = |at: usize| of_part[parts[at]].iter().map(|doubt| texts[*doubt].clone()).collect();
        (0..self.nodes.len()).map(told).collect()
    }

    fn conclude_one(&self, at: usize, cycle: bool, doubts: Vec<String>, names: &Names) -> Option<Stuck> {
        let Node { process, owner, thread, wait } = &self.nodes[at];
        let wait = wait.as_ref()?;
        let mut wakers: Vec<i32> = Vec::new();
        let is_futex = matches!(thread.on, On::Futex { .. });
        for waker in self.wakers(at).iter().filter(|waker| !is_futex || **waker != at) {
            let pid = self.nodes[*waker].process.pid;
            // Those of one process stand beside each other.
            if wakers.last() != Some(&pid) {
                wakers.push(pid);
            }
        }
        let sockets = self.scene.sockets_of(thread, wait, names);
        let (reads, writes) = self.scene.pipes_of(thread, wait, sockets.is_empty());
        let at_socket = sockets.iter().find(|end| end.own).or(sockets.first());
        let own_socket = at_socket.is_some_and(|end| end.own);
        let writes_to = |pipe: &&u64| self.scene.has(*owner, Thing::Writer(**pipe));
        let own = reads.iter().find(writes_to).filter(|_| writes.is_empty());
        // What it has the other end of tells more than what it has not.
        let pipe = own.or(reads.last()).or(writes.last()).filter(|_| own.is_some() || !own_socket);
        let at_socket = at_socket.filter(|_| pipe.is_none());
        let to_write = match &thread.on {
            On::Write { .. } => true,
            _ => at_socket.map_or(reads.is_empty() && !writes.is_empty(), |end| end.writes),
        };
        let to_read = !to_write && writes.is_empty() && (pipe.is_some() || at_socket.is_some());
        let both_ends = at_socket.is_some_and(|end| {
            let peer = self.scene.sockets.get(&end.ino).and_then(|socket| socket.other_end());
            !end.writes && sockets.iter().any(|other| Some(other.ino) == peer)
        });
        let because = match &thread.on {
            On::Futex { .. } => self.scene.inherited(process, thread, names).unwrap_or(Because::Cycle),
            // Whatever the others do: it would have to do it itself.
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
            wakers,
            ring,
            doubts,
        })
    }

    /// The shortest way from a thread over those that could wake it back to itself.
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
            // Among thousands a ring that is not told is none too few.
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

/// The strongly connected components of a graph, as the number of each vertex's, and how many there are.
/// What a component leads to has a lower number (Tarjan 1972, without recursion).
fn components(edges: &[Vec<usize>]) -> (Vec<usize>, usize) {
    const NONE: usize = usize::MAX;
    let mut part = vec![NONE; edges.len()];
    let mut index = vec![NONE; edges.len()];
    let mut low = vec![0; edges.len()];
    let (mut parts, mut seen) = (0, 0);
    let mut open: Vec<usize> = Vec::new();
    // A vertex, and how many of its edges were followed.
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
        // 0 -> 1 <-> 2 -> 3, and 4 alone with itself.
        let (part, count) = components(&[vec![1], vec![2], vec![1, 3], vec![], vec![4]]);
        assert_eq!((count, &part[..]), (4, &[2, 1, 1, 0, 3][..]));
        assert_eq!(components(&[]), (Vec::new(), 0));
    }
}
