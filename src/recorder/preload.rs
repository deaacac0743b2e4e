//! Checks whether a program can be started with the recorder: the loader must accept the library without an
//! error message.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::sys;

/// Why a program cannot be started with the recorder.
#[allow(missing_docs)]
#[derive(Debug)]
pub enum Unfit {
    /// The program does not exist.
    NotFound { name: OsString },
    /// The file cannot be read.
    Unreadable { path: PathBuf, error: io::Error },
    /// The file is neither an ELF file nor a script.
    NotElf { path: PathBuf },
    /// It is linked statically, so no loader runs.
    Static { path: PathBuf },
    /// It is built for another machine or word size.
    OtherMachine { path: PathBuf },
    /// It uses another loader, and so another C library, than this tool.
    OtherLoader { path: PathBuf, loader: PathBuf },
    /// It gets additional privileges: the loader ignores the library (ld.so(8), secure-execution mode).
    Privileged { path: PathBuf, by: Privilege },
    /// It is built with a sanitizer, whose own library has to be loaded first.
    Sanitizer { path: PathBuf, name: &'static str },
    /// `LD_PRELOAD` already contains a sanitizer.
    SanitizerPreloaded { library: String },
    /// The script is started through `env`, which execs another program.
    ScriptOfEnv { script: PathBuf },
    /// The interpreters of scripts are scripts themselves, nested deeper than the kernel allows.
    Nested { path: PathBuf },
    /// The path of the library cannot be written in `LD_PRELOAD`.
    LibraryPath { path: PathBuf },
    /// The library lies on a file system without execute permission.
    LibraryNotExecutable { path: PathBuf },
    /// This tool has no library: it was built for a C library other than glibc, or linked statically.
    NoLibrary,
}

/// What gives a program additional privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The set-user-ID bit.
    SetUser,
    /// The set-group-ID bit.
    SetGroup,
    /// File capabilities.
    Capabilities,
}

impl std::error::Error for Unfit {}

/// Finds the program of a command, as execvp(3) does.
pub fn find(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let is_program = |path: &PathBuf| path.metadata().is_ok_and(|is| is.is_file() && is.mode() & 0o111 != 0);
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(is_program)
}

/// Checks whether the program of a command can be started with the recorder. `preloaded` is the present value
/// of `LD_PRELOAD`. With `tree`, programs that are reached by exec are recorded too, so an exec is no reason
/// to refuse.
///
/// # Errors
///
/// The reason why it cannot be started so.
pub fn check(name: &OsStr, preloaded: Option<&OsStr>, tree: bool) -> Result<(), Unfit> {
    if let Some(library) = preloaded.and_then(sanitizer_in) {
        return Err(Unfit::SanitizerPreloaded { library });
    }
    let mut path = find(name).ok_or_else(|| Unfit::NotFound { name: name.to_owned() })?;
    // As many nested scripts as the kernel allows (`BINPRM_BUF_SIZE`, `exec_binprm` in fs/exec.c).
    for _ in 0..6 {
        let unreadable = |error| Unfit::Unreadable { path: path.clone(), error };
        let mut file = File::open(&path).map_err(unreadable)?;
        let mut head = Vec::new();
        file.by_ref().take(256).read_to_end(&mut head).map_err(unreadable)?;
        let Some(interpreter) = interpreter_of(&head) else { return check_program(&path, &file, &head) };
        if !tree && interpreter.file_name() == Some(OsStr::new("env")) {
            return Err(Unfit::ScriptOfEnv { script: path });
        }
        path = interpreter;
    }
    Err(Unfit::Nested { path })
}

/// Checks that the loader can load a library from its path.
///
/// # Errors
///
/// The reason why it cannot.
pub fn check_library(path: &Path) -> Result<(), Unfit> {
    if path.as_os_str().as_bytes().iter().any(|byte| b": \t\n$".contains(byte)) || !path.is_absolute() {
        return Err(Unfit::LibraryPath { path: path.to_owned() });
    }
    match nix::sys::statvfs::statvfs(path) {
        Ok(system) if system.flags().contains(nix::sys::statvfs::FsFlags::ST_NOEXEC) => {
            Err(Unfit::LibraryNotExecutable { path: path.to_owned() })
        }
        Ok(_) => Ok(()),
        Err(error) => Err(Unfit::Unreadable { path: path.to_owned(), error: error.into() }),
    }
}

/// The interpreter of a script.
fn interpreter_of(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let word = line.trim_ascii_start().split(|byte| *byte == b' ' || *byte == b'\t').next()?;
    Some(PathBuf::from(OsStr::from_bytes(word))).filter(|path| !path.as_os_str().is_empty())
}

/// The sanitizer's library in the value of `LD_PRELOAD`.
fn sanitizer_in(preloaded: &OsStr) -> Option<String> {
    let text = preloaded.to_string_lossy();
    let is_sanitizer = |library: &&str| {
        let name = library.rsplit('/').next().unwrap_or_default();
        let name = name.split('.').next().unwrap_or_default();
        ["libasan", "libtsan", "libmsan", "liblsan", "libhwasan"].contains(&name)
            || name.starts_with("libclang_rt")
    };
    text.split([':', ' ']).find(is_sanitizer).map(str::to_owned)
}

fn check_program(path: &Path, file: &File, head: &[u8]) -> Result<(), Unfit> {
    let path = || path.to_owned();
    let own = File::open("/proc/self/exe");
    let own = own.map_err(|error| Unfit::Unreadable { path: "/proc/self/exe".into(), error })?;
    let mut own_head = [0; 64];
    let own_loader = own.read_at(&mut own_head, 0).ok().and_then(|_| Elf::read(&own, &own_head)?.loader());
    let own_loader = own_loader.ok_or(Unfit::NoLibrary)?;
    // Class, byte order and machine.
    if !head.starts_with(b"\x7fELF") {
        return Err(Unfit::NotElf { path: path() });
    }
    if head.get(4..6) != Some(&own_head[4..6]) || head.get(18..20) != Some(&own_head[18..20]) {
        return Err(Unfit::OtherMachine { path: path() });
    }
    let elf = Elf::read(file, head).ok_or_else(|| Unfit::NotElf { path: path() })?;
    let loader = elf.loader().ok_or_else(|| Unfit::Static { path: path() })?;
    if fs::canonicalize(&loader).ok() != fs::canonicalize(&own_loader).ok() {
        return Err(Unfit::OtherLoader { path: path(), loader });
    }
    let metadata = file.metadata().map_err(|error| Unfit::Unreadable { path: path(), error })?;
    let privilege = match metadata.mode() {
        mode if mode & 0o4000 != 0 => Some(Privilege::SetUser),
        // Without the group's execute bit it stands for mandatory locking (stat(2)).
        mode if mode & 0o2010 == 0o2010 => Some(Privilege::SetGroup),
        _ => sys::has_capabilities(file).then_some(Privilege::Capabilities),
    };
    if let Some(by) = privilege {
        return Err(Unfit::Privileged { path: path(), by });
    }
    let names = elf.names().unwrap_or_default();
    let has = |name: &&(&[u8], &str)| names.windows(name.0.len()).any(|text| text == name.0);
    match SANITIZERS.iter().find(has) {
        Some((_, name)) => Err(Unfit::Sanitizer { path: path(), name }),
        None => Ok(()),
    }
}

/// The functions by which programs with a sanitizer are recognised.
const SANITIZERS: [(&[u8], &str); 5] = [
    (b"\0__asan_init\0", "AddressSanitizer"),
    (b"\0__tsan_init\0", "ThreadSanitizer"),
    (b"\0__msan_init\0", "MemorySanitizer"),
    (b"\0__hwasan_init\0", "HWAddressSanitizer"),
    (b"\0__lsan_init\0", "LeakSanitizer"),
];

/// The parts of an ELF file that the loader reads (elf(5)), in this machine's word size and byte order.
struct Elf<'a> {
    file: &'a File,
    segments: Vec<Segment>,
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

impl<'a> Elf<'a> {
    fn read(file: &'a File, head: &[u8]) -> Option<Elf<'a>> {
        // 64-bit files only.
        if !head.starts_with(b"\x7fELF\x02") {
            return None;
        }
        let table = u64::from_ne_bytes(number(head, 32)?);
        let (size, count) = (u16::from_ne_bytes(number(head, 54)?), u16::from_ne_bytes(number(head, 56)?));
        let table = read_at(file, table, usize::from(size) * usize::from(count))?;
        let segments = table.chunks_exact(usize::from(size).max(1)).map_while(|header| {
            Some(Segment {
                kind: u32::from_ne_bytes(number(header, 0)?),
                offset: u64::from_ne_bytes(number(header, 8)?),
                address: u64::from_ne_bytes(number(header, 16)?),
                size: u64::from_ne_bytes(number(header, 32)?),
            })
        });
        Some(Elf { file, segments: segments.collect() })
    }

    fn content(&self, kind: u32, most: u64) -> Option<Vec<u8>> {
        let segment = self.segments.iter().find(|segment| segment.kind == kind)?;
        read_at(self.file, segment.offset, usize::try_from(segment.size.min(most)).ok()?)
    }

    /// The loader that the program asks for; `None` if it is static, or a library.
    fn loader(&self) -> Option<PathBuf> {
        let path = self.content(PT_INTERP, 4096)?;
        let path = path.split(|byte| *byte == 0).next()?;
        Some(PathBuf::from(OsStr::from_bytes(path)))
    }

    /// The names of its dynamic symbols, each after a NUL.
    fn names(&self) -> Option<Vec<u8>> {
        const DT_STRTAB: u64 = 5;
        const DT_STRSZ: u64 = 10;
        const MOST: u64 = 64 << 20;
        let dynamic = self.content(PT_DYNAMIC, 1 << 20)?;
        let value = |tag: u64| {
            let mut entries = dynamic.chunks_exact(16);
            let entry = entries.find(|entry| number(entry, 0).map(u64::from_ne_bytes) == Some(tag))?;
            number(entry, 8).map(u64::from_ne_bytes)
        };
        let (address, size) = (value(DT_STRTAB)?, value(DT_STRSZ)?.min(MOST));
        let is_around = |segment: &&Segment| {
            segment.kind == PT_LOAD
                && address.checked_sub(segment.address).is_some_and(|within| within < segment.size)
        };
        let segment = self.segments.iter().find(is_around)?;
        let offset = (address - segment.address).checked_add(segment.offset)?;
        read_at(self.file, offset, usize::try_from(size).ok()?)
    }
}

fn number<const SIZE: usize>(bytes: &[u8], at: usize) -> Option<[u8; SIZE]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Reads a part of a file, as far as it exists.
fn read_at(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    // Limits the size to that of the file: a length in a file may be wrong.
    let left = file.metadata().ok()?.len().checked_sub(offset)?;
    let mut bytes = vec![0; length.min(usize::try_from(left).ok()?)];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::{self, File};

    use super::{Elf, Unfit, check, check_library, interpreter_of, sanitizer_in};

    #[test]
    fn a_script_names_its_interpreter() {
        let interpreter = |text: &str| interpreter_of(text.as_bytes()).map(|path| path.display().to_string());
        assert_eq!(interpreter("#!/bin/sh\nexit"), Some("/bin/sh".to_owned()));
        assert_eq!(interpreter("#! /usr/bin/perl -w\n"), Some("/usr/bin/perl".to_owned()));
        assert_eq!(interpreter("#!\n"), None);
        assert_eq!(interpreter("\u{7f}ELF"), None);
    }

    #[test]
    fn a_sanitizer_is_known_by_its_library() {
        let found = |text: &str| sanitizer_in(OsStr::new(text));
        assert_eq!(found("/usr/lib/gcc/libasan.so.8"), Some("/usr/lib/gcc/libasan.so.8".to_owned()));
        assert_eq!(found("libfoo.so libtsan.so:x"), Some("libtsan.so".to_owned()));
        assert_eq!(found("/opt/libasanity.so:libjemalloc.so.2"), None);
        assert_eq!(found(""), None);
    }

    #[test]
    fn what_is_no_program_is_not_fit() {
        let check = |name: &str| check(OsStr::new(name), None, false);
        assert!(matches!(check("/no/such/program"), Err(Unfit::NotFound { .. })));
        assert!(matches!(check("/etc/passwd"), Err(Unfit::NotElf { .. })));
        assert!(check("/proc/self/exe").is_ok());
        assert!(check("sh").is_ok());
    }

    #[test]
    fn a_path_that_the_list_cannot_have_is_not_fit() {
        assert!(matches!(check_library("/tmp/a b/x.so".as_ref()), Err(Unfit::LibraryPath { .. })));
        assert!(matches!(check_library("relative".as_ref()), Err(Unfit::LibraryPath { .. })));
        assert!(check_library("/usr/bin/env".as_ref()).is_ok());
    }

    /// Every byte of the headers of a program is changed in turn.
    #[test]
    fn a_broken_program_is_read_without_a_panic() {
        let mut bytes = fs::read("/usr/bin/env").unwrap_or_default();
        bytes.truncate(2048);
        let path = std::env::temp_dir().join(format!("childproof-broken-{}", std::process::id()));
        for at in 4..1024.min(bytes.len()) {
            let mut broken = bytes.clone();
            broken[at] ^= 0xff;
            fs::write(&path, &broken).unwrap_or_default();
            let Ok(file) = File::open(&path) else { continue };
            if let Some(elf) = Elf::read(&file, &broken[..256]) {
                let _ = (elf.loader(), elf.names());
            }
        }
        let _ = fs::remove_file(path);
    }
}
