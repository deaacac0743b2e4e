//! Resolves addresses in processes that run other programs, with the files that these have mapped.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{
    CALLERS, Frame, Resolver, Threads, awaited, called, describe, first_own, is_named_by_user, is_ours,
    is_std, is_system, libtest, line_in, own, paths, short,
};
use crate::proc::mapped::MappedFile;
use crate::proc::maps::Address;
use crate::proc::waits::{On, Thread};
use crate::recorder::awaited::Awaited;
use crate::recorder::call_site::Names;
use crate::recorder::lines::{Line, Module};
use crate::recorder::runtimes;
use crate::sys::lock::lock;

/// Time limit for all of it.
const TIME: Duration = Duration::from_millis(300);
/// The same where they are all that there is.
const TIME_WITHOUT_TEST: Duration = Duration::from_secs(10);

/// Resolves the frames of processes that run other programs.
pub(super) fn name(all: &Threads<'_>, resolver: &mut Resolver<'_>, names: &mut Names) {
    let until = Instant::now() + if all.without_test { TIME_WITHOUT_TEST } else { TIME };
    let here = resolver.here;
    for thread in all.others.iter().filter(|thread| !thread.frames.is_empty()) {
        if Instant::now() >= until {
            return;
        }
        let frames = resolver.stack_of_other(&thread.frames, all.mapped);
        let (others, users) = frames.split_at(first_own(&frames));
        let called = called(others).filter(|name| *name != thread.syscall && !is_offset(name));
        let mut stack = own(users, 1 + CALLERS, here);
        if stack.is_empty() {
            // A program without line information may still have function names.
            let functions = frames.iter().filter(|frame| is_named(frame)).take(1 + CALLERS);
            stack = functions.map(|frame| describe(frame, here)).collect();
        } else if let Some(called) = called {
            stack.insert(0, called.to_owned());
        }
        if resolver.full {
            stack = frames.iter().map(|frame| describe(frame, here)).collect();
        }
        name_wait(thread, others, all.mapped, names);
        // Of a program without debug information, the functions around the C library's lock may have no names.
        if !all.without_test && names.awaited.get(&thread.tid) == Some(&Awaited::CLibrary) {
            names.awaited.remove(&thread.tid);
        }
        names.lines.extend(line_in(&frames, here).map(|line| (thread.tid, line)));
        if runtimes::waits(&paths(&frames), &thread.name) {
            names.in_runtime.insert(thread.tid);
        }
        names.functions.extend(libtest::functions(&frames).map(|all| (thread.tid, all)));
        names.stacks.insert(thread.tid, stack);
    }
}

/// Names what a thread waits for, as it is named of a test's own.
fn name_wait(thread: &Thread, others: &[Frame], mapped: &[MappedFile], names: &mut Names) {
    let called = called(others).filter(|name| !is_offset(name) && *name != thread.syscall);
    names.called.extend(called.map(|name| (thread.tid, name.to_owned())));
    let On::Futex { place, .. } = &thread.on else { return };
    names.awaited.extend(awaited(others).map(|kind| (thread.tid, kind)));
    let Some(place) = place.as_ref().filter(|place| !is_system(&place.module)) else { return };
    let file = mapped.iter().find(|file| file.path == place.module);
    let mut read = lock(&MAPPED);
    let name = file.and_then(|file| module(&mut read, file)).and_then(|module| module.symbol(place.offset));
    names.locks.extend(name.map(|name| (thread.tid, short(&name))));
}

/// Whether a frame without a line has the name of a function that belongs neither to std nor to the start of
/// a program.
fn is_named(frame: &Frame) -> bool {
    let Some(function) = frame.line.function.as_deref() else { return false };
    let is_rust = function.contains("::");
    !frame.is_system
        && !is_offset(function)
        && (is_rust && is_named_by_user(frame) || !is_rust && !function.starts_with('_'))
}

/// Whether the name is only a position in a file: `server+0x1f20`.
fn is_offset(function: &str) -> bool {
    function.rsplit_once("+0x").is_some_and(|(_, offset)| u64::from_str_radix(offset, 16).is_ok())
}

impl Resolver<'_> {
    /// The frames of a stack of a process that runs another program.
    fn stack_of_other(&mut self, addresses: &[Address], mapped: &[MappedFile]) -> Vec<Frame> {
        let mut stack = Vec::new();
        for address in addresses {
            let file = mapped.iter().find(|file| file.path == address.module);
            let full = self.full;
            let frames = self.known_of_others.entry(address.clone());
            let frames = frames.or_insert_with(|| resolve_in(address, file, full));
            stack.extend(frames.iter().cloned());
        }
        stack
    }
}

/// Resolves an address in a file that another program has mapped.
fn resolve_in(address: &Address, file: Option<&MappedFile>, full: bool) -> Vec<Frame> {
    // A return address is one past the call.
    let call = address.offset.saturating_sub(1);
    let is_system = is_system(&address.module);
    let mut mapped = lock(&MAPPED);
    let module = file.and_then(|file| module(&mut mapped, file));
    let names = |source: &Path| !full && (is_std(source) || is_ours(source));
    let mut lines = match module {
        // By name only: resolving libc's lines may mean inflating megabytes of debug information.
        Some(module) if is_system => vec![Line { function: module.symbol(call), ..Line::default() }],
        Some(module) => module.lines(call, names),
        None => vec![Line::default()],
    };
    if let Some(last) = lines.last_mut().filter(|last| last.function.is_none()) {
        let name = address.module.rsplit('/').next().unwrap_or_default();
        last.function = Some(format!("{name}+{call:#x}"));
    }
    let frame = |line: Line| Frame {
        is_plumbing: is_system,
        is_system,
        line: Line { function: line.function.as_deref().map(short), ..line },
    };
    lines.into_iter().map(frame).collect()
}

/// The files of other programs that were read.
static MAPPED: Mutex<Vec<(MappedFile, Option<Module>)>> = Mutex::new(Vec::new());

fn module<'a>(
    mapped: &'a mut Vec<(MappedFile, Option<Module>)>,
    file: &MappedFile,
) -> Option<&'a mut Module> {
    if !mapped.iter().any(|(known, _)| known == file) {
        mapped.push((file.clone(), Module::of_mapped(file)));
    }
    mapped.iter_mut().find(|(known, _)| known == file)?.1.as_mut()
}
