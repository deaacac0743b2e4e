//! Which file an address of a process belongs to: `/proc/PID/maps`.

use std::collections::HashMap;
use std::fs;
use std::io;

use crate::sys::Pid;
use crate::wire::wire_struct;

wire_struct! {
    /// A place in a program or a library, the same in every process that has mapped it.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    pub(crate) struct Address {
        /// The path of the mapped file.
        pub(crate) module: String,
        /// Bytes from the beginning of its first mapping.
        pub(crate) offset: u64,
    }
}

/// The mappings of one process at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Maps {
    ranges: Vec<Range>,
    modules: Vec<Module>,
    /// Beginning and end of the memory that no other process can have mapped: it is of no file.
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

    /// Parses the lines of the file (proc_pid_maps(5)). Lines that cannot be read are left out.
    pub(crate) fn parse(text: &str) -> Maps {
        let mut maps = Maps::default();
        let mut known: HashMap<&str, usize> = HashMap::new();
        for line in text.lines() {
            let Some((start, end, shared, path)) = parse_line(line) else { continue };
            if !shared && !path.starts_with('/') {
                maps.private.push((start, end));
            }
            let last = maps.ranges.last().filter(|last| last.end == start).map(|last| last.module);
            let module = match (path, last) {
                // The zeroed statics of a module lie in an anonymous mapping right behind it.
                ("", Some(module)) => module,
                (path, _) if path.starts_with('/') => *known.entry(path).or_insert_with(|| {
                    maps.modules.push(Module { path: path.to_owned(), base: start });
                    maps.modules.len() - 1
                }),
                _ => continue,
            };
            maps.ranges.push(Range { start, end, module });
        }
        maps
    }

    /// Finds where a place of a module lies in this process.
    #[cfg(feature = "sites")]
    pub(crate) fn address_of(&self, address: &Address) -> Option<u64> {
        self.base(&address.module)?.checked_add(address.offset)
    }

    /// Where a module begins in this process.
    #[cfg(feature = "sites")]
    pub(crate) fn base(&self, module: &str) -> Option<u64> {
        self.modules.iter().find(|known| known.path == module).map(|module| module.base)
    }

    /// Whether no other process can have mapped the memory at this address.
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

/// Start, end, sharing and path of one line; the path is empty for anonymous memory.
fn parse_line(line: &str) -> Option<(u64, u64, bool, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let shared = rest.trim_start_matches(' ').as_bytes().get(3) == Some(&b's');
    // Permissions, offset, device and inode stand between; the path is padded with spaces.
    let mut rest = rest;
    for _ in 0..4 {
        rest = rest.trim_start_matches(' ').split_once(' ').map_or("", |(_, rest)| rest);
    }
    Some((start, end, shared, rest.trim_start_matches(' ')))
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
