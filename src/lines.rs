//! Functions and lines behind the addresses of one file, from its own symbols and debug information.
//!
//! To read the head of every compilation unit before the first question, and all of std's one unit to name a
//! function of std, takes 0.1 s in an unoptimised build, which nearly every test is. So the file's
//! table of address ranges tells which unit is meant, and that one alone is given to `addr2line`; of a
//! unit that only its names are wanted of, the symbol table is enough. What is not so plain (no ranges,
//! split debug information, units that refer to each other as after LTO) is asked of all units.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use addr2line::{Context, LookupContinuation, LookupResult, SplitDwarfLoad};
use gimli::{
    DebugAranges, DebugInfo, DebugInfoOffset, Dwarf, DwarfPackage, EndianSlice, NativeEndian, SectionId,
};

use crate::sys;

type Bytes = EndianSlice<'static, NativeEndian>;

/// What lies at an address: a function, or one that was inlined there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) function: Option<String>,
    pub(crate) file: Option<PathBuf>,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A program or a library, as it lies on the disk.
pub(crate) struct Module {
    path: PathBuf,
    sections: Sections,
    dwarf: Dwarf<Bytes>,
    /// What the addresses of the file begin with.
    base: u64,
    ranges: Ranges,
    /// The units that were read, by where they begin.
    units: HashMap<usize, Unit>,
    /// All of them at once, if that was necessary.
    whole: OnceCell<Option<Context<Bytes>>>,
    /// Split debug information that was put into one file.
    package: OnceCell<Option<DwarfPackage<Bytes>>>,
    symbols: Symbols,
}

enum Unit {
    Read(Box<Context<Bytes>>),
    /// Nothing but the names of its functions is of interest. The path of its source.
    Names(PathBuf),
    /// It cannot be read alone.
    Entangled,
}

impl Module {
    /// Maps a file. `None` if it is no ELF file of 64 bits, or may not be read.
    pub(crate) fn open(path: &Path) -> Option<Module> {
        // The program's own file may have been replaced by a newer one.
        let own = std::env::current_exe().is_ok_and(|own| own == path);
        let file = File::open(if own { Path::new("/proc/self/exe") } else { path }).ok()?;
        Module::parse(path, sys::map_file(&file).ok()?)
    }

    fn parse(path: &Path, file: &'static [u8]) -> Option<Module> {
        let elf = Elf(file);
        let sections = elf.sections()?;
        let symbols = Symbols::read(
            sections.get(".symtab").copied().unwrap_or_default(),
            sections.get(".strtab").copied().unwrap_or_default(),
        );
        let dwarf = dwarf(&sections, plain);
        let ranges = Ranges::read(&dwarf).unwrap_or_default();
        Some(Module {
            path: path.to_owned(),
            sections,
            dwarf,
            base: elf.base()?,
            ranges,
            units: HashMap::new(),
            whole: OnceCell::new(),
            package: OnceCell::new(),
            symbols,
        })
    }

    /// Looks up the code at an offset from where the file is mapped first: the function there and those
    /// that were inlined, the innermost first. `names` tells by the path of a unit's source whether the
    /// names of functions will do.
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
            // Without debug information there is nothing else to be found.
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

    /// Where the function begins that an offset lies in, as an offset.
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
        // With line tables alone the function itself may have no name there.
        if let Some(last) = lines.last_mut().filter(|last| last.function.is_none()) {
            last.function = self.symbols.at(address);
        }
        (!lines.is_empty()).then_some(lines)
    }

    /// Reads what was split off: a part of the package beside the program, or a file of its own.
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
        // Another unit would not be where it is looked for, and another file is not at hand.
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
        // It tells of units by where they were in the whole section.
        dwarf.debug_aranges = DebugAranges::from(EndianSlice::new(&[], NativeEndian));
        Some(Unit::Read(Box::new(Context::from_dwarf(dwarf).ok()?)))
    }
}

/// The debug information in sections of these names.
fn dwarf(sections: &Sections, name: fn(SectionId) -> Option<&'static str>) -> Dwarf<Bytes> {
    match Dwarf::load(|id| Ok::<_, Infallible>(section(sections, name(id)))) {
        Ok(dwarf) => dwarf,
        Err(never) => match never {},
    }
}

/// The name of a section that was not split off.
fn plain(id: SectionId) -> Option<&'static str> {
    Some(id.name())
}

/// Which unit an address belongs to, by the tables of ranges of a file.
#[derive(Default)]
struct Ranges {
    /// First address and the one behind the last, as the tables have them.
    entries: Vec<(u64, u64)>,
    /// Runs of entries of one unit each.
    runs: Vec<Run>,
    /// What no table has is without debug information: what the compiler itself has put in.
    complete: bool,
}

struct Run {
    /// All of its addresses, and more.
    start: u64,
    end: u64,
    entries: Range<usize>,
    /// Where the unit begins.
    unit: usize,
}

impl Ranges {
    /// The most entries of a run: to find the run is to look at all, and then at all of its entries.
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

    /// Whether only units without code have no table: not every compiler writes them.
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
                // The linker gives no address to what it has thrown away.
                if range.begin != 0 && range.begin < range.end {
                    return Some(false);
                }
            }
        }
        Some(true)
    }

    /// Where the unit of an address begins.
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

type Sections = HashMap<&'static str, &'static [u8]>;

fn split_sections(path: &Path) -> Option<Sections> {
    Elf(sys::map_file(&File::open(path).ok()?).ok()?).sections()
}

/// A section by its name, empty if there is none.
fn section(sections: &Sections, name: Option<&str>) -> Bytes {
    let bytes = name.and_then(|name| sections.get(name)).copied();
    EndianSlice::new(bytes.unwrap_or_default(), NativeEndian)
}

/// The functions and statics of a file, found by their addresses.
#[derive(Default)]
struct Symbols {
    table: &'static [u8],
    names: &'static [u8],
    /// For each page of memory the last symbol that begins on it, and for each symbol the one before on
    /// its page; [`NONE`] at the end. To sort them all would take longer than all look-ups do.
    pages: Vec<u32>,
    before: Vec<u32>,
}

const NONE: u32 = u32::MAX;
/// Bits of an address within a page.
const PAGE: u32 = 12;
/// The most memory that a file's code and statics may span.
const SPAN: u64 = 4 << 30;
/// The bytes of an `Elf64_Sym`: name, kind, visibility, section, address, size (elf(5)).
const SYMBOL: usize = 24;

struct Symbol {
    name: usize,
    address: u64,
    size: u64,
}

impl Symbols {
    fn read(table: &'static [u8], names: &'static [u8]) -> Symbols {
        let mut symbols = Symbols { table, names, pages: Vec::new(), before: Vec::new() };
        symbols.before.reserve(table.len() / SYMBOL);
        for (at, entry) in (0..).zip(table.chunks_exact(SYMBOL)) {
            symbols.before.push(NONE);
            let Some(symbol) = Symbol::parse(entry).filter(|symbol| symbol.address < SPAN) else { continue };
            let page = (symbol.address >> PAGE) as usize;
            if symbols.pages.len() <= page {
                symbols.pages.resize(page + 1, NONE);
            }
            symbols.before[at as usize] = std::mem::replace(&mut symbols.pages[page], at);
        }
        symbols
    }

    fn get(&self, at: u32) -> Option<Symbol> {
        Symbol::parse(self.table.get(at as usize * SYMBOL..)?.get(..SYMBOL)?)
    }

    /// The name of the symbol that an address lies in.
    fn at(&self, address: u64) -> Option<String> {
        let name = self.names.get(self.find(address)?.name..)?;
        name.split(|byte| *byte == 0).next().map(demangled)
    }

    /// The symbol that an address lies in.
    fn find(&self, address: u64) -> Option<Symbol> {
        let page = usize::try_from(address >> PAGE).ok()?;
        let pages = self.pages.get(..=page.min(self.pages.len().checked_sub(1)?))?;
        for last in pages.iter().rev() {
            let chain = std::iter::successors(Some(*last), |at| self.before.get(*at as usize).copied());
            let begun = chain
                .take_while(|at| *at != NONE)
                .filter_map(|at| self.get(at))
                .filter(|symbol| symbol.address <= address)
                .max_by_key(|symbol| (symbol.address, symbol.size));
            // The nearest one: there is nothing that lies in another.
            if let Some(symbol) = begun {
                return (address - symbol.address < symbol.size.max(1)).then_some(symbol);
            }
        }
        None
    }
}

impl Symbol {
    /// A function or a static of the file itself.
    fn parse(entry: &[u8]) -> Option<Symbol> {
        // STT_OBJECT and STT_FUNC; most have another kind, and no time is to be lost on them.
        if !matches!(entry[4] & 0xf, 1 | 2) || entry[6..8] == [0, 0] {
            return None;
        }
        let symbol = Symbol {
            name: number32(entry, 0)? as usize,
            address: number(entry, 8)?,
            size: number(entry, 16)?,
        };
        (symbol.address != 0).then_some(symbol)
    }
}

/// An ELF file of this machine (elf(5)).
struct Elf(&'static [u8]);

impl Elf {
    /// The contents of the sections that have a place in the file and are not compressed.
    fn sections(&self) -> Option<Sections> {
        const NOBITS: u32 = 8;
        const COMPRESSED: u64 = 0x800;
        let Elf(file) = *self;
        let class = if cfg!(target_endian = "little") { [2, 1] } else { [2, 2] };
        if file.get(..4)? != b"\x7fELF" || file.get(4..6)? != class {
            return None;
        }
        let headers = usize::try_from(number(file, 0x28)?).ok()?;
        let (size, count, names) = (number16(file, 0x3a)?, number16(file, 0x3c)?, number16(file, 0x3e)?);
        let header = |at: u16| {
            let begin = headers.checked_add(usize::from(at) * usize::from(size))?;
            file.get(begin..begin.checked_add(64)?)
        };
        let content = |header: &[u8]| {
            let begin = usize::try_from(number(header, 24)?).ok()?;
            let length = usize::try_from(number(header, 32)?).ok()?;
            file.get(begin..begin.checked_add(length)?)
        };
        let names = content(header(names)?)?;
        let mut sections = HashMap::new();
        for header in (0..count).map_while(header) {
            let name = names.get(number32(header, 0)? as usize..)?.split(|byte| *byte == 0).next()?;
            let plain = number32(header, 4)? != NOBITS && number(header, 8)? & COMPRESSED == 0;
            if let (Ok(name), Some(bytes), true) = (std::str::from_utf8(name), content(header), plain) {
                sections.insert(name, bytes);
            }
        }
        Some(sections)
    }

    /// The page that the file's first mapping begins with.
    fn base(&self) -> Option<u64> {
        const LOAD: u32 = 1;
        let Elf(file) = *self;
        let headers = usize::try_from(number(file, 0x20)?).ok()?;
        let (size, count) = (number16(file, 0x36)?, number16(file, 0x38)?);
        let loaded = (0..usize::from(count))
            .filter_map(|at| file.get(headers.checked_add(at * usize::from(size))?..))
            .filter(|header| number32(header, 0) == Some(LOAD));
        Some(loaded.filter_map(|header| number(header, 16)).min()? & !((1 << PAGE) - 1))
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_ne_bytes)
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::path::Path;

    use super::{Line, Module, Symbol};
    use crate::proc::maps::{Address, Maps};

    /// What `backtrace` says of the same address.
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

    /// The test binary, an offset in the middle of each of many of its functions, and where that is in memory.
    fn functions() -> (Module, Vec<(u64, u64)>) {
        const MANY: usize = 400;
        let path = std::env::current_exe().unwrap();
        let module = Module::open(&path).unwrap();
        let maps = Maps::read(std::process::id() as i32).unwrap();
        let place = |symbol: Symbol| {
            let offset = symbol.address + symbol.size / 2 - module.base;
            let address = Address { module: path.to_str()?.to_owned(), offset };
            Some((offset, maps.address_of(&address)?))
        };
        let entries = module.symbols.table.chunks_exact(super::SYMBOL);
        // STT_FUNC, and more than a jump.
        let functions = entries.filter(|entry| entry[4] & 0xf == 2).filter_map(Symbol::parse);
        let functions: Vec<Symbol> = functions.filter(|symbol| symbol.size > 32).collect();
        let step = functions.len().div_ceil(MANY);
        let places = functions.into_iter().step_by(step).filter_map(place).collect();
        (module, places)
    }

    #[test]
    fn the_lines_are_those_of_backtrace() {
        let (mut module, functions) = functions();
        let mut compared = 0;
        for (offset, address) in &functions {
            // Without debug information there are only names, and more than one of what is the same code.
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
            // With line tables alone, what was inlined has no path.
            let expected = slowly(*address).pop().and_then(|line| line.function).unwrap_or_default();
            same += usize::from(name == expected || name.ends_with(&format!("::{expected}")));
        }
        // Some have two names.
        assert!(same * 20 > functions.len() * 19, "{same} of {} are the same", functions.len());
    }

    #[test]
    fn what_is_no_program_is_nothing() {
        assert!(Module::open(Path::new("/dev/null")).is_none());
        assert!(Module::open(Path::new("/")).is_none());
        assert!(Module::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).is_none());
    }

    /// Cut short anywhere, a file is an incomplete one and no panic.
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
