//! Names for addresses: function, file and line, from the debug information of the files that are
//! mapped. Only for tests that failed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::diagnosis::{Awaited, Names, Origin};
use crate::facts::{Facts, Site};
use crate::proc::maps::{Address, Maps};
use crate::proc::waits::{On, Thread};
use crate::sys;

/// How many of the user's frames are shown besides the first.
const CALLERS: usize = 2;

#[derive(Clone)]
struct Frame {
    function: Option<String>,
    file: Option<PathBuf>,
    line: u32,
    column: u32,
    /// It lies in the C library, the loader or the unwinder, or it is what the attribute has put
    /// around the body.
    is_plumbing: bool,
    /// It lies in the C library, the loader or the unwinder.
    is_system: bool,
}

/// Gives the addresses in a test's facts their names.
pub(crate) fn names(facts: &Facts) -> Names {
    let threads = || facts.tasks().map(|(_, thread)| thread);
    if facts.sites.is_empty() && threads().next().is_none() {
        return Names::default();
    }
    // The harness has mapped the same files, but maybe elsewhere.
    let maps = Maps::read(std::process::id() as i32).unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    let full = std::env::var_os("CHILDPROOF_BACKTRACE").is_some_and(|value| value == "full");
    let mut resolver = Resolver { maps: &maps, known: HashMap::new(), here: &here, full };
    let mut names = Names {
        full,
        origins: facts.sites.iter().map(|site| origin(site, &mut resolver)).collect(),
        locks: threads().filter_map(|thread| Some((thread.tid, lock(thread, &maps)?))).collect(),
        ..Names::default()
    };
    for thread in threads().filter(|thread| !thread.frames.is_empty()) {
        let frames = resolver.stack(&thread.frames);
        let called = called(&frames).filter(|name| *name != thread.syscall);
        let stack = match full {
            true => frames.iter().map(|frame| describe(frame, &here)).collect(),
            false => {
                let own = own(frames.get(first_own(&frames)..).unwrap_or_default(), 1 + CALLERS, &here);
                called.map(str::to_owned).into_iter().chain(own).collect()
            }
        };
        names.called.extend(called.map(|name| (thread.tid, name.to_owned())));
        if matches!(thread.on, On::Futex { .. }) {
            names.awaited.extend(awaited(&frames).map(|kind| (thread.tid, kind)));
        }
        names.stacks.insert(thread.tid, stack);
    }
    names
}

/// The line of code of one site in this process: `at src/server.rs:88:20 Server::start`.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
pub(crate) fn line_of(site: &Site, maps: &Maps) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let mut resolver = Resolver { maps, known: HashMap::new(), here: &here, full: false };
    origin(site, &mut resolver).at()
}

/// The place of the first of the user's own frames in a stack.
fn first_own(frames: &[Frame]) -> usize {
    let first = frames.iter().position(|frame| is_users(frame) && !is_of_registry(frame));
    let first = first.or_else(|| frames.iter().position(|frame| is_users(frame) || is_named_by_user(frame)));
    first.unwrap_or(frames.len())
}

/// What the user called of others' code, be it std or libc.
fn called(frames: &[Frame]) -> Option<&str> {
    let others = || frames[..first_own(frames)].iter().rev().filter(|frame| frame.function.is_some());
    let runs_code = |frame: &&Frame| frame.function.as_deref().is_some_and(only_runs_code);
    let called = others().find(|frame| !frame.is_plumbing && !runs_code(frame));
    let called = called.or_else(|| others().find(|frame| !frame.is_plumbing)).or_else(|| others().next());
    called.and_then(|frame| frame.function.as_deref().map(public_name))
}

/// Whether a function of std's does nothing but to call the user's: where that was inlined or has no
/// name, it is the last before it.
fn only_runs_code(name: &str) -> bool {
    let parts =
        ["core::ops::function::Fn", "catch_unwind", "__rust_", "thread_start", "std::thread::lifecycle"];
    parts.iter().any(|part| name.contains(part))
}

/// What a thread waits for that is in a futex call.
fn awaited(frames: &[Frame]) -> Option<Awaited> {
    let others = &frames[..first_own(frames)];
    let name = |frame: &Frame| frame.function.clone().unwrap_or_default();
    let system = others.iter().take_while(|frame| frame.is_system).count();
    let mut library: Vec<String> = others[..system].iter().map(name).collect();
    library.retain(|name| !name.is_empty());
    // std makes the system call itself, through this function; libc's own code does not.
    if library.first().is_some_and(|name| name != "syscall") {
        return awaited_of_c(&library);
    }
    let words: Vec<String> = others[system..]
        .iter()
        // With line tables alone, a function that was inlined has no path, but a file.
        .map(|frame| {
            let file = frame.file.as_deref().and_then(Path::to_str).unwrap_or_default();
            format!("{} {}", name(frame), file.trim_end_matches(".rs").replace('/', "::"))
        })
        .collect();
    awaited_of_rust(&words)
}

/// The same by the functions of the C library, the innermost first.
fn awaited_of_c(functions: &[String]) -> Option<Awaited> {
    let known = [
        ("pthread_mutex_", Awaited::Lock),
        ("pthread_rwlock_", Awaited::Lock),
        ("pthread_spin_", Awaited::Lock),
        ("pthread_cond_", Awaited::Condvar),
        ("pthread_barrier_", Awaited::Barrier),
        ("pthread_once", Awaited::Once),
        ("sem_", Awaited::Semaphore),
        ("mtx_", Awaited::Lock),
        ("cnd_", Awaited::Condvar),
        ("call_once", Awaited::Once),
    ];
    // These wait for threads of the library's own.
    let others = ["aio_", "gai_", "lio_"];
    if functions.iter().any(|function| others.iter().any(|other| public_name(function).starts_with(other))) {
        return None;
    }
    let kind = |function: &String| {
        let function = public_name(function);
        known.iter().find(|(begin, _)| function.starts_with(begin)).map(|(_, kind)| kind.clone())
    };
    functions.iter().find_map(kind).or(Some(Awaited::CLibrary))
}

/// The same by the functions and files of std and of crates, the innermost first, up to the user's.
fn awaited_of_rust(frames: &[String]) -> Option<Awaited> {
    // A barrier waits for a condition variable, and a channel to be unparked: the innermost says
    // what it is built of, and one further out may say what it is.
    // In an optimised build the inner ones may be missing.
    let primitives: [(&[&str], Awaited); 7] = [
        (&["sync::mutex::", "sync::rwlock::", "parking_lot::raw_", "lock_api::"], Awaited::Lock),
        (&["sync::condvar::", "parking_lot::condvar"], Awaited::Condvar),
        (&["sync::once::", "parking_lot::once"], Awaited::Once),
        (&["thread_parking", "thread_parker", "crossbeam_utils::sync::parker"], Awaited::Unpark),
        (&["futex_mutex", "futex_rwlock"], Awaited::Lock),
        (&["sync::barrier::"], Awaited::Barrier),
        (
            &["::Thread>::park", "thread::Thread::park", "thread::park ", "functions::park ", "::mpmc::"],
            Awaited::Unpark,
        ),
    ];
    let is_in = |frame: &String, parts: &[&str]| parts.iter().any(|part| frame.contains(part));
    let (at, kind) = frames.iter().enumerate().find_map(|(at, frame)| {
        let found = primitives.iter().find(|(parts, _)| is_in(frame, parts));
        Some((at, found?.1.clone()))
    })?;
    let outer = &frames[at..];
    let has = |parts: &[&str]| outer.iter().any(|frame| is_in(frame, parts));
    let channel = ["::mpmc::", "::mpsc::", "crossbeam_channel::"];
    let sends = |frame: &String| is_in(frame, &channel) && frame.contains("send");
    Some(match kind {
        Awaited::Unpark | Awaited::Condvar if outer.iter().any(sends) => Awaited::Room,
        Awaited::Unpark | Awaited::Condvar if has(&channel) => Awaited::Message,
        Awaited::Unpark if has(&["thread::scoped"]) => Awaited::Scope,
        Awaited::Condvar if has(&["sync::barrier"]) => Awaited::Barrier,
        // parking_lot parks its threads itself.
        Awaited::Unpark if has(&["parking_lot::condvar"]) => Awaited::Condvar,
        Awaited::Unpark if has(&["parking_lot::raw_", "lock_api::"]) => Awaited::Lock,
        Awaited::Unpark if has(&["parking_lot::once"]) => Awaited::Once,
        kind => kind,
    })
}

/// The first of the user's own frames: `tests/server.rs:31:10 server::restarts`.
fn own(frames: &[Frame], most: usize, here: &Path) -> Vec<String> {
    frames
        .iter()
        .enumerate()
        // A runtime that calls back is no news, but for the place itself if there is no better.
        .filter(|(at, frame)| {
            is_users(frame) && (*at == 0 || !is_of_registry(frame))
                || frame.file.is_none() && is_named_by_user(frame)
        })
        .map(|(_, frame)| frame)
        .take(most)
        .map(|frame| match (&frame.function, place(frame, here)) {
            (Some(function), Some(place)) => format!("{place} {function}"),
            (function, place) => place.or_else(|| function.clone()).unwrap_or_default(),
        })
        .collect()
}

/// What a function of libc is called outside of it: `wait4`, not `__GI___wait4`.
fn public_name(name: &str) -> &str {
    let inner = name.strip_prefix("__GI_").unwrap_or(name);
    inner.strip_prefix("__libc_").unwrap_or(inner).trim_start_matches('_')
}

/// The name of the static that a futex lies in, or of what it is part of.
fn lock(thread: &Thread, maps: &Maps) -> Option<String> {
    let On::Futex { place, .. } = &thread.on else { return None };
    let place = place.as_ref().filter(|place| !is_system(&place.module))?;
    let mut name = None;
    // `resolve` looks one byte before a return address.
    let at = maps.address_of(place)? + 1;
    backtrace::resolve(at as *mut _, |symbol| {
        name = name.take().or_else(|| symbol.name().map(|name| short(&format!("{name:#}"))));
    });
    name
}

fn origin(site: &Site, resolver: &mut Resolver<'_>) -> Origin {
    let frames = resolver.stack(&site.frames);
    let Resolver { here, full, .. } = *resolver;
    let at = frames
        .iter()
        .position(|frame| is_users(frame) && !is_of_registry(frame))
        .or_else(|| frames.iter().position(is_users))
        .or_else(|| frames.iter().position(|frame| frame.file.is_none() && is_named_by_user(frame)));
    let best = at.and_then(|at| frames.get(at));
    let above = frames.get(at.map_or(frames.len(), |at| at + 1)..).unwrap_or_default();
    Origin {
        call: site.call.clone(),
        maker: site.maker,
        keys: site.keys,
        is_process: site.is_process,
        threads: site.threads,
        thread: site.thread.clone(),
        execed: site.execed,
        place: best.and_then(|frame| place(frame, here)),
        function: best.and_then(|frame| frame.function.clone()),
        callers: own(above, CALLERS, here),
        functions: frames.iter().filter_map(|frame| frame.function.clone()).collect(),
        stack: if full { frames.iter().map(|frame| describe(frame, here)).collect() } else { Vec::new() },
    }
}

/// Looks up addresses, each once: to parse the debug information of one that is new takes
/// milliseconds in an unoptimised build.
struct Resolver<'a> {
    maps: &'a Maps,
    known: HashMap<Address, Vec<Frame>>,
    /// Where paths are shown from.
    here: &'a Path,
    /// Everything is wanted, the harness's own frames too.
    full: bool,
}

impl Resolver<'_> {
    /// The frames of a stack, up to the harness's own below the body.
    fn stack(&mut self, addresses: &[Address]) -> Vec<Frame> {
        let mut stack = Vec::new();
        for address in addresses {
            let maps = self.maps;
            let frames = self.known.entry(address.clone()).or_insert_with(|| resolve(address, maps));
            let is_harness = |frame: &Frame| {
                frame.function.as_deref().is_some_and(|function| function.contains("testproc::TestProcess"))
            };
            if !self.full && frames.iter().any(is_harness) {
                break;
            }
            stack.extend(frames.iter().cloned());
        }
        stack
    }
}

/// The function at an address and those that were inlined there, the innermost first.
fn resolve(address: &Address, maps: &Maps) -> Vec<Frame> {
    let mut frames = Vec::new();
    let Some(at) = maps.address_of(address) else { return frames };
    if is_system(&address.module) {
        // By name only: to look up libc's lines may be to inflate megabytes of them.
        let function = sys::exported_name(at - 1);
        return vec![Frame { function, file: None, line: 0, column: 0, is_plumbing: true, is_system: true }];
    }
    // `resolve` takes a return address, and looks one byte before it, where the call is.
    backtrace::resolve(at as *mut _, |symbol| {
        let function = symbol.name().map(|name| format!("{name:#}"));
        frames.push(Frame {
            function: function.as_deref().map(short),
            file: symbol.filename().map(Path::to_owned),
            line: symbol.lineno().unwrap_or(0),
            column: symbol.colno().unwrap_or(0),
            is_plumbing: function.as_deref().is_some_and(is_glue),
            is_system: false,
        });
    });
    frames
}

/// Whether a file is the C library, the loader or the unwinder.
fn is_system(module: &str) -> bool {
    let name = module.rsplit('/').next().unwrap_or_default();
    ["libc.so", "libc-", "ld-linux", "ld-musl", "libpthread", "libgcc_s"]
        .iter()
        .any(|known| name.starts_with(known))
}

/// The path of a function without what the attribute has put into it.
fn short(name: &str) -> String {
    let parts: Vec<&str> = name.split("::").filter(|part| !part.starts_with("__CHILDPROOF_")).collect();
    parts.join("::")
}

/// Whether a function is what the attribute has put around a body.
fn is_glue(name: &str) -> bool {
    name.rsplit_once("::").is_some_and(|(path, last)| {
        last.starts_with("{{closure}}")
            && path.rsplit("::").next().is_some_and(|part| part.starts_with("__CHILDPROOF_"))
    })
}

/// Whether a frame is neither Rust's nor ours.
fn is_users(frame: &Frame) -> bool {
    let Some(file) = frame.file.as_deref().and_then(Path::to_str) else { return false };
    let function = frame.function.as_deref().unwrap_or_default();
    // Where std's source lies: in the distributed library, or as it was remapped.
    let std =
        file.starts_with("/rustc/") || file.starts_with("library/") || file.contains("/lib/rustlib/src/");
    // With line tables alone, a function that was inlined has no path.
    let ours = file.starts_with(concat!(env!("CARGO_MANIFEST_DIR"), "/src/"))
        || function.starts_with("childproof::")
        || function.starts_with("<childproof::");
    let interposed = [
        "fork",
        "pipe",
        "pipe2",
        "socketpair",
        "posix_spawn",
        "posix_spawnp",
        "close",
        "dup2",
        "dup3",
        "close_range",
    ]
    .contains(&function);
    !std && !ours && !interposed && !frame.is_plumbing
}

/// The same by the name alone, in a binary without debug information.
fn is_named_by_user(frame: &Frame) -> bool {
    let function = frame.function.as_deref().unwrap_or_default().trim_start_matches('<');
    let others = ["std::", "core::", "alloc::", "childproof::", "nix::", "libc::", "_", "main"];
    // Everything may have been inlined into `main`, which made nothing itself.
    function.contains("::")
        && !frame.is_plumbing
        && !function.ends_with("::main")
        && !others.iter().any(|other| function.starts_with(other))
}

/// Whether a frame is in a crate that cargo has fetched.
fn is_of_registry(frame: &Frame) -> bool {
    let file = frame.file.as_deref().and_then(Path::to_str).unwrap_or_default();
    file.contains("/registry/src/") || file.contains("/git/checkouts/")
}

/// `tests/server.rs:31:10`.
fn place(frame: &Frame, here: &Path) -> Option<String> {
    let file = frame.file.as_deref()?;
    let file = file.strip_prefix(here).unwrap_or(file);
    let text = file.display().to_string();
    // `~/.cargo/registry/src/INDEX/nix-0.31.0/src/unistd.rs` says no more than its end.
    let text = match text.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/')) {
        Some((_, rest)) => rest.to_owned(),
        None => text,
    };
    Some(if frame.column > 0 {
        format!("{text}:{}:{}", frame.line, frame.column)
    } else {
        format!("{text}:{}", frame.line)
    })
}

fn describe(frame: &Frame, here: &Path) -> String {
    let function = frame.function.as_deref().unwrap_or("?");
    match place(frame, here) {
        Some(place) => format!("{function} at {place}"),
        None => function.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{awaited_of_c, awaited_of_rust};
    use crate::diagnosis::Awaited;

    #[test]
    fn a_futex_is_what_the_functions_that_wait_for_it_say() {
        for (frames, expected) in [
            (&["std::sys::pal::unix::futex::futex_wait "][..], None),
            (&["<std::sys::sync::mutex::futex::Mutex>::lock_contended "], Some(Awaited::Lock)),
            (&["std::sys::sync::rwlock::futex::RwLock::read_contended "], Some(Awaited::Lock)),
            // The file is all that is known of a function that was inlined.
            (&["wait library::std::src::sys::sync::condvar::futex"], Some(Awaited::Condvar)),
            (
                &["std::sys::sync::condvar::futex::Condvar::wait ", "<std::sync::barrier::Barrier>::wait "],
                Some(Awaited::Barrier),
            ),
            // It has been woken, and waits for the lock.
            (
                &["Mutex::lock std::src::sys::sync::mutex::futex", "Condvar::wait sys::sync::condvar::futex"],
                Some(Awaited::Lock),
            ),
            (&["std::sys::sync::once::futex::Once::call "], Some(Awaited::Once)),
            (&["std::sys::sync::thread_parking::futex::Parker::park "], Some(Awaited::Unpark)),
            (
                &["sys::sync::thread_parking::futex::Parker::park ", "std::thread::scoped::scope "],
                Some(Awaited::Scope),
            ),
            (
                &[
                    "sys::sync::thread_parking::futex::Parker::park ",
                    "std::sync::mpmc::list::Channel<T>::recv ",
                ],
                Some(Awaited::Message),
            ),
            (
                &[
                    "sys::sync::thread_parking::futex::Parker::park ",
                    "crossbeam_channel::channel::Sender<T>::send ",
                ],
                Some(Awaited::Room),
            ),
            // An optimised build.
            (&["<std::sync::barrier::Barrier>::wait "], Some(Awaited::Barrier)),
            (
                &["std::thread::functions::park ", "core::ops::function::FnOnce::call_once "],
                Some(Awaited::Unpark),
            ),
            (&["std::sync::mpmc::array::Channel<T>::send::{{closure}} "], Some(Awaited::Room)),
            // A channel's own lock.
            (
                &["sys::sync::mutex::futex::Mutex::lock ", "std::sync::mpmc::list::Channel<T>::recv "],
                Some(Awaited::Lock),
            ),
            (
                &[
                    "parking_lot_core::thread_parker::imp::ThreadParker::futex_wait ",
                    "parking_lot_core::parking_lot::park ",
                    "parking_lot::raw_mutex::RawMutex::lock_slow ",
                ],
                Some(Awaited::Lock),
            ),
            (
                &[
                    "parking_lot_core::thread_parker::x ",
                    "parking_lot::condvar::Condvar::wait_until_internal ",
                ],
                Some(Awaited::Condvar),
            ),
        ] {
            let words: Vec<String> = frames.iter().map(|frame| (*frame).to_owned()).collect();
            assert_eq!(awaited_of_rust(&words), expected, "{frames:?}");
        }
        for (functions, expected) in [
            (&["__lll_lock_wait", "pthread_mutex_lock"][..], Some(Awaited::Lock)),
            (&["__pthread_cond_wait"], Some(Awaited::Condvar)),
            (&["sem_wait"], Some(Awaited::Semaphore)),
            (&["__libc_malloc"], Some(Awaited::CLibrary)),
            (&["aio_suspend"], None),
        ] {
            let names: Vec<String> = functions.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(awaited_of_c(&names), expected, "{functions:?}");
        }
    }
}
