//! Functions and lines behind the addresses of one file, from its own symbols and debug information.
//!
//! `backtrace` reads the head of every compilation unit before it answers the first question, and all
//! of std's one unit before it names a function of std: 0.1 s in an unoptimised build, which
//! nearly every test is. So the file's table of address ranges tells which unit is meant, and that
//! one alone is given to `addr2line`; of a unit that only its names are wanted of, the symbol table
//! is enough. What is not so plain (no ranges, compressed or split debug information, units that
//! refer to each other as after LTO) is left to `backtrace`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use addr2line::Context;
use backtrace::SymbolName;
use gimli::{
    ArangeHeader, DebugAranges, DebugArangesOffset, DebugInfo, DebugInfoOffset, Dwarf, EndianSlice,
    NativeEndian, SectionId,
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

/// What is known of an address.
#[derive(Debug)]
pub(crate) enum Found {
    /// The function and those that were inlined there, the innermost first. Empty if there is nothing.
    Lines(Vec<Line>),
    /// Somebody else must read it.
    Unclear,
}

/// A program or a library, as it lies on the disk.
pub(crate) struct Module {
    sections: HashMap<&'static str, &'static [u8]>,
    dwarf: Dwarf<Bytes>,
    /// What the addresses of the file begin with.
    base: u64,
    /// Each unit's table of ranges, and the range from its first to its last address.
    tables: Vec<(Range<u64>, DebugArangesOffset)>,
    /// The units that were read, by where they begin.
    units: HashMap<usize, Unit>,
    symbols: Symbols,
}

enum Unit {
    Read(Box<Context<Bytes>>),
    /// Nothing but the names of its functions is of interest. The path of its source.
    Names(PathBuf),
    Unclear,
}

impl Module {
    /// Maps a file. `None` if it is no ELF file of this machine's word size, or not to be read.
    pub(crate) fn open(path: &Path) -> Option<Module> {
        // The program's own file may have been replaced by a newer one.
        let own = std::env::current_exe().is_ok_and(|own| own == path);
        let file = File::open(if own { Path::new("/proc/self/exe") } else { path }).ok()?;
        Module::parse(sys::map_file(&file).ok()?)
    }

    fn parse(file: &'static [u8]) -> Option<Module> {
        let elf = Elf(file);
        let sections = elf.sections()?;
        let symbols = Symbols::read(
            sections.get(".symtab").copied().unwrap_or_default(),
            sections.get(".strtab").copied().unwrap_or_default(),
        );
        let dwarf = dwarf(&sections);
        let tables = tables(&dwarf).unwrap_or_default();
        Some(Module { sections, dwarf, base: elf.base()?, tables, units: HashMap::new(), symbols })
    }

    /// Looks up the code at an offset from where the file is mapped first. `names` tells by the path of
    /// a unit's source whether the names of functions will do.
    pub(crate) fn lines(&mut self, offset: u64, names: impl Fn(&Path) -> bool) -> Found {
        let Some(address) = self.base.checked_add(offset) else { return Found::Lines(Vec::new()) };
        let symbol = || Line { function: self.symbols.at(address), ..Line::default() };
        let Some(at) = self.unit_of(address) else {
            // Without debug information there is nothing else to be found.
            return match self.sections.contains_key(".debug_info") {
                true => Found::Unclear,
                false => Found::Lines(vec![symbol()]),
            };
        };
        if !self.units.contains_key(&at) {
            let unit = self.read_unit(at, names).unwrap_or(Unit::Unclear);
            self.units.insert(at, unit);
        }
        match self.units.get(&at) {
            Some(Unit::Names(file)) => Found::Lines(vec![Line { file: Some(file.clone()), ..symbol() }]),
            Some(Unit::Read(context)) => frames(context, address).map_or(Found::Unclear, Found::Lines),
            Some(Unit::Unclear) | None => Found::Unclear,
        }
    }

    /// The name of the function or the static that an offset lies in.
    pub(crate) fn symbol(&self, offset: u64) -> Option<String> {
        self.symbols.at(self.base.checked_add(offset)?)
    }

    /// Where the unit of an address begins.
    fn unit_of(&self, address: u64) -> Option<usize> {
        let likely = self.tables.iter().filter(|(reach, _)| reach.contains(&address));
        let has = |table: &ArangeHeader<Bytes>| {
            let mut entries = table.entries();
            std::iter::from_fn(|| entries.next().ok().flatten())
                .any(|entry| entry.address() <= address && address - entry.address() < entry.length())
        };
        likely
            .filter_map(|(_, at)| self.dwarf.debug_aranges.header(*at).ok())
            .find(has)
            .map(|table| table.debug_info_offset().0)
    }

    fn read_unit(&self, at: usize, names: impl Fn(&Path) -> bool) -> Option<Unit> {
        let header = self.dwarf.debug_info.header_from_offset(DebugInfoOffset(at)).ok()?;
        let length = header.length_including_self();
        let unit = self.dwarf.unit(header).ok()?;
        let path =
            |bytes: Option<Bytes>| PathBuf::from(OsStr::from_bytes(bytes.map_or(&[], |path| path.slice())));
        let source = path(unit.comp_dir).join(path(unit.name));
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
        let mut dwarf = dwarf(&self.sections);
        dwarf.debug_info = DebugInfo::from(EndianSlice::new(bytes, NativeEndian));
        // It tells of units by where they were in the whole section.
        dwarf.debug_aranges = DebugAranges::from(EndianSlice::new(&[], NativeEndian));
        Some(Unit::Read(Box::new(Context::from_dwarf(dwarf).ok()?)))
    }
}

fn dwarf(sections: &HashMap<&'static str, &'static [u8]>) -> Dwarf<Bytes> {
    let section = |id: SectionId| -> Result<Bytes, Infallible> {
        Ok(EndianSlice::new(sections.get(id.name()).copied().unwrap_or_default(), NativeEndian))
    };
    match Dwarf::load(section) {
        Ok(dwarf) => dwarf,
        Err(never) => match never {},
    }
}

/// From where to where each unit reaches, by its table of ranges.
fn tables(dwarf: &Dwarf<Bytes>) -> Option<Vec<(Range<u64>, DebugArangesOffset)>> {
    let mut tables = Vec::new();
    let mut headers = dwarf.debug_aranges.headers();
    while let Some(table) = headers.next().ok()? {
        let (mut start, mut end) = (u64::MAX, 0);
        let mut entries = table.entries();
        while let Some(entry) = entries.next().ok()? {
            // The linker has thrown away what has no address.
            if entry.address() != 0 {
                start = start.min(entry.address());
                end = end.max(entry.address().saturating_add(entry.length()));
            }
        }
        tables.push((start..end, table.offset()));
    }
    Some(tables)
}

/// The functions at an address of one unit.
fn frames(context: &Context<Bytes>, address: u64) -> Option<Vec<Line>> {
    let mut frames = context.find_frames(address).skip_all_loads().ok()?;
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
    (!lines.is_empty()).then_some(lines)
}

fn demangled(name: &[u8]) -> String {
    format!("{:#}", SymbolName::new(name))
}

/// The functions and statics of a file, found by their addresses.
#[derive(Default)]
struct Symbols {
    table: &'static [u8],
    names: &'static [u8],
    /// The first address of all.
    start: u64,
    /// For each page the last symbol that begins on it, and for each symbol the one before on its page;
    /// [`NONE`] at the end. A sort of all symbols takes longer than the few look-ups that it would help.
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
        let mut symbols = Symbols { table, names, ..Symbols::default() };
        let count = table.len() / SYMBOL;
        let all = || (0..count).filter_map(|at| Some((at, symbols.get(at)?)));
        let bounds = all().fold((u64::MAX, 0), |(low, high), (_, symbol)| {
            (low.min(symbol.address), high.max(symbol.address))
        });
        let Some(span) = bounds.1.checked_sub(bounds.0).filter(|span| *span < SPAN) else { return symbols };
        let mut pages = vec![NONE; (span >> PAGE) as usize + 1];
        let mut before = vec![NONE; count];
        for (at, symbol) in all() {
            if let Some(page) = pages.get_mut(((symbol.address - bounds.0) >> PAGE) as usize) {
                before[at] = std::mem::replace(page, at as u32);
            }
        }
        symbols.start = bounds.0;
        symbols.pages = pages;
        symbols.before = before;
        symbols
    }

    /// One function or static of the file itself.
    fn get(&self, at: usize) -> Option<Symbol> {
        let entry = self.table.get(at * SYMBOL..(at + 1) * SYMBOL)?;
        let (kind, section) = (entry[4] & 0xf, u16::from_ne_bytes([entry[6], entry[7]]));
        // STT_OBJECT and STT_FUNC, defined.
        if !matches!(kind, 1 | 2) || section == 0 {
            return None;
        }
        let symbol = Symbol {
            name: number32(entry, 0)? as usize,
            address: number(entry, 8)?,
            size: number(entry, 16)?,
        };
        (symbol.address != 0).then_some(symbol)
    }

    /// The name of the symbol that an address lies in.
    fn at(&self, address: u64) -> Option<String> {
        let page = (address.checked_sub(self.start)? >> PAGE) as usize;
        let pages = self.pages.get(..=page.min(self.pages.len().checked_sub(1)?))?;
        for last in pages.iter().rev() {
            let chain = std::iter::successors(Some(*last), |at| self.before.get(*at as usize).copied());
            let begun = chain
                .take_while(|at| *at != NONE)
                .filter_map(|at| self.get(at as usize))
                .filter(|symbol| symbol.address <= address)
                .max_by_key(|symbol| (symbol.address, symbol.size));
            // The nearest one: there is nothing that lies in another.
            if let Some(symbol) = begun {
                let name = self.names.get(symbol.name..)?.split(|byte| *byte == 0).next()?;
                return (address - symbol.address < symbol.size.max(1)).then(|| demangled(name));
            }
        }
        None
    }
}

/// An ELF file of this machine (elf(5)).
struct Elf(&'static [u8]);

impl Elf {
    /// The contents of the sections that are neither compressed nor without a place in the file.
    fn sections(&self) -> Option<HashMap<&'static str, &'static [u8]>> {
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
            } else if name == b".debug_info" {
                // It is there, and cannot be read here.
                sections.insert(".debug_info", &[][..]);
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
