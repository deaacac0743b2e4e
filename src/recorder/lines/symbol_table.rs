//! The names of a file's functions and statics, from its symbol table.

use std::cmp::Reverse;

use super::demangled;
use crate::proc::elf;

/// The functions and statics of a file, indexed by address.
#[derive(Default)]
pub(super) struct Symbols {
    table: &'static [u8],
    names: &'static [u8],
    /// For each page of memory, the last symbol that begins on it; for each symbol, the previous one on its
    /// page; [`NONE`] at the end. Sorting all symbols would take longer than all look-ups.
    pages: Vec<u32>,
    before: Vec<u32>,
}

const NONE: u32 = u32::MAX;
/// The page size, as a power of two.
const PAGE: u32 = 12;
/// The most address space that a file's code and statics may span.
const SPAN: u64 = 4 << 30;
/// The size of an `Elf64_Sym`: name, kind, visibility, section, address, size (elf(5)).
const SYMBOL: usize = 24;

pub(super) struct Symbol {
    name: usize,
    pub(super) address: u64,
    size: u64,
}

impl Symbols {
    pub(super) fn read(table: &'static [u8], names: &'static [u8]) -> Symbols {
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

    /// Whether a name has this part.
    #[cfg(feature = "__engine")]
    pub(super) fn has_name(&self, part: &[u8]) -> bool {
        self.names.windows(part.len()).any(|name| name == part)
    }

    /// Addresses and sizes of the functions.
    #[cfg(test)]
    pub(super) fn functions(&self) -> impl Iterator<Item = (u64, u64)> {
        // STT_FUNC.
        let entries = self.table.chunks_exact(SYMBOL).filter(|entry| entry[4] & 0xf == 2);
        entries.filter_map(Symbol::parse).map(|symbol| (symbol.address, symbol.size))
    }

    /// The name of the symbol that contains an address.
    pub(super) fn at(&self, address: u64) -> Option<String> {
        let Some(symbol) = self.find(address) else { return self.semaphores(address) };
        self.name(&symbol).map(demangled)
    }

    /// `sem_wait` or `sem_timedwait`, if an address lies before them and in no other function: in glibc they jump to one that
    /// has no name in a stripped library.
    fn semaphores(&self, address: u64) -> Option<String> {
        let is_of_family = |name: Option<&[u8]>| name.is_some_and(|name| name.starts_with(b"sem_"));
        is_of_family(self.name(&self.nearest(address)?)).then_some(())?;
        let all = self.table.chunks_exact(SYMBOL).filter_map(Symbol::parse);
        let next = all.filter(|symbol| symbol.address > address).min_by_key(|symbol| symbol.address)?;
        self.name(&next).filter(|name| is_of_family(Some(name))).map(demangled)
    }

    /// Puts the names of the same code into an order, which in the table depends on the linker: a method of a trait, such as
    /// `Read::read`, last, since that is more often what was called.
    fn rank(&self, symbol: &Symbol) -> (bool, Reverse<Option<&[u8]>>) {
        let name = self.name(symbol);
        (name.is_some_and(|name| name.starts_with(b"_RNvX")), Reverse(name))
    }

    fn name(&self, symbol: &Symbol) -> Option<&'static [u8]> {
        self.names.get(symbol.name..)?.split(|byte| *byte == 0).next()
    }

    /// The symbol that contains an address.
    pub(super) fn find(&self, address: u64) -> Option<Symbol> {
        self.nearest(address).filter(|symbol| address - symbol.address < symbol.size.max(1))
    }

    /// The symbol that contains an address, or that lies before it.
    fn nearest(&self, address: u64) -> Option<Symbol> {
        let page = usize::try_from(address >> PAGE).ok()?;
        let pages = self.pages.get(..=page.min(self.pages.len().checked_sub(1)?))?;
        for last in pages.iter().rev() {
            let chain = std::iter::successors(Some(*last), |at| self.before.get(*at as usize).copied());
            let begun = chain
                .take_while(|at| *at != NONE)
                .filter_map(|at| self.get(at))
                .filter(|symbol| symbol.address <= address)
                .max_by(|one, other| {
                    let places = (one.address, one.size).cmp(&(other.address, other.size));
                    places.then_with(|| self.rank(one).cmp(&self.rank(other)))
                });
            // The nearest symbol: symbols do not nest.
            if let Some(symbol) = begun {
                return Some(symbol);
            }
        }
        None
    }
}

impl Symbol {
    /// Parses a function or static that the file itself defines.
    fn parse(entry: &[u8]) -> Option<Symbol> {
        // STT_OBJECT and STT_FUNC. Most symbols have another kind, so this is checked first.
        if !matches!(entry[4] & 0xf, 1 | 2) || entry[6..8] == [0, 0] {
            return None;
        }
        let symbol = Symbol {
            name: elf::u32_at(entry, 0)? as usize,
            address: elf::u64_at(entry, 8)?,
            size: elf::u64_at(entry, 16)?,
        };
        (symbol.address != 0).then_some(symbol)
    }
}
