//! Resolves addresses to function, file and line, with the debug information of the mapped files. Runs only
//! for tests that failed.

mod libtest;
mod others;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::config::registry::Test;
use crate::proc::mapped::MappedFile;
use crate::proc::maps::{Address, Maps};
use crate::proc::threads::ThreadStack;
use crate::proc::waits::{On, Thread};
use crate::recorder::awaited::Awaited;
use crate::recorder::call_site::{CallSite, Names, ResolvedCallSite, SourceLocation, is_installed};
use crate::recorder::lines::{self, Line, Module};
use crate::recorder::{checkout, runtimes};
use crate::sys;
use crate::sys::lock::lock;

/// How many of the user's frames are shown after the first.
const CALLERS: usize = 2;

#[derive(Clone)]
struct Frame {
    line: Line,
    /// Belongs to the C library, the loader or the unwinder, or is code that the attribute has put around the
    /// body.
    is_plumbing: bool,
    /// Belongs to the C library, the loader or the unwinder.
    is_system: bool,
}

/// The threads whose stacks were read.
#[derive(Default)]
pub(crate) struct Threads<'a> {
    /// Threads of the test process and its forks.
    pub(crate) own: Vec<&'a Thread>,
    /// Threads of processes that run other programs.
    pub(crate) others: Vec<&'a Thread>,
    /// The files that the frames of `others` lie in.
    pub(crate) mapped: &'a [MappedFile],
    /// Stacks of threads of the test process that went on.
    pub(crate) stacks: &'a [ThreadStack],
    /// There is no test: all of them matter alike.
    pub(crate) without_test: bool,
}

/// Resolves the addresses of recorded calls and of stacks.
pub(crate) fn names(
    call_sites: &[CallSite],
    all: &Threads<'_>,
    test: impl FnOnce() -> Option<&'static Test>,
) -> Names {
    let threads = || all.own.iter().copied();
    let is_nothing = call_sites.is_empty() && all.stacks.is_empty();
    if is_nothing && threads().next().is_none() && all.others.is_empty() {
        return Names::default();
    }
    // The harness has mapped the same files, but maybe at other addresses.
    let maps = Maps::read(std::process::id() as i32).unwrap_or_default();
    let here = checkout::root();
    let full = std::env::var_os("CHILDPROOF_BACKTRACE").is_some_and(|value| value == "full");
    let body = test().and_then(|test| body(test, &maps));
    let has_lines = body.as_ref().is_some_and(|body| body.has_lines(&maps));
    let mut resolver = Resolver { full, body, has_lines, ..Resolver::new(&maps, here) };
    let mut names = Names {
        full,
        call_sites: call_sites.iter().map(|site| resolved(site, &mut resolver)).collect(),
        locks: threads().filter_map(|thread| Some((thread.tid, futex(thread)?))).collect(),
        ..Names::default()
    };
    for thread in threads().filter(|thread| !thread.frames.is_empty()) {
        let frames = resolver.stack(&thread.frames);
        let (others, users) = frames.split_at(first_own(&frames));
        let called = called(others).filter(|name| *name != thread.syscall);
        let stack = match full {
            true => frames.iter().map(|frame| describe(frame, here)).collect(),
            false => {
                let own = own(users, 1 + CALLERS, here);
                called.map(str::to_owned).into_iter().chain(own).collect()
            }
        };
        names.called.extend(called.map(|name| (thread.tid, name.to_owned())));
        if matches!(thread.on, On::Futex { .. }) {
            names.awaited.extend(awaited(others).map(|kind| (thread.tid, kind)));
        }
        names.lines.extend(line_in(&frames, here).map(|line| (thread.tid, line)));
        if runtimes::waits(&paths(&frames), &thread.name) {
            names.in_runtime.insert(thread.tid);
        }
        if runtimes::is_in_task(&paths(&frames)) {
            names.in_task.insert(thread.tid);
        }
        names.functions.extend(libtest::functions(&frames).map(|all| (thread.tid, all)));
        names.stacks.insert(thread.tid, stack);
    }
    for thread in all.stacks {
        let frames = resolver.stack(&thread.frames);
        names.lines.extend(line_in(&frames, here).map(|line| (thread.tid, line)));
        names.stacks.insert(thread.tid, own(&frames[first_own(&frames)..], 1 + CALLERS, here));
    }
    others::name(all, &mut resolver, &mut names);
    let is_nowhere = |site: &ResolvedCallSite| site.place.is_none() && site.function.is_none();
    let mut resolved = call_sites.iter().zip(&names.call_sites);
    resolver.lineless |= resolved.any(|(site, found)| is_nowhere(found) && site.may_be_of_user());
    names.lineless = resolver.lineless && !resolver.has_lines;
    names.compressed = names.lineless && are_compressed(call_sites);
    names
}

/// Whether a file of these calls, or this program, has compressed debug information.
fn are_compressed(call_sites: &[CallSite]) -> bool {
    let frames = call_sites.iter().flat_map(|site| &site.frames);
    let mut files: HashSet<PathBuf> = frames.map(|address| PathBuf::from(&address.module)).collect();
    files.extend(std::env::current_exe());
    files.iter().any(|file| lines::are_compressed(file))
}

/// Loads the debug information of a test's binary in advance. In an unoptimised build that takes as long as
/// inspecting what the test has left, so both run at the same time.
pub(crate) fn get_ready(test: Option<&Test>) {
    let maps = Maps::read(std::process::id() as i32).unwrap_or_default();
    let code = test.map_or(get_ready as *const () as usize, |test| test.body as usize);
    if let Some(address) = maps.locate(code as u64 + 1) {
        resolve(&address, &maps, false);
    }
}

/// Whether a program is a libtest binary, judged by its symbols.
#[cfg(feature = "__engine")]
pub(crate) fn is_libtest(program: &Path) -> bool {
    let mut modules = lock(&MODULES);
    let module = program.to_str().and_then(|program| module(&mut modules, program));
    module.is_some_and(|module| module.has_name(b"test_main_static"))
}

/// The line of code of one call site of this process: `src/server.rs:88:20 Server::start`.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
pub(crate) fn line_of(site: &CallSite, maps: &Maps) -> String {
    let mut resolver = Resolver::new(maps, checkout::root());
    let ResolvedCallSite { place, function, .. } = resolved(site, &mut resolver);
    let parts = [place.map(|place| place.to_string()), function];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Index of the first of the user's own frames in a stack.
fn first_own(frames: &[Frame]) -> usize {
    let first = frames.iter().position(|frame| is_users(frame) && !is_of_registry(frame));
    let first = first.or_else(|| frames.iter().position(|frame| is_users(frame) || is_named_by_user(frame)));
    first.unwrap_or(frames.len())
}

/// The function of other code, std or libc, that the user's code called.
fn called(others: &[Frame]) -> Option<&str> {
    let says = |frame: &&Frame| {
        let name = frame.line.function.as_deref();
        name.is_some_and(|name| !only_runs_code(name)) && !is_by_us(frame)
    };
    let others = || others.iter().rev().filter(says);
    let called = others().find(|frame| !frame.is_plumbing).or_else(|| others().next());
    called.and_then(|frame| frame.line.function.as_deref().map(public_name))
}

/// Whether a function of std only calls the user's code. Where that was inlined or has no name, this frame is
/// the last one before it.
fn only_runs_code(name: &str) -> bool {
    let parts = [
        "core::ops::function::Fn",
        "catch_unwind",
        "__rust_",
        "thread_start",
        "std::thread::lifecycle",
        // The C library's callers of `main` and of a thread's first function.
        "__libc_start",
        "start_thread",
    ];
    parts.iter().any(|part| name.contains(part))
}

/// What a thread in a futex call waits for, judged by the function that the user's code called.
fn awaited(others: &[Frame]) -> Option<Awaited> {
    let name = |frame: &Frame| frame.line.function.clone().unwrap_or_default();
    let system = others.iter().take_while(|frame| frame.is_system).count();
    let library = others[..system].iter().map(|frame| public_name(&name(frame)).to_owned());
    let mut library: Vec<String> = library.collect();
    library.retain(|name| !name.is_empty());
    // std makes the futex call through libc's `syscall`; libc's own code does not.
    if library.first().is_some_and(|name| name != "syscall") {
        return Awaited::of_c(&library);
    }
    let words: Vec<String> = others[system..]
        .iter()
        // With line tables alone, an inlined function has a file but no path.
        .map(|frame| {
            let file = frame.line.file.as_deref().and_then(Path::to_str).unwrap_or_default();
            format!("{} {}", name(frame), file.trim_end_matches(".rs").replace('/', "::"))
        })
        .collect();
    Awaited::of_rust(&words)
}

/// The functions of a stack, each with its crate and module.
fn paths(frames: &[Frame]) -> Vec<String> {
    frames.iter().map(path).collect()
}

fn path(frame: &Frame) -> String {
    let function = frame.line.function.as_deref().unwrap_or_default();
    let plain = match function.strip_prefix('<') {
        Some(of_type) => of_type,
        None => function.split('<').next().unwrap_or_default(),
    };
    // With line tables alone, an inlined function has a file but no path.
    match frame.line.file.as_deref().and_then(Path::to_str) {
        Some(file) if is_ours(Path::new(file)) => format!("childproof::{plain}"),
        Some(file) if !plain.contains("::") => format!("{}::{plain}", module_of(file)),
        _ => plain.to_owned(),
    }
}

/// Gives `tokio::runtime::park` for `~/.cargo/registry/src/INDEX/tokio-1.54.1/src/runtime/park.rs`.
fn module_of(file: &str) -> String {
    let (before, within) = file.rsplit_once("/src/").unwrap_or(("", file));
    let directory = before.rsplit('/').next().unwrap_or_default();
    let name = match directory.rsplit_once('-') {
        Some((name, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => name,
        _ => directory,
    };
    let within = within.trim_end_matches(".rs").replace('/', "::");
    format!("{}::{within}", name.replace('-', "_"))
}

/// The line of the user's own code that a thread is in.
fn line_in(frames: &[Frame], here: &Path) -> Option<SourceLocation> {
    let own = frames.iter().find(|frame| is_users(frame) && !is_of_registry(frame))?;
    place(own, here)
}

/// The first of the user's own frames: `tests/server.rs:31:10 server::restarts`.
fn own(frames: &[Frame], most: usize, here: &Path) -> Vec<String> {
    frames
        .iter()
        .enumerate()
        // A runtime's frames are left out, except for the first place if there is no better one.
        .filter(|(at, frame)| {
            is_users(frame) && (*at == 0 || !is_of_registry(frame))
                || frame.line.file.is_none() && is_named_by_user(frame)
        })
        .map(|(_, frame)| frame)
        .take(most)
        .map(|frame| match (&frame.line.function, place(frame, here)) {
            (Some(function), Some(place)) => format!("{place} {function}"),
            (function, place) => {
                place.map(|place| place.to_string()).or_else(|| function.clone()).unwrap_or_default()
            }
        })
        .collect()
}

/// The public name of a libc function: `wait4`, not `__GI___wait4`.
fn public_name(name: &str) -> &str {
    let inner = name.strip_prefix("__GI_").unwrap_or(name);
    inner.strip_prefix("__libc_").unwrap_or(inner).trim_start_matches('_')
}

/// The name of the static that a futex lies in.
fn futex(thread: &Thread) -> Option<String> {
    let On::Futex { place, .. } = &thread.on else { return None };
    let place = place.as_ref().filter(|place| !is_system(&place.module))?;
    let mut modules = lock(&MODULES);
    let name = module(&mut modules, &place.module).map(|module| module.symbol(place.offset));
    name.flatten().map(|name| short(&name))
}

fn resolved(site: &CallSite, resolver: &mut Resolver<'_>) -> ResolvedCallSite {
    let frames = resolver.stack(&site.frames);
    let Resolver { here, full, .. } = *resolver;
    let paths = paths(&frames);
    let at = frames
        .iter()
        .position(|frame| is_users(frame) && !is_of_registry(frame))
        .or_else(|| frames.iter().position(is_users))
        .or_else(|| frames.iter().position(|frame| frame.line.file.is_none() && is_named_by_user(frame)));
    let best = at.and_then(|at| frames.get(at));
    let functions: Vec<String> = frames.iter().filter_map(|frame| frame.line.function.clone()).collect();
    let above = frames.get(at.map_or(frames.len(), |at| at + 1)..).unwrap_or_default();
    ResolvedCallSite {
        call: site.call.clone(),
        creator: site.creator,
        keys: site.keys,
        kind: site.kind,
        threads: site.threads,
        thread: site.thread.clone(),
        test: site.test,
        execed: site.execed,
        cloexec: site.cloexec,
        command_line: site.command_line.clone(),
        place: best.and_then(|frame| place(frame, here)),
        function: best.and_then(|frame| frame.line.function.clone()),
        callers: own(above, CALLERS, here),
        in_test: libtest::line(&frames, here),
        of_runtime: match site.call.as_str() {
            "eventfd" => runtimes::is_waker(&paths),
            _ => runtimes::is_own_socket(&paths),
        },
        is_kept: site.call == "socketpair" && runtimes::is_kept_socket(&paths)
            || runtimes::is_of_harness(&paths)
            || runtimes::is_sanitizers(&functions),
        functions,
        is_tokios: runtimes::is_process(&paths),
        stack: match full {
            true => frames.iter().skip_while(is_recorder).map(|frame| describe(frame, here)).collect(),
            false => Vec::new(),
        },
    }
}

/// Resolves addresses, each once: parsing debug information for a new one takes milliseconds in an
/// unoptimised build.
struct Resolver<'a> {
    maps: &'a Maps,
    known: HashMap<Address, Vec<Frame>>,
    /// Addresses in processes that run other programs.
    known_of_others: HashMap<Address, Vec<Frame>>,
    /// The directory that paths are shown relative to.
    here: &'a Path,
    /// Whether nothing is left out, not even the harness's own frames.
    full: bool,
    body: Option<Body>,
    /// A function that may be the user's had no file.
    lineless: bool,
    /// A function of the user's, or the test itself, had a file.
    has_lines: bool,
}

/// The function that runs the test. In an optimised build the user's function is inlined into it.
struct Body {
    /// The program, and the position where the function begins.
    begin: Address,
    /// The path of the user's function.
    path: String,
}

fn body(test: &Test, maps: &Maps) -> Option<Body> {
    Some(Body {
        begin: maps.locate(test.body as usize as u64)?,
        path: format!("{}::{}", test.module, test.name),
    })
}

impl Resolver<'_> {
    fn new<'a>(maps: &'a Maps, here: &'a Path) -> Resolver<'a> {
        Resolver {
            maps,
            known: HashMap::new(),
            known_of_others: HashMap::new(),
            here,
            full: false,
            body: None,
            lineless: false,
            has_lines: false,
        }
    }

    /// The frames of a stack, up to those of the harness below the body.
    fn stack(&mut self, addresses: &[Address]) -> Vec<Frame> {
        let mut stack = Vec::new();
        for address in addresses {
            let Resolver { maps, full, .. } = *self;
            let frames = self.known.entry(address.clone()).or_insert_with(|| resolve(address, maps, full));
            let is_harness = |frame: &Frame| {
                let function = frame.line.function.as_deref().unwrap_or_default();
                function.contains("childproof::guard::test_process::")
            };
            if !self.full && frames.iter().any(is_harness) {
                break;
            }
            if let [.., frame] = &frames[..]
                && frame.line.file.is_none()
                && let Some(body) = self.body.as_ref().filter(|body| body.is_at(address))
                && !stack.iter().any(|frame: &Frame| frame.line.function.as_ref() == Some(&body.path))
            {
                let line = Line { function: Some(body.path.clone()), ..Line::default() };
                stack.push(Frame { line, ..frame.clone() });
                self.lineless = true;
                continue;
            }
            self.has_lines |= frames.iter().any(|frame| is_users(frame) && !is_of_registry(frame));
            self.lineless |= !is_installed(&address.module) && frames.iter().any(is_lineless);
            stack.extend(frames.iter().cloned());
        }
        stack
    }
}

impl Body {
    fn has_lines(&self, maps: &Maps) -> bool {
        let within = Address { offset: self.begin.offset + 1, ..self.begin.clone() };
        resolve(&within, maps, false).iter().any(|frame| frame.line.file.is_some())
    }

    fn is_at(&self, address: &Address) -> bool {
        // A return address is one past the call.
        let call = address.offset.saturating_sub(1);
        let mut modules = lock(&MODULES);
        self.begin.module == address.module
            && module(&mut modules, &address.module).and_then(|module| module.begin(call))
                == Some(self.begin.offset)
    }
}

/// The function at an address and those inlined into it, innermost first.
fn resolve(address: &Address, maps: &Maps, full: bool) -> Vec<Frame> {
    // A return address is one past the call.
    let call = Address { offset: address.offset.saturating_sub(1), ..address.clone() };
    if is_system(&address.module) {
        // By name only: resolving libc's lines may mean inflating megabytes of debug information.
        let unnamed = || module(&mut lock(&MODULES), &address.module)?.symbol(call.offset);
        let function = maps.address_of(&call).and_then(sys::exported_name).or_else(unnamed);
        return vec![Frame {
            line: Line { function, ..Line::default() },
            is_plumbing: true,
            is_system: true,
        }];
    }
    let names = |source: &Path| !full && (is_std(source) || is_ours(source));
    let lines = module(&mut lock(&MODULES), &address.module).map(|module| module.lines(call.offset, names));
    let frame = |line: Line| Frame {
        is_plumbing: line.function.as_deref().is_some_and(is_glue),
        is_system: false,
        line: Line { function: line.function.as_deref().map(short), ..line },
    };
    lines.unwrap_or_default().into_iter().map(frame).collect()
}

/// The files whose debug information was asked for.
static MODULES: Mutex<Vec<(String, Option<Module>)>> = Mutex::new(Vec::new());

fn module<'a>(modules: &'a mut Vec<(String, Option<Module>)>, path: &str) -> Option<&'a mut Module> {
    if !modules.iter().any(|(known, _)| known == path) {
        modules.push((path.to_owned(), Module::open(Path::new(path))));
    }
    modules.iter_mut().find(|(known, _)| known == path)?.1.as_mut()
}

/// The directory in which the compiler ran for code of this program.
pub(super) fn compiled_in(code: usize) -> Option<PathBuf> {
    let maps = Maps::read(std::process::id() as i32).ok()?;
    let address = maps.locate(code as u64)?;
    module(&mut lock(&MODULES), &address.module)?.compiled_in(address.offset)
}

/// Whether a file is the C library, the loader or the unwinder.
fn is_system(module: &str) -> bool {
    let name = module.rsplit('/').next().unwrap_or_default();
    ["libc.so", "libc-", "ld-linux", "ld-musl", "libpthread", "libgcc_s"]
        .iter()
        .any(|known| name.starts_with(known))
}

/// The path of a function without the parts that the attribute has added.
fn short(name: &str) -> String {
    let parts: Vec<&str> = name.split("::").filter(|part| !part.starts_with("__CHILDPROOF_")).collect();
    parts.join("::")
}

/// Whether a function is code that the attribute has put around a body.
fn is_glue(name: &str) -> bool {
    name.rsplit_once("::").is_some_and(|(path, last)| {
        last.starts_with("{{closure}}")
            && path.rsplit("::").next().is_some_and(|part| part.starts_with("__CHILDPROOF_"))
    })
}

/// Whether a frame belongs neither to Rust's libraries nor to this one.
fn is_users(frame: &Frame) -> bool {
    let Some(file) = frame.line.file.as_deref() else { return false };
    let function = frame.line.function.as_deref().unwrap_or_default();
    // With line tables alone, an inlined function has no path.
    let ours = is_ours(file) || is_by_us(&frame);
    let interposed = [
        "abort",
        "exit",
        "_exit",
        "_Exit",
        "quick_exit",
        "execv",
        "execve",
        "execvp",
        "execvpe",
        "fexecve",
        "execveat",
        "fork",
        "pipe",
        "pipe2",
        "socketpair",
        "socket",
        "accept",
        "accept4",
        "eventfd",
        "epoll_create",
        "epoll_create1",
        "timerfd_create",
        "memfd_create",
        "inotify_init",
        "inotify_init1",
        "forkpty",
        "daemon",
        "system",
        "popen",
        "posix_spawn",
        "posix_spawnp",
        "close",
        "dup2",
        "dup3",
        "close_range",
    ]
    .contains(&function);
    !is_std(file) && !ours && !interposed && !frame.is_plumbing
}

/// Whether a file belongs to std's source: in the distributed toolchain, or under a remapped path.
fn is_std(file: &Path) -> bool {
    file.starts_with("/rustc/")
        || file.starts_with("library/")
        || file.to_str().is_some_and(|file| file.contains("/lib/rustlib/src/"))
}

/// Whether a frame lies between the called function and the unwinder.
fn is_recorder(frame: &&Frame) -> bool {
    frame
        .line
        .function
        .as_deref()
        .is_some_and(|function| function.starts_with("childproof::recorder::hooks::"))
}

/// Whether a function belongs to this library, judged by its name.
fn is_by_us(frame: &&Frame) -> bool {
    let function = frame.line.function.as_deref().unwrap_or_default();
    function.starts_with("childproof::") || function.starts_with("<childproof::")
}

/// Whether a file belongs to this library's source.
fn is_ours(file: &Path) -> bool {
    file.starts_with(concat!(env!("CARGO_MANIFEST_DIR"), "/src/"))
}

/// The same judged by the name alone, in a binary without debug information.
fn is_named_by_user(frame: &Frame) -> bool {
    let function = frame.line.function.as_deref().unwrap_or_default().trim_start_matches('<');
    let others = ["std::", "core::", "alloc::", "childproof::", "nix::", "libc::", "_", "main"];
    // Everything may have been inlined into `main`, which made none of the calls itself.
    function.contains("::")
        && !frame.is_plumbing
        && !function.ends_with("::main")
        && !others.iter().any(|other| function.starts_with(other))
}

/// Whether a frame may be the user's and has not even a file name.
fn is_lineless(frame: &Frame) -> bool {
    !frame.is_system
        && frame.line.file.is_none()
        && (frame.line.function.is_none() || is_named_by_user(frame))
}

/// Whether a frame belongs to a crate from cargo's registry.
fn is_of_registry(frame: &Frame) -> bool {
    let file = frame.line.file.as_deref().and_then(Path::to_str).unwrap_or_default();
    file.contains("/registry/src/") || file.contains("/git/checkouts/")
}

/// The source location of a frame.
fn place(frame: &Frame, here: &Path) -> Option<SourceLocation> {
    let file = frame.line.file.as_deref()?;
    let text = checkout::shown(file, here).display().to_string();
    // The registry's part of a path is dropped: `~/.cargo/registry/src/INDEX/nix-0.31.0/src/unistd.rs`.
    let file = match text.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/')) {
        Some((_, rest)) => rest.to_owned(),
        None => text,
    };
    Some(SourceLocation { file, line: frame.line.line, column: frame.line.column })
}

fn describe(frame: &Frame, here: &Path) -> String {
    let function = frame.line.function.as_deref().unwrap_or("?");
    match place(frame, here) {
        Some(place) => format!("{function} at {place}"),
        None => function.to_owned(),
    }
}
