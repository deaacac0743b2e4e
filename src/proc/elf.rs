//! Parses the headers of an ELF file of this machine's class and byte order (elf(5)), on disk or mapped in a
//! process.
//!
//! The input is untrusted: a file may be truncated, and memory may be unmapped while it is read. A header
//! that does not fit gives `None`; nothing here panics.

use std::borrow::Cow;
use std::collections::HashMap;

/// Bytes of the file header that are needed to find the two tables.
pub(crate) const HEADER: usize = 64;
/// The first bytes of a 64-bit file: magic number, ELFCLASS64, and ELFDATA2LSB or ELFDATA2MSB.
pub(super) const MAGIC: [u8; 6] =
    if cfg!(target_endian = "little") { *b"\x7fELF\x02\x01" } else { *b"\x7fELF\x02\x02" };
/// Size of a memory page, in bytes. Addresses of mappings are rounded down to it.
const PAGE: u64 = 4096;

/// The sections that have contents in the file and are not compressed, by name.
pub(crate) type Sections<'a> = HashMap<&'a str, &'a [u8]>;

/// The positions of the program header table and of the section header table.
struct Header {
    segments: Table,
    sections: Table,
    /// Index of the section that holds the names of all sections.
    names: u16,
}

/// A table of headers.
struct Table {
    offset: u64,
    entry: u16,
    count: u16,
}

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) kind: SegmentKind,
    pub(crate) address: u64,
    pub(crate) size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentKind {
    /// PT_LOAD
    Load,
    /// PT_GNU_EH_FRAME: the index of the unwind tables.
    UnwindIndex,
    /// PT_NOTE: notes, among which the build id may be.
    Note,
    Other,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Header> {
        (bytes.get(..6)? == MAGIC).then_some(())?;
        Some(Header {
            segments: Table {
                offset: u64_at(bytes, 0x20)?,
                entry: u16_at(bytes, 0x36)?,
                count: u16_at(bytes, 0x38)?,
            },
            sections: Table {
                offset: u64_at(bytes, 0x28)?,
                entry: u16_at(bytes, 0x3a)?,
                count: u16_at(bytes, 0x3c)?,
            },
            names: u16_at(bytes, 0x3e)?,
        })
    }
}

impl Table {
    fn size(&self) -> usize {
        usize::from(self.entry) * usize::from(self.count)
    }
}

/// The program headers of a file that begins with `header`. `read` gives bytes of it, by offset and size.
pub(crate) fn segments<'a>(
    header: &[u8],
    read: impl FnOnce(u64, usize) -> Option<Cow<'a, [u8]>>,
) -> Option<Vec<Segment>> {
    let table = Header::parse(header)?.segments;
    let bytes = read(table.offset, table.size())?;
    let segment = |entry| {
        let kind = match u32_at(entry, 0)? {
            1 => SegmentKind::Load,
            4 => SegmentKind::Note,
            0x6474_e550 => SegmentKind::UnwindIndex,
            _ => SegmentKind::Other,
        };
        Some(Segment { kind, address: u64_at(entry, 16)?, size: u64_at(entry, 40)? })
    };
    // A size of 0 is invalid; `max` avoids a panic.
    bytes.chunks_exact(usize::from(table.entry).max(1)).map(segment).collect()
}

/// The page-aligned address, as the file has it, at which the file's first mapping begins.
pub(crate) fn base(segments: &[Segment]) -> Option<u64> {
    let loaded = segments.iter().filter(|segment| segment.kind == SegmentKind::Load);
    Some(loaded.map(|segment| segment.address).min()? & !(PAGE - 1))
}

/// The program headers of a whole file.
pub(crate) fn segments_of_file(file: &[u8]) -> Option<Vec<Segment>> {
    segments(file, |offset, size| bytes_at(file, offset, size).map(Cow::Borrowed))
}

/// The sections of a whole file.
pub(crate) fn sections(file: &[u8]) -> Option<Sections<'_>> {
    let mut sections = HashMap::new();
    each_section(file, |name, content, is_compressed| {
        if !is_compressed {
            sections.insert(name, content);
        }
    })?;
    Some(sections)
}

/// Whether the line tables of a file are compressed (`SHF_COMPRESSED`, or a name as `.zdebug_line` of older tools).
pub(crate) fn has_compressed_lines(file: &[u8]) -> bool {
    let mut found = false;
    let all = each_section(file, |name, _, is_compressed| {
        found |= is_compressed && name == ".debug_line" || name == ".zdebug_line";
    });
    found && all.is_some()
}

/// Calls `see` with the name and the content of each section that has one in the file, and whether it is compressed.
fn each_section<'a>(file: &'a [u8], mut see: impl FnMut(&'a str, &'a [u8], bool)) -> Option<()> {
    const NOBITS: u32 = 8;
    const COMPRESSED: u64 = 0x800;
    let Header { sections: table, names, .. } = Header::parse(file)?;
    let header = |at: u16| {
        let offset = u64::from(at) * u64::from(table.entry);
        bytes_at(file, table.offset.checked_add(offset)?, 64)
    };
    let content =
        |header: &[u8]| bytes_at(file, u64_at(header, 24)?, usize::try_from(u64_at(header, 32)?).ok()?);
    let names = content(header(names)?)?;
    for header in (0..table.count).map_while(header) {
        let name = names.get(u32_at(header, 0)? as usize..)?.split(|byte| *byte == 0).next()?;
        let (kind, flags) = (u32_at(header, 4)?, u64_at(header, 8)?);
        if let (Ok(name), Some(bytes), true) = (std::str::from_utf8(name), content(header), kind != NOBITS) {
            see(name, bytes, flags & COMPRESSED != 0);
        }
    }
    Some(())
}

/// The build id among notes (NT_GNU_BUILD_ID, elf(5)); empty if there is none.
pub(crate) fn build_id(mut notes: &[u8]) -> &[u8] {
    const NT_GNU_BUILD_ID: u32 = 3;
    /// Name and content are each padded to a multiple of four bytes.
    fn part(notes: &[u8], at: usize, size: u32) -> Option<(&[u8], usize)> {
        let size = size as usize;
        Some((notes.get(at..at.checked_add(size)?)?, at.checked_add(size.checked_next_multiple_of(4)?)?))
    }
    let note = |notes: &[u8]| Some((u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?));
    while let Some((name, content, kind)) = note(notes) {
        let Some((name, at)) = part(notes, 12, name) else { break };
        let Some((content, next)) = part(notes, at, content) else { break };
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return content;
        }
        notes = notes.get(next..).unwrap_or_default();
    }
    &[]
}

fn bytes_at(file: &[u8], offset: u64, size: usize) -> Option<&[u8]> {
    let at = usize::try_from(offset).ok()?;
    file.get(at..at.checked_add(size)?)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    /// The running program, which contains everything that is parsed here.
    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn a_program_has_its_segments_and_sections() {
        let file = own();
        let segments = segments_of_file(&file).unwrap();
        let load = segments.iter().filter(|segment| segment.kind == SegmentKind::Load);
        let unwind = segments.iter().find(|segment| segment.kind == SegmentKind::UnwindIndex).unwrap();
        assert!(load.clone().count() > 1);
        assert!(load.clone().any(|load| (load.address..load.address + load.size).contains(&unwind.address)));
        assert_eq!(base(&segments).unwrap() % PAGE, 0);

        let sections = sections(&file).unwrap();
        assert!([".text", ".symtab", ".strtab"].iter().all(|name| !sections[name].is_empty()));
        // It has a size but no contents in the file.
        assert!(!sections.contains_key(".bss"));
        // The section and the segment describe the same bytes.
        assert_eq!(sections[".eh_frame_hdr"].len() as u64, unwind.size);
    }

    #[test]
    fn a_build_id_is_found_among_other_notes() {
        let note = |kind: u32, name: &[u8], content: &[u8]| {
            let sizes = [name.len() as u32, content.len() as u32, kind];
            let mut note: Vec<u8> = sizes.iter().flat_map(|word| word.to_ne_bytes()).collect();
            for part in [name, content] {
                note.extend(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let notes =
            [note(5, b"GNU\0", &[1; 16]), note(3, b"Go\0", &[2; 3]), note(3, b"GNU\0", &[7; 20])].concat();
        assert_eq!(build_id(&notes), [7; 20]);
        assert!((0..notes.len()).all(|end| build_id(&notes[..end]).is_empty()));
        assert!(build_id(&[0xff; 64]).is_empty());
    }

    #[test]
    fn another_class_or_byte_order_is_no_program_of_this_machine() {
        let mut file = own();
        for (at, value) in [(0, b'E'), (4, 1), (5, 3 - file[5])] {
            let before = std::mem::replace(&mut file[at], value);
            assert!(segments_of_file(&file).is_none() && sections(&file).is_none(), "byte {at}");
            file[at] = before;
        }
    }

    #[test]
    fn a_table_behind_the_end_of_the_file_is_none() {
        let mut file = own();
        for at in [0x20, 0x28] {
            file[at..at + 8].copy_from_slice(&(u64::MAX - 3).to_ne_bytes());
        }
        assert!(segments_of_file(&file).is_none() && sections(&file).is_none());
    }
}
