//! Names for addresses: function, file and line, from the debug information of the files that are
//! mapped. Only for tests that failed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use crate::diagnosis::{Awaited, Names, Origin, runtimes};
use crate::facts::{Facts, Site};
use crate::forkserver::lock;
use crate::lines::{Line, Module};
use crate::proc::maps::{Address, Maps};
use crate::proc::waits::{On, Thread};
use crate::registry::Test;
use crate::sys;

/// How many of the user's frames are shown besides the first.
const CALLERS: usize = 2;

#[derive(Clone)]
struct Frame {
    line: Line,
    /// It lies in the C library, the loader or the unwinder, or it is what the attribute has put
    /// around the body.
    is_plumbing: bool,
    /// It lies in the C library, the loader or the unwinder.
    is_system: bool,
}

/// Gives the addresses in a test's facts their names.
pub(crate) fn names(facts: &Facts, test: impl FnOnce() -> Option<&'static Test>) -> Names {
    let threads = || facts.tasks().map(|(_, thread)| thread);
    if facts.sites.is_empty() && threads().next().is_none() {
        return Names::default();
    }
    // The harness has mapped the same files, but maybe elsewhere.
    let maps = Maps::read(std::process::id() as i32).unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    let full = std::env::var_os("CHILDPROOF_BACKTRACE").is_some_and(|value| value == "full");
    let body = test().and_then(|test| body(test, &maps));
    let has_lines = body.as_ref().is_some_and(|body| body.has_lines(&maps));
    let mut resolver = Resolver { full, body, has_lines, ..Resolver::new(&maps, &here) };
    let mut names = Names {
        full,
        origins: facts.sites.iter().map(|site| origin(site, &mut resolver)).collect(),
        locks: threads().filter_map(|thread| Some((thread.tid, futex(thread)?))).collect(),
        ..Names::default()
    };
    for thread in threads().filter(|thread| !thread.frames.is_empty()) {
        let frames = resolver.stack(&thread.frames);
        let (others, users) = frames.split_at(first_own(&frames));
        let called = called(others).filter(|name| *name != thread.syscall);
        let stack = match full {
            true => frames.iter().map(|frame| describe(frame, &here)).collect(),
            false => {
                let own = own(users, 1 + CALLERS, &here);
                called.map(str::to_owned).into_iter().chain(own).collect()
            }
        };
        names.called.extend(called.map(|name| (thread.tid, name.to_owned())));
        if matches!(thread.on, On::Futex { .. }) {
            names.awaited.extend(awaited(others).map(|kind| (thread.tid, kind)));
        }
        names.lines.extend(line_in(&frames, &here).map(|line| (thread.tid, line)));
        if runtimes::waits(&paths(&frames), &thread.name) {
            names.in_runtime.insert(thread.tid);
        }
        names.stacks.insert(thread.tid, stack);
    }
    let is_nowhere = |origin: &Origin| origin.place.is_none() && origin.function.is_none();
    resolver.lineless |= names.origins.iter().any(is_nowhere);
    names.lineless = resolver.lineless && !resolver.has_lines;
    names
}

/// Reads what the lines of a test will be looked up in: that takes as long in an unoptimised build as to
/// look at what the test has left, and can be done meanwhile.
pub(crate) fn get_ready(test: Option<&Test>) {
    let maps = Maps::read(std::process::id() as i32).unwrap_or_default();
    let code = test.map_or(get_ready as *const () as usize, |test| test.body as usize);
    if let Some(address) = maps.locate(code as u64 + 1) {
        resolve(&address, &maps, false);
    }
}

/// The line of code of one site in this process: `at src/server.rs:88:20 Server::start`.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
pub(crate) fn line_of(site: &Site, maps: &Maps) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let mut resolver = Resolver::new(maps, &here);
    origin(site, &mut resolver).at()
}

/// The place of the first of the user's own frames in a stack.
fn first_own(frames: &[Frame]) -> usize {
    let first = frames.iter().position(|frame| is_users(frame) && !is_of_registry(frame));
    let first = first.or_else(|| frames.iter().position(|frame| is_users(frame) || is_named_by_user(frame)));
    first.unwrap_or(frames.len())
}

/// What the user called of others' code, be it std or libc.
fn called(others: &[Frame]) -> Option<&str> {
    let says = |frame: &&Frame| {
        let name = frame.line.function.as_deref();
        name.is_some_and(|name| !only_runs_code(name)) && !is_by_us(frame)
    };
    let others = || others.iter().rev().filter(says);
    let called = others().find(|frame| !frame.is_plumbing).or_else(|| others().next());
    called.and_then(|frame| frame.line.function.as_deref().map(public_name))
}

/// Whether a function of std's does nothing but to call the user's: where that was inlined or has no
/// name, it is the last before it.
fn only_runs_code(name: &str) -> bool {
    let parts = [
        "core::ops::function::Fn",
        "catch_unwind",
        "__rust_",
        "thread_start",
        "std::thread::lifecycle",
        // What calls `main` and the first function of a thread, in the C library.
        "__libc_start",
        "start_thread",
    ];
    parts.iter().any(|part| name.contains(part))
}

/// What a thread waits for that is in a futex call, by what the user called.
fn awaited(others: &[Frame]) -> Option<Awaited> {
    let name = |frame: &Frame| frame.line.function.clone().unwrap_or_default();
    let system = others.iter().take_while(|frame| frame.is_system).count();
    let library = others[..system].iter().map(|frame| public_name(&name(frame)).to_owned());
    let mut library: Vec<String> = library.collect();
    library.retain(|name| !name.is_empty());
    // std makes the system call itself, through this function; libc's own code does not.
    if library.first().is_some_and(|name| name != "syscall") {
        return Awaited::of_c(&library);
    }
    let words: Vec<String> = others[system..]
        .iter()
        // With line tables alone, a function that was inlined has no path, but a file.
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
    // With line tables alone, a function that was inlined has no path, but a file.
    match frame.line.file.as_deref().and_then(Path::to_str) {
        Some(file) if is_ours(Path::new(file)) => format!("childproof::{plain}"),
        Some(file) if !plain.contains("::") => format!("{}::{plain}", module_of(file)),
        _ => plain.to_owned(),
    }
}

/// `tokio::runtime::park` of `~/.cargo/registry/src/INDEX/tokio-1.54.1/src/runtime/park.rs`.
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
fn line_in(frames: &[Frame], here: &Path) -> Option<String> {
    let own = frames.iter().find(|frame| is_users(frame) && !is_of_registry(frame))?;
    place(own, here)
}

/// The first of the user's own frames: `tests/server.rs:31:10 server::restarts`.
fn own(frames: &[Frame], most: usize, here: &Path) -> Vec<String> {
    frames
        .iter()
        .enumerate()
        // A runtime that calls back is no news, but for the place itself if there is no better.
        .filter(|(at, frame)| {
            is_users(frame) && (*at == 0 || !is_of_registry(frame))
                || frame.line.file.is_none() && is_named_by_user(frame)
        })
        .map(|(_, frame)| frame)
        .take(most)
        .map(|frame| match (&frame.line.function, place(frame, here)) {
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
fn futex(thread: &Thread) -> Option<String> {
    let On::Futex { place, .. } = &thread.on else { return None };
    let place = place.as_ref().filter(|place| !is_system(&place.module))?;
    let mut modules = lock(&MODULES);
    let name = module(&mut modules, &place.module).map(|module| module.symbol(place.offset));
    name.flatten().map(|name| short(&name))
}

fn origin(site: &Site, resolver: &mut Resolver<'_>) -> Origin {
    let frames = resolver.stack(&site.frames);
    let Resolver { here, full, .. } = *resolver;
    let paths = paths(&frames);
    let at = frames
        .iter()
        .position(|frame| is_users(frame) && !is_of_registry(frame))
        .or_else(|| frames.iter().position(is_users))
        .or_else(|| frames.iter().position(|frame| frame.line.file.is_none() && is_named_by_user(frame)));
    let best = at.and_then(|at| frames.get(at));
    let above = frames.get(at.map_or(frames.len(), |at| at + 1)..).unwrap_or_default();
    Origin {
        call: site.call.clone(),
        maker: site.maker,
        keys: site.keys,
        makes: site.makes,
        threads: site.threads,
        thread: site.thread.clone(),
        execed: site.execed,
        cloexec: site.cloexec,
        command_line: site.command_line.clone(),
        place: best.and_then(|frame| place(frame, here)),
        function: best.and_then(|frame| frame.line.function.clone()),
        callers: own(above, CALLERS, here),
        functions: frames.iter().filter_map(|frame| frame.line.function.clone()).collect(),
        of_runtime: runtimes::is_own_socket(&paths),
        is_kept: site.call == "socketpair" && runtimes::is_kept_socket(&paths),
        is_tokios: runtimes::is_process(&paths),
        stack: match full {
            true => frames.iter().skip_while(is_recorder).map(|frame| describe(frame, here)).collect(),
            false => Vec::new(),
        },
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
    body: Option<Body>,
    /// A function that may be the user's had no file.
    lineless: bool,
    /// One that is the user's had, or the test's own.
    has_lines: bool,
}

/// The function by which a test is called. In an optimised build the user's own is a part of it.
struct Body {
    /// The program, and where in it the function begins.
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
            here,
            full: false,
            body: None,
            lineless: false,
            has_lines: false,
        }
    }

    /// The frames of a stack, up to the harness's own below the body.
    fn stack(&mut self, addresses: &[Address]) -> Vec<Frame> {
        let mut stack = Vec::new();
        for address in addresses {
            let Resolver { maps, full, .. } = *self;
            let frames = self.known.entry(address.clone()).or_insert_with(|| resolve(address, maps, full));
            let is_harness = |frame: &Frame| {
                let function = frame.line.function.as_deref().unwrap_or_default();
                function.contains("childproof::testproc::")
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
            self.lineless |= frames.iter().any(is_lineless);
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
        // A return address: the call is before it.
        let call = address.offset.saturating_sub(1);
        let mut modules = lock(&MODULES);
        self.begin.module == address.module
            && module(&mut modules, &address.module).and_then(|module| module.begin(call))
                == Some(self.begin.offset)
    }
}

/// The function at an address and those that were inlined there, the innermost first.
fn resolve(address: &Address, maps: &Maps, full: bool) -> Vec<Frame> {
    // A return address: the call is before it.
    let call = Address { offset: address.offset.saturating_sub(1), ..address.clone() };
    if is_system(&address.module) {
        // By name only: to look up libc's lines may be to inflate megabytes of them.
        let function = maps.address_of(&call).and_then(sys::exported_name);
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
    let Some(file) = frame.line.file.as_deref() else { return false };
    let function = frame.line.function.as_deref().unwrap_or_default();
    // With line tables alone, a function that was inlined has no path.
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

/// Whether a file is of std's source: in the distributed library, or as it was remapped.
fn is_std(file: &Path) -> bool {
    file.starts_with("/rustc/")
        || file.starts_with("library/")
        || file.to_str().is_some_and(|file| file.contains("/lib/rustlib/src/"))
}

/// Whether a frame lies between the function that was called and the unwinder.
fn is_recorder(frame: &&Frame) -> bool {
    frame.line.function.as_deref().is_some_and(|function| function.starts_with("childproof::sites::"))
}

/// Whether a function is of this library, by its name.
fn is_by_us(frame: &&Frame) -> bool {
    let function = frame.line.function.as_deref().unwrap_or_default();
    function.starts_with("childproof::") || function.starts_with("<childproof::")
}

/// Whether a file is of this library's source.
fn is_ours(file: &Path) -> bool {
    file.starts_with(concat!(env!("CARGO_MANIFEST_DIR"), "/src/"))
}

/// The same by the name alone, in a binary without debug information.
fn is_named_by_user(frame: &Frame) -> bool {
    let function = frame.line.function.as_deref().unwrap_or_default().trim_start_matches('<');
    let others = ["std::", "core::", "alloc::", "childproof::", "nix::", "libc::", "_", "main"];
    // Everything may have been inlined into `main`, which made nothing itself.
    function.contains("::")
        && !frame.is_plumbing
        && !function.ends_with("::main")
        && !others.iter().any(|other| function.starts_with(other))
}

/// Whether a frame may be of the user's code, and has not even the name of a file.
fn is_lineless(frame: &Frame) -> bool {
    !frame.is_system
        && frame.line.file.is_none()
        && (frame.line.function.is_none() || is_named_by_user(frame))
}

/// Whether a frame is in a crate that cargo has fetched.
fn is_of_registry(frame: &Frame) -> bool {
    let file = frame.line.file.as_deref().and_then(Path::to_str).unwrap_or_default();
    file.contains("/registry/src/") || file.contains("/git/checkouts/")
}

/// `tests/server.rs:31:10`.
fn place(frame: &Frame, here: &Path) -> Option<String> {
    let file = frame.line.file.as_deref()?;
    // Seen from the root, a path would be without its first slash.
    let below = file.strip_prefix(here).ok().filter(|_| here.parent().is_some());
    let file = below.unwrap_or(file);
    let text = file.display().to_string();
    // `~/.cargo/registry/src/INDEX/nix-0.31.0/src/unistd.rs` says no more than its end.
    let text = match text.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/')) {
        Some((_, rest)) => rest.to_owned(),
        None => text,
    };
    Some(if frame.line.column > 0 {
        format!("{text}:{}:{}", frame.line.line, frame.line.column)
    } else {
        format!("{text}:{}", frame.line.line)
    })
}

fn describe(frame: &Frame, here: &Path) -> String {
    let function = frame.line.function.as_deref().unwrap_or("?");
    match place(frame, here) {
        Some(place) => format!("{function} at {place}"),
        None => function.to_owned(),
    }
}
