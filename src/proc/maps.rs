//! Maps addresses of a process to files: `/proc/PID/maps`.

use std::collections::HashMap;
use std::fs;
use std::io;

use crate::sys::Pid;
use crate::sys::wire::wire_struct;

wire_struct! {
    /// A position in a program or library, the same in every process that maps it.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    pub(crate) struct Address {
        /// The path of the mapped file.
        pub(crate) module: String,
        /// Offset in bytes from the beginning of the file's first mapping.
        pub(crate) offset: u64,
    }
}

/// A snapshot of the mappings of one process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Maps {
    ranges: Vec<Range>,
    modules: Vec<Module>,
    /// First and last address of each mapping that is not shared and has no file, so no other process can
    /// have it mapped.
    private: Vec<(u64, u64)>,
}

#[derive(Clone, Debug)]
struct Range {
    start: u64,
    end: u64,
    module: usize,
}

#[derive(Clone, Debug)]
struct Module {
    path: String,
    base: u64,
    ino: u64,
}

impl Maps {
    /// Reads the mappings of `pid`.
    ///
    /// # Errors
    ///
    /// `NotFound` if the process is gone, `PermissionDenied` if it may not be read.
    pub(crate) fn read(pid: Pid) -> io::Result<Maps> {
        Ok(Maps::parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/maps"))?)))
    }

    /// Parses the lines of the file (proc_pid_maps(5)). Lines that do not parse are skipped.
    pub(crate) fn parse(text: &str) -> Maps {
        let mut maps = Maps::default();
        let mut known: HashMap<&str, usize> = HashMap::new();
        for line in text.lines() {
            let Some(Line { start, end, shared, ino, path }) = Line::parse(line) else { continue };
            if !shared && !path.starts_with('/') {
                maps.private.push((start, end));
            }
            let last = maps.ranges.last().filter(|last| last.end == start).map(|last| last.module);
            let module = match (path, last) {
                // The zero-initialised statics of a module are an anonymous mapping right behind it.
                ("", Some(module)) => module,
                // Kernel code that is mapped into the process: signal handlers may return there.
                (path, _) if path.starts_with('/') || path == VDSO => {
                    *known.entry(path).or_insert_with(|| {
                        maps.modules.push(Module { path: path.to_owned(), base: start, ino });
                        maps.modules.len() - 1
                    })
                }
                _ => continue,
            };
            maps.ranges.push(Range { start, end, module });
        }
        maps
    }

    /// The address of a position of a module in this process.
    #[cfg(feature = "sites")]
    pub(crate) fn address_of(&self, address: &Address) -> Option<u64> {
        self.base(&address.module)?.checked_add(address.offset)
    }

    /// Where a module begins in this process.
    #[cfg(feature = "sites")]
    pub(crate) fn base(&self, module: &str) -> Option<u64> {
        self.modules.iter().find(|known| known.path == module).map(|module| module.base)
    }

    /// The inode of a module's file.
    pub(crate) fn inode(&self, module: &str) -> Option<u64> {
        self.modules.iter().find(|known| known.path == module).map(|module| module.ino)
    }

    /// Whether the memory at this address is mapped by this process alone.
    pub(crate) fn is_private(&self, address: u64) -> bool {
        self.private.iter().any(|(start, end)| (*start..*end).contains(&address))
    }

    /// Finds the module that an address lies in.
    pub(crate) fn locate(&self, address: u64) -> Option<Address> {
        let at = self.ranges.partition_point(|range| range.end <= address);
        let range = self.ranges.get(at).filter(|range| range.start <= address)?;
        let module = &self.modules[range.module];
        Some(Address { module: module.path.clone(), offset: address - module.base })
    }
}

/// The name of the code that the kernel maps into each process (vdso(7)).
pub(crate) const VDSO: &str = "[vdso]";

/// One line of the file.
struct Line<'a> {
    start: u64,
    end: u64,
    shared: bool,
    ino: u64,
    /// Empty for anonymous memory.
    path: &'a str,
}

impl Line<'_> {
    fn parse(line: &str) -> Option<Line<'_>> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let shared = rest.trim_start_matches(' ').as_bytes().get(3) == Some(&b's');
        // Permissions, offset, device and inode; the path is padded with spaces.
        let (mut rest, mut ino) = (rest, 0);
        for _ in 0..4 {
            let (word, behind) = rest.trim_start_matches(' ').split_once(' ').unwrap_or((rest, ""));
            ino = word.parse().unwrap_or(0);
            rest = behind;
        }
        Some(Line { start, end, shared, ino, path: rest.trim_start_matches(' ') })
    }
}

#[cfg(test)]
mod tests {
    use super::{Address, Maps};

    #[test]
    fn zeroed_statics_belong_to_the_module_before_them() {
        let maps = Maps::parse(
            "55d0a000-55d0b000 r--p 00000000 fe:00 12 /bin/a program\n\
             55d0b000-55d0c000 rw-p 00001000 fe:00 12                 /bin/a program\n\
             55d0c000-55d0d000 rw-p 00000000 00:00 0 \n\
             55f00000-55f01000 rw-p 00000000 00:00 0                  [heap]\n\
             7f000000-7f001000 r--p 00000000 fe:00 13                 /lib/libc.so.6\n",
        );
        let address = |module: &str, offset| Some(Address { module: module.to_owned(), offset });
        assert_eq!(maps.locate(0x55d0a010), address("/bin/a program", 0x10));
        assert_eq!(maps.locate(0x55d0c010), address("/bin/a program", 0x2010));
        assert_eq!(maps.locate(0x55f00010), None);
        assert_eq!(maps.locate(0x7f000020), address("/lib/libc.so.6", 0x20));
        assert_eq!((maps.inode("/bin/a program"), maps.inode("/lib/libc.so.6")), (Some(12), Some(13)));
        assert_eq!(maps.locate(0x7f001000), None);
        assert_eq!(maps.locate(0), None);
    }

    #[test]
    fn memory_is_private_if_it_is_of_no_file() {
        let maps = Maps::parse(
            "7f000000-7f001000 rw-p 00000000 00:00 0 \n\
             7f001000-7f002000 rw-s 00000000 00:01 4 /dev/zero (deleted)\n\
             7f002000-7f003000 r--p 00000000 00:01 5 /memfd:x (deleted)\n",
        );
        assert!(maps.is_private(0x7f000010));
        assert!(!maps.is_private(0x7f001010));
        assert!(!maps.is_private(0x7f002010));
        assert!(!maps.is_private(0x7f003000));
    }
}
