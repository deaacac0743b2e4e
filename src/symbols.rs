//! Names for addresses: function, file and line, from the debug information of the files that are
//! mapped. Only for tests that failed.

use std::path::{Path, PathBuf};

use crate::diagnosis::Origin;
use crate::facts::Site;
use crate::proc::maps::{Address, Maps};

struct Frame {
    function: Option<String>,
    file: Option<PathBuf>,
    line: u32,
    column: u32,
}

/// Gives the sites of a test's facts their names.
pub(crate) fn origins(sites: &[Site]) -> Vec<Origin> {
    if sites.is_empty() {
        return Vec::new();
    }
    // The harness has mapped the same files, but maybe elsewhere.
    let maps = Maps::read(std::process::id() as i32).unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    let full = std::env::var_os("CHILDPROOF_BACKTRACE").is_some_and(|value| value == "full");
    sites.iter().map(|site| origin(site, &maps, &here, full)).collect()
}

fn origin(site: &Site, maps: &Maps, here: &Path, full: bool) -> Origin {
    let frames: Vec<Frame> = site.frames.iter().flat_map(|address| resolve(address, maps)).collect();
    let user = |frame: &&Frame| is_users(frame) && !is_of_registry(frame);
    let best = frames
        .iter()
        .find(user)
        .or_else(|| frames.iter().find(|frame| is_users(frame)))
        .or_else(|| frames.iter().find(|frame| frame.file.is_none() && is_named_by_user(frame)));
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
        functions: frames.iter().filter_map(|frame| frame.function.clone()).collect(),
        stack: if full { frames.iter().map(|frame| describe(frame, here)).collect() } else { Vec::new() },
    }
}

/// The function at an address and those that were inlined there, the innermost first.
fn resolve(address: &Address, maps: &Maps) -> Vec<Frame> {
    let mut frames = Vec::new();
    let Some(at) = maps.address_of(address) else { return frames };
    let library = address.module.rsplit('/').next().unwrap_or_default();
    if ["libc.so", "libc-", "ld-linux", "libpthread", "libgcc_s"].iter().any(|name| library.starts_with(name))
    {
        return frames;
    }
    // `resolve` takes a return address, and looks one byte before it, where the call is.
    backtrace::resolve(at as *mut _, |symbol| {
        frames.push(Frame {
            function: symbol.name().map(|name| short(&format!("{name:#}"))),
            file: symbol.filename().map(Path::to_owned),
            line: symbol.lineno().unwrap_or(0),
            column: symbol.colno().unwrap_or(0),
        });
    });
    frames
}

/// The path of a function without what the attribute has put into it.
fn short(name: &str) -> String {
    let parts: Vec<&str> = name.split("::").filter(|part| !part.starts_with("__CHILDPROOF_")).collect();
    parts.join("::")
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
    let interposed =
        ["fork", "pipe", "pipe2", "socketpair", "posix_spawn", "posix_spawnp"].contains(&function);
    !std && !ours && !interposed
}

/// The same by the name alone, in a binary without debug information.
fn is_named_by_user(frame: &Frame) -> bool {
    let function = frame.function.as_deref().unwrap_or_default().trim_start_matches('<');
    let others = ["std::", "core::", "alloc::", "childproof::", "nix::", "libc::", "_", "main"];
    // Everything may have been inlined into `main`, which made nothing itself.
    function.contains("::")
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
