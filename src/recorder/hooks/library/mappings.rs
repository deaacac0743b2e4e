//! Records which files the code of this process is mapped from, so that its addresses can be resolved after
//! it is gone.
//!
//! Reads /proc/self/maps when the program starts, and again when a stack contains an address outside all
//! known mappings, because a library was loaded since. `dlopen` must not be hooked: it searches the
//! directories of its caller's library (`DT_RUNPATH`), and the caller would be this one.

use core::ffi::{c_int, c_long, c_void};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::abi;
use super::file::{File, Mapping};
use super::file_of_program::{note_text, own};
use super::log::Entry;

/// Limits the number of mappings and how often they are read: code that is compiled at run time lies in
/// mappings that come and go.
const MOST: usize = 512;
const READS: u32 = 64;

/// Start and end of each recorded mapping.
static KNOWN: [[AtomicU64; 2]; MOST] = [const { [const { AtomicU64::new(0) }; 2] }; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static TIMES_READ: AtomicU32 = AtomicU32::new(0);

/// Set while the mappings are being read. A fork at that moment keeps it set, and never reads them again.
static READING: AtomicBool = AtomicBool::new(false);

/// Reads the mappings again if a stack contains an unknown address. Async-signal-safe.
pub(crate) fn look_at(entry: &Entry) {
    let count = COUNT.load(Ordering::Acquire);
    let mut last = [0, 0];
    for frame in &entry.frames {
        let address = frame.load(Ordering::Relaxed);
        if address == 0 {
            return;
        }
        // Most frames of a stack are in the same file as the one before.
        if last[0] <= address && address < last[1] {
            continue;
        }
        let ranges =
            KNOWN.iter().take(count).map(|range| range.each_ref().map(|end| end.load(Ordering::Relaxed)));
        match ranges.into_iter().find(|[start, end]| (*start..*end).contains(&address)) {
            Some(range) => last = range,
            None => {
                read();
                return;
            }
        }
    }
}

/// Records the mappings that are not known yet. Async-signal-safe.
pub(crate) fn read() {
    let Some((file, program)) = own() else { return };
    if TIMES_READ.load(Ordering::Relaxed) >= READS || READING.swap(true, Ordering::Acquire) {
        return;
    }
    TIMES_READ.fetch_add(1, Ordering::Relaxed);
    if let Ok(maps) = abi::File::open(c"/proc/self/maps") {
        let memory = abi::File::open(c"/proc/self/mem").ok();
        let mut reader =
            Reader { file, program, memory, first: First { path: [0; PATH], length: 0, start: 0 } };
        each_line(&maps, |line| {
            reader.line(line);
        });
    }
    READING.store(false, Ordering::Release);
}

/// The longest path that is kept.
const PATH: usize = 1024;

/// Calls `see` with each line. Lines longer than the buffer are skipped.
fn each_line(maps: &abi::File, mut see: impl FnMut(&[u8])) {
    let mut buffer = [0_u8; 2 * PATH];
    let (mut filled, mut cut) = (0, false);
    while let Some(room) = buffer.get_mut(filled..) {
        let Ok(more @ 1..) = maps.read(room) else { return };
        filled += more;
        let mut rest = buffer.get(..filled).unwrap_or_default();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            if !core::mem::take(&mut cut) {
                see(rest.get(..end).unwrap_or_default());
            }
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        let left = rest.len();
        if left == buffer.len() {
            (filled, cut) = (0, true);
        } else {
            buffer.copy_within(filled - left..filled, 0);
            filled = left;
        }
    }
}

struct Reader<'a> {
    file: &'a File,
    program: u32,
    /// The memory of this process. Reading it through this file cannot fault where the mapped file was
    /// truncated.
    memory: Option<abi::File>,
    first: First,
}

/// The first mapping of the current file.
struct First {
    path: [u8; PATH],
    length: usize,
    start: u64,
}

impl Reader<'_> {
    /// `START-END rwxp OFFSET DEVICE INODE   PATH` (proc_pid_maps(5)).
    fn line(&mut self, line: &[u8]) -> Option<()> {
        let mut words = line.splitn(6, |byte| *byte == b' ');
        let mut range = words.next()?.split(|byte| *byte == b'-');
        let (start, end) = (hexadecimal(range.next()?)?, hexadecimal(range.next()?)?);
        let permissions = words.next()?;
        let offset = hexadecimal(words.next()?)?;
        let path = words.nth(2).unwrap_or_default().trim_ascii_start();
        if path.starts_with(b"/") && self.first.path.get(..self.first.length) != Some(path) {
            self.first.path.get_mut(..path.len())?.copy_from_slice(path);
            self.first.length = path.len();
            self.first.start = start;
        }
        if permissions.get(2) != Some(&b'x') || is_known(start, end) {
            return None;
        }
        let known = KNOWN.get(COUNT.load(Ordering::Relaxed))?;
        for (to, from) in known.iter().zip([start, end]) {
            to.store(from, Ordering::Relaxed);
        }
        COUNT.fetch_add(1, Ordering::Release);
        let (_, row) = self.file.mappings.take()?;
        row.pid.store(abi::own_pid(), Ordering::Relaxed);
        row.start.store(start, Ordering::Relaxed);
        row.end.store(end, Ordering::Relaxed);
        row.offset.store(offset, Ordering::Relaxed);
        if path.starts_with(b"/") {
            row.base.store(self.first.start, Ordering::Relaxed);
            note_text(self.file, &row.path, path);
            self.build_id(row, self.first.start);
        } else {
            row.base.store(start, Ordering::Relaxed);
            note_text(self.file, &row.path, path);
        }
        row.program.store(self.program, Ordering::Release);
        Some(())
    }

    /// Finds the build id among the notes of an ELF file that is mapped from its beginning (elf(5)).
    fn build_id(&self, row: &Mapping, base: u64) -> Option<()> {
        const PT_NOTE: u32 = 4;
        const NT_GNU_BUILD_ID: u32 = 3;
        let memory = self.memory.as_ref()?;
        // Linkers place headers and notes at the beginning of the file.
        let mut head = [0; 1024];
        let filled = read_at(memory, base, &mut head)?;
        let head = head.get(..filled)?;
        // 64-bit, in native byte order.
        if !head.starts_with(b"\x7fELF\x02") {
            return None;
        }
        let headers = usize::try_from(u64::from_ne_bytes(number(head, 32)?)).ok()?;
        let size = usize::from(u16::from_ne_bytes(number(head, 54)?));
        let count = usize::from(u16::from_ne_bytes(number(head, 56)?));
        for nth in 0..count {
            let header = head.get(headers.checked_add(nth * size)?..)?;
            if u32::from_ne_bytes(number(header, 0)?) != PT_NOTE {
                continue;
            }
            let offset = u64::from_ne_bytes(number(header, 8)?);
            let mut notes = [0; 512];
            let Some(filled) = read_at(memory, base.checked_add(offset)?, &mut notes) else { continue };
            let length = filled.min(usize::try_from(u64::from_ne_bytes(number(header, 32)?)).ok()?);
            let mut rest = notes.get(..length)?;
            while let (Some(name), Some(content), Some(kind)) =
                (number(rest, 0), number(rest, 4), number(rest, 8))
            {
                let name = u32::from_ne_bytes(name) as usize;
                let content = u32::from_ne_bytes(content) as usize;
                let begin = 12 + name.checked_next_multiple_of(4)?;
                if u32::from_ne_bytes(kind) == NT_GNU_BUILD_ID && rest.get(12..16) == Some(b"GNU\0") {
                    let id = rest.get(begin..)?.get(..content.min(row.build_id.len()))?;
                    for (to, from) in row.build_id.iter().zip(id) {
                        to.store(*from, Ordering::Relaxed);
                    }
                    row.build_id_length.store(id.len() as u32, Ordering::Relaxed);
                    return Some(());
                }
                let Some(next) = rest.get(begin.checked_add(content.checked_next_multiple_of(4)?)?..) else {
                    break;
                };
                rest = next;
            }
        }
        None
    }
}

fn is_known(start: u64, end: u64) -> bool {
    let known = KNOWN.iter().take(COUNT.load(Ordering::Relaxed));
    known.into_iter().any(|range| range.each_ref().map(|end| end.load(Ordering::Relaxed)) == [start, end])
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

fn number<const SIZE: usize>(bytes: &[u8], at: usize) -> Option<[u8; SIZE]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn read_at(memory: &abi::File, at: u64, buffer: &mut [u8]) -> Option<usize> {
    unsafe extern "C" {
        fn pread(fd: c_int, buffer: *mut c_void, size: usize, at: c_long) -> isize;
    }
    let at = c_long::try_from(at).ok()?;
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let filled = unsafe { pread(memory.fd(), buffer.as_mut_ptr().cast(), buffer.len(), at) };
    usize::try_from(filled).ok()
}
