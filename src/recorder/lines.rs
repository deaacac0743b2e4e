//! Resolves addresses of one file to functions and lines, with its own symbols and debug information.
//!
//! In an unoptimised build, which nearly every test is, it would take 0.1 s to read the header of every
//! compilation unit before the first look-up, or all of std's single unit to name a function of std. So the
//! file's table of address ranges selects the unit, and only that one is given to `addr2line`; for a unit of
//! which only function names are needed, the symbol table is enough. Where that does not work (no ranges,
//! split debug information, units that refer to each other as after LTO), all units are read.

mod symbol_table;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use addr2line::gimli::{
    self, DebugAranges, DebugInfo, DebugInfoOffset, Dwarf, DwarfPackage, EndianSlice, NativeEndian, SectionId,
};
use addr2line::{Context, LookupContinuation, LookupResult, SplitDwarfLoad};

use self::symbol_table::Symbols;

use crate::proc::elf;
use crate::proc::mapped::MappedFile;
use crate::sys;

type Bytes = EndianSlice<'static, NativeEndian>;

/// The code at an address: a function, or one that was inlined there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) function: Option<String>,
    pub(crate) file: Option<PathBuf>,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A program or library, as it is on disk.
pub(crate) struct Module {
    path: PathBuf,
    sections: Sections,
    dwarf: Dwarf<Bytes>,
    /// The base of the file's addresses.
    base: u64,
    ranges: Ranges,
    /// The units that were read, by their offsets.
    units: HashMap<usize, Unit>,
    /// All units at once, if that was necessary.
    whole: OnceCell<Option<Context<Bytes>>>,
    /// Split debug information in a package file.
    package: OnceCell<Option<DwarfPackage<Bytes>>>,
    symbols: Symbols,
}

enum Unit {
    Read(Box<Context<Bytes>>),
    /// Only the names of its functions are needed. The path of its source.
    Names(PathBuf),
    /// It cannot be read without other units.
    Entangled,
}

/// Whether a file has lines that cannot be read because they are compressed.
pub(crate) fn are_compressed(path: &Path) -> bool {
    map(path).is_some_and(elf::has_compressed_lines)
}

fn map(path: &Path) -> Option<&'static [u8]> {
    // The path of the running program may lead to a newer file by now.
    let own = std::env::current_exe().is_ok_and(|own| own == path);
    let file = File::open(if own { Path::new("/proc/self/exe") } else { path }).ok()?;
    sys::map_file(&file).ok()
}

impl Module {
    /// Maps a file. `None` if it is not a 64-bit ELF file, or cannot be read.
    pub(crate) fn open(path: &Path) -> Option<Module> {
        Module::parse(path, map(path)?)
    }

    /// Reads a file that another process has mapped, and the separate file with its debug information, if
    /// there is one. `None` if the file is gone.
    pub(crate) fn of_mapped(file: &MappedFile) -> Option<Module> {
        let path = Path::new(&file.found_at);
        let bytes = file.read()?;
        let mut sections = elf::sections(bytes)?;
        if !sections.contains_key(".debug_info") {
            // Both files contain the loader's sections, but the separate one without their contents.
            for (name, bytes) in debug_file(path, file, &sections).into_iter().flatten() {
                if [".symtab", ".strtab"].contains(&name) || name.starts_with(".debug_") {
                    sections.insert(name, bytes);
                }
            }
        }
        Module::of_sections(path, bytes, sections)
    }

    fn parse(path: &Path, file: &'static [u8]) -> Option<Module> {
        Module::of_sections(path, file, elf::sections(file)?)
    }

    fn of_sections(path: &Path, file: &'static [u8], sections: Sections) -> Option<Module> {
        // Exported functions of a library keep their names when it is stripped.
        let table = |name: &str| sections.get(name).copied();
        let symbols = match (table(".symtab"), table(".strtab")) {
            (Some(symbols), Some(names)) => Symbols::read(symbols, names),
            _ if is_library(path) => {
                Symbols::read(table(".dynsym").unwrap_or_default(), table(".dynstr").unwrap_or_default())
            }
            _ => Symbols::default(),
        };
        let dwarf = dwarf(&sections, plain);
        let ranges = Ranges::read(&dwarf).unwrap_or_default();
        Some(Module {
            path: path.to_owned(),
            sections,
            dwarf,
            base: elf::base(&elf::segments_of_file(file)?)?,
            ranges,
            units: HashMap::new(),
            whole: OnceCell::new(),
            package: OnceCell::new(),
            symbols,
        })
    }

    /// Resolves an offset from the file's first mapping: the function there and those inlined into it,
    /// innermost first. `names` decides by the path of a unit's source whether names of functions suffice.
    pub(crate) fn lines(&mut self, offset: u64, names: impl Fn(&Path) -> bool) -> Vec<Line> {
        let Some(address) = self.base.checked_add(offset) else { return Vec::new() };
        let unit = self.ranges.unit_of(address);
        if let Some(at) = unit
            && !self.units.contains_key(&at)
        {
            let unit = self.read_unit(at, names).unwrap_or(Unit::Entangled);
            self.units.insert(at, unit);
        }
        let symbol = || Line { function: self.symbols.at(address), ..Line::default() };
        let alone = match unit.and_then(|at| self.units.get(&at)) {
            // Without debug information there is nothing else.
            None if self.ranges.complete => return vec![symbol()],
            Some(Unit::Names(file)) => return vec![Line { file: Some(file.clone()), ..symbol() }],
            Some(Unit::Read(context)) => self.frames(context, address),
            Some(Unit::Entangled) | None => None,
        };
        let all = || {
            let whole = self.whole.get_or_init(|| Context::from_dwarf(dwarf(&self.sections, plain)).ok());
            self.frames(whole.as_ref()?, address)
        };
        alone.or_else(all).unwrap_or_else(|| vec![symbol()])
    }

    /// The name of the function or the static that an offset lies in.
    pub(crate) fn symbol(&self, offset: u64) -> Option<String> {
        self.symbols.at(self.base.checked_add(offset)?)
    }

    /// Whether any symbol's name contains this.
    #[cfg(feature = "__engine")]
    pub(crate) fn has_name(&self, part: &[u8]) -> bool {
        self.symbols.has_name(part)
    }

    /// The directory in which the compiler ran for the code at an offset.
    pub(crate) fn compiled_in(&self, offset: u64) -> Option<PathBuf> {
        let at = self.ranges.unit_of(self.base.checked_add(offset)?)?;
        let header = self.dwarf.debug_info.header_from_offset(DebugInfoOffset(at)).ok()?;
        Some(path_of(self.dwarf.unit(header).ok()?.comp_dir))
    }

    /// The offset at which the function around an offset begins.
    pub(crate) fn begin(&self, offset: u64) -> Option<u64> {
        let symbol = self.symbols.find(self.base.checked_add(offset)?)?;
        symbol.address.checked_sub(self.base)
    }

    /// The functions at an address.
    fn frames(&self, context: &Context<Bytes>, address: u64) -> Option<Vec<Line>> {
        let mut found = context.find_frames(address);
        let mut frames = loop {
            found = match found {
                LookupResult::Output(frames) => break frames.ok()?,
                LookupResult::Load { load, continuation } => continuation.resume(self.load(&load)),
            };
        };
        let mut lines = Vec::new();
        while let Some(frame) = frames.next().ok()? {
            let location = frame.location.as_ref();
            lines.push(Line {
                function: frame.function.map(|function| demangled(function.name.slice())),
                file: location.and_then(|location| location.file).map(PathBuf::from),
                line: location.and_then(|location| location.line).unwrap_or(0),
                column: location.and_then(|location| location.column).unwrap_or(0),
            });
        }
        // With line tables alone the outermost function may have no name.
        if let Some(last) = lines.last_mut().filter(|last| last.function.is_none()) {
            last.function = self.symbols.at(address);
        }
        (!lines.is_empty()).then_some(lines)
    }

    /// Loads split debug information: from the package beside the program, or from a separate file.
    fn load(&self, part: &SplitDwarfLoad<Bytes>) -> Option<Arc<Dwarf<Bytes>>> {
        let package = self.package.get_or_init(|| {
            let mut path = self.path.clone().into_os_string();
            path.push(".dwp");
            let sections = split_sections(Path::new(&path))?;
            let empty = EndianSlice::new(&[], NativeEndian);
            DwarfPackage::load(|id| Ok::<_, gimli::Error>(section(&sections, id.dwo_name())), empty).ok()
        });
        if let Some(package) = package {
            return package.find_cu(part.dwo_id, &part.parent).ok()?.map(Arc::new);
        }
        let sections = split_sections(&path_of(part.comp_dir).join(path_of(part.path)))?;
        let mut dwarf = dwarf(&sections, SectionId::dwo_name);
        dwarf.make_dwo(&part.parent);
        Some(Arc::new(dwarf))
    }

    fn read_unit(&self, at: usize, names: impl Fn(&Path) -> bool) -> Option<Unit> {
        let header = self.dwarf.debug_info.header_from_offset(DebugInfoOffset(at)).ok()?;
        let length = header.length_including_self();
        let unit = self.dwarf.unit(header).ok()?;
        let source = path_of(unit.comp_dir).join(path_of(unit.name));
        if names(&source) {
            return Some(Unit::Names(source));
        }
        // Other units and other files are not available when this one is read alone.
        let is_alone = |code: u64| {
            let abbreviation = unit.abbreviations.get(code)?;
            Some(
                abbreviation.attributes().iter().all(|attribute| attribute.form() != gimli::DW_FORM_ref_addr),
            )
        };
        if unit.dwo_id.is_some() || !(1..).map_while(is_alone).all(|alone| alone) {
            return None;
        }
        let bytes = self.sections.get(".debug_info")?.get(at..at.checked_add(length)?)?;
        let mut dwarf = dwarf(&self.sections, plain);
        dwarf.debug_info = DebugInfo::from(EndianSlice::new(bytes, NativeEndian));
        // The table has offsets in the whole section, which do not apply here.
        dwarf.debug_aranges = DebugAranges::from(EndianSlice::new(&[], NativeEndian));
        Some(Unit::Read(Box::new(Context::from_dwarf(dwarf).ok()?)))
    }
}

/// Whether a file is a library, judged by its name.
fn is_library(path: &Path) -> bool {
    path.file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|name| name.contains(".so") || name.starts_with("ld-"))
}

/// The separate file with a program's debug information, found by the program's build id or by its
/// `.gnu_debuglink`, as gdb does.
fn debug_file(path: &Path, file: &MappedFile, sections: &Sections) -> Option<Sections> {
    const DEBUG: &str = "/usr/lib/debug";
    let id: String = file.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    // Without a build id only a checksum of the whole file would show that two files belong together.
    let (first, rest) = id.split_at_checked(2)?;
    let directory = path.parent()?;
    let link = sections.get(".gnu_debuglink").and_then(|link| link.split(|byte| *byte == 0).next());
    let mut candidates = vec![Path::new(DEBUG).join(".build-id").join(first).join(format!("{rest}.debug"))];
    if let Some(link) = link.map(OsStr::from_bytes) {
        let below = directory.strip_prefix("/").unwrap_or(directory);
        candidates.extend([
            directory.join(link),
            directory.join(".debug").join(link),
            Path::new(DEBUG).join(below).join(link),
        ]);
    }
    candidates.into_iter().find_map(|candidate| {
        let found = MappedFile { found_at: candidate.to_str()?.to_owned(), inode: 0, ..file.clone() };
        elf::sections(found.read()?)
    })
}

/// The debug information in sections of these names.
fn dwarf(sections: &Sections, name: fn(SectionId) -> Option<&'static str>) -> Dwarf<Bytes> {
    match Dwarf::load(|id| Ok::<_, Infallible>(section(sections, name(id)))) {
        Ok(dwarf) => dwarf,
        Err(never) => match never {},
    }
}

/// The name of a section that is not split.
fn plain(id: SectionId) -> Option<&'static str> {
    Some(id.name())
}

/// Maps addresses to units, with the tables of address ranges of a file.
#[derive(Default)]
struct Ranges {
    /// Start and end addresses, in the order of the tables.
    entries: Vec<(u64, u64)>,
    /// Runs of entries of one unit each.
    runs: Vec<Run>,
    /// Whether the tables cover all code with debug information: an address outside of them is code that the
    /// compiler added.
    complete: bool,
}

struct Run {
    /// Bounds of all its addresses, and maybe of others.
    start: u64,
    end: u64,
    entries: Range<usize>,
    /// The offset of the unit.
    unit: usize,
}

impl Ranges {
    /// The most entries of a run: a look-up scans all runs, and then the entries of one.
    const RUN: usize = 128;

    fn read(dwarf: &Dwarf<Bytes>) -> Option<Ranges> {
        let mut ranges = Ranges::default();
        let mut tables = dwarf.debug_aranges.headers();
        while let Some(table) = tables.next().ok()? {
            let unit = table.debug_info_offset().0;
            let mut entries = table.entries();
            while let Some(entry) = entries.next().ok()? {
                ranges.add(unit, entry.address(), entry.address().saturating_add(entry.length()));
            }
        }
        ranges.complete = ranges.has_all(dwarf).unwrap_or(false);
        Some(ranges)
    }

    fn add(&mut self, unit: usize, start: u64, end: u64) {
        let at = self.entries.len();
        self.entries.push((start, end));
        match self.runs.last_mut().filter(|run| run.unit == unit && run.entries.len() < Ranges::RUN) {
            Some(run) => {
                run.start = run.start.min(start);
                run.end = run.end.max(end);
                run.entries.end = at + 1;
            }
            None => self.runs.push(Run { start, end, entries: at..at + 1, unit }),
        }
    }

    /// Whether only units without code lack a table. Not every compiler writes these tables.
    fn has_all(&self, dwarf: &Dwarf<Bytes>) -> Option<bool> {
        let known: HashSet<usize> = self.runs.iter().map(|run| run.unit).collect();
        let mut headers = dwarf.units();
        let mut next = 0;
        while let Some(header) = headers.next().ok()? {
            let at = next;
            next += header.length_including_self();
            if known.contains(&at) {
                continue;
            }
            let unit = dwarf.unit(header).ok()?;
            let mut ranges = dwarf.unit_ranges(&unit).ok()?;
            while let Some(range) = ranges.next().ok()? {
                // The linker gives address 0 to code that it has dropped.
                if range.begin != 0 && range.begin < range.end {
                    return Some(false);
                }
            }
        }
        Some(true)
    }

    /// The offset of the unit that contains an address.
    fn unit_of(&self, address: u64) -> Option<usize> {
        let has = |run: &&Run| {
            run.start <= address
                && address < run.end
                && self.entries[run.entries.clone()]
                    .iter()
                    .any(|(start, end)| *start <= address && address < *end)
        };
        self.runs.iter().find(has).map(|run| run.unit)
    }
}

fn demangled(name: &[u8]) -> String {
    format!("{:#}", rustc_demangle::demangle(&String::from_utf8_lossy(name)))
}

fn path_of(bytes: Option<Bytes>) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes.map_or(&[], |path| path.slice())))
}

type Sections = elf::Sections<'static>;

fn split_sections(path: &Path) -> Option<Sections> {
    elf::sections(sys::map_file(&File::open(path).ok()?).ok()?)
}

/// A section by its name; empty if there is none.
fn section(sections: &Sections, name: Option<&str>) -> Bytes {
    let bytes = name.and_then(|name| sections.get(name)).copied();
    EndianSlice::new(bytes.unwrap_or_default(), NativeEndian)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::path::Path;

    use super::{Line, Module};
    use crate::proc::maps::{Address, Maps};

    /// What the crate `backtrace` finds for the same address.
    fn slowly(at: u64) -> Vec<Line> {
        let mut lines = Vec::new();
        backtrace::resolve((at + 1) as *mut _, |symbol| {
            lines.push(Line {
                function: symbol.name().map(|name| format!("{name:#}")),
                file: symbol.filename().map(Path::to_owned),
                line: symbol.lineno().unwrap_or(0),
                column: symbol.colno().unwrap_or(0),
            });
        });
        lines
    }

    /// The test binary, the offsets of the middles of many of its functions, and their addresses in memory.
    fn functions() -> (Module, Vec<(u64, u64)>) {
        const MANY: usize = 400;
        let path = std::env::current_exe().unwrap();
        let module = Module::open(&path).unwrap();
        let maps = Maps::read(std::process::id() as i32).unwrap();
        let place = |(begin, size): (u64, u64)| {
            let offset = begin + size / 2 - module.base;
            let address = Address { module: path.to_str()?.to_owned(), offset };
            Some((offset, maps.address_of(&address)?))
        };
        // Longer than a jump.
        let functions: Vec<_> = module.symbols.functions().filter(|(_, size)| *size > 32).collect();
        let step = functions.len().div_ceil(MANY);
        let places = functions.into_iter().step_by(step).filter_map(place).collect();
        (module, places)
    }

    #[test]
    fn the_lines_are_those_of_backtrace() {
        let (mut module, functions) = functions();
        let mut compared = 0;
        for (offset, address) in &functions {
            // Without debug information there are only names, and identical code may have several.
            let expected =
                Some(slowly(*address)).filter(|lines| lines.iter().any(|line| line.file.is_some()));
            let Some(expected) = expected else { continue };
            assert_eq!(module.lines(*offset, |_| false), expected, "at {offset:#x}");
            compared += 1;
        }
        assert!(compared > 100 || !cfg!(debug_assertions), "{compared} of {}", functions.len());
    }

    #[test]
    fn a_name_is_that_of_the_function_into_which_others_were_inlined() {
        let (mut module, functions) = functions();
        let mut same = 0;
        for (offset, address) in &functions {
            let lines = module.lines(*offset, |_| true);
            let name = lines.first().and_then(|line| line.function.clone()).unwrap_or_default();
            // With line tables alone, inlined functions have no path.
            let expected = slowly(*address).pop().and_then(|line| line.function).unwrap_or_default();
            same += usize::from(name == expected || name.ends_with(&format!("::{expected}")));
        }
        // Some functions have two names.
        assert!(same * 20 > functions.len() * 19, "{same} of {} are the same", functions.len());
    }

    #[test]
    fn what_is_no_program_is_nothing() {
        assert!(Module::open(Path::new("/dev/null")).is_none());
        assert!(Module::open(Path::new("/")).is_none());
        assert!(Module::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).is_none());
    }

    /// A truncated file gives an incomplete result and no panic.
    #[test]
    fn a_broken_file_is_read_as_far_as_it_goes() {
        let file: &'static [u8] = std::fs::read(std::env::current_exe().unwrap()).unwrap().leak();
        for part in 0..16 {
            if let Some(mut module) = Module::parse(Path::new(""), &file[..file.len() * part / 16]) {
                module.lines(0x1000, |_| false);
                module.symbol(0x1000);
            }
        }
        let file = std::fs::read("/bin/sh").unwrap();
        for byte in 0..64 {
            let mut damaged = file.clone();
            damaged[byte] ^= 0xff;
            if let Some(mut module) = Module::parse(Path::new(""), damaged.leak()) {
                module.lines(0x1000, |_| false);
            }
        }
    }
}
