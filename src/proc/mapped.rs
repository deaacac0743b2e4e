//! Identifies the file behind a mapping, so that it can be read after the process is gone and is not confused
//! with a later file of the same path.

#[cfg(feature = "sites")]
use std::borrow::Cow;
#[cfg(feature = "sites")]
use std::fs::{self, File};
#[cfg(feature = "sites")]
use std::io::Read;
#[cfg(feature = "sites")]
use std::os::unix::fs::MetadataExt;

#[cfg(feature = "sites")]
use super::elf::{self, SegmentKind};
#[cfg(feature = "sites")]
use super::maps::Maps;
use crate::sys::wire::wire_struct;
#[cfg(feature = "sites")]
use crate::sys::{self, Pid};

wire_struct! {
    /// A program or library that a process other than a fork of the test has mapped.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct MappedFile {
        /// The path as `/proc/PID/maps` prints it.
        pub(crate) path: String,
        /// The path as this process sees it, through the root directory of the other one.
        pub(crate) found_at: String,
        /// File system and inode as stat(2) returns them; 0 if the file has been deleted.
        pub(crate) device: u64,
        pub(crate) inode: u64,
        /// Its build id; empty if it has none.
        pub(crate) build_id: Vec<u8>,
    }
}

/// Size limit, in bytes. Larger files are not read, so their functions have no names.
#[cfg(feature = "sites")]
const MOST: u64 = 256 << 20;
/// The most bytes of a module's notes that are read.
#[cfg(feature = "sites")]
const NOTES: u64 = 64 << 10;

#[cfg(feature = "sites")]
impl MappedFile {
    /// Finds the file that a process has mapped under this path. `None` if there is none, or if the process
    /// is gone.
    pub(crate) fn of(pid: Pid, module: &str, maps: &Maps) -> Option<MappedFile> {
        let build_id = build_id(pid, maps.base(module)?).unwrap_or_default();
        let root = fs::read_link(format!("/proc/{pid}/root")).ok();
        let root =
            root.and_then(|root| Some(root.to_str()?.trim_end_matches('/').to_owned())).unwrap_or_default();
        // The path may lead to another file by now.
        let file = fs::metadata(format!("/proc/{pid}/root{module}"));
        let file = file.ok().filter(|file| Some(file.ino()) == maps.inode(module));
        let (device, inode) = file.map_or((0, 0), |file| (file.dev(), file.ino()));
        Some(MappedFile {
            path: module.to_owned(),
            found_at: format!("{root}{module}"),
            device,
            inode,
            build_id,
        })
    }

    /// Reads the file if it is still the one that was mapped.
    ///
    /// It is read and not mapped: once the process is gone, the kernel no longer forbids writing to the file.
    pub(crate) fn read(&self) -> Option<&'static [u8]> {
        let file = File::open(&self.found_at).ok()?;
        let known = file.metadata().ok().filter(|file| file.is_file() && file.len() <= MOST)?;
        let is_same = self.inode != 0 && (known.dev(), known.ino()) == (self.device, self.inode);
        let mut bytes = Vec::with_capacity(usize::try_from(known.len()).ok()?);
        file.take(MOST).read_to_end(&mut bytes).ok()?;
        // A file that is overwritten in place keeps its inode.
        let has_id = !self.build_id.is_empty();
        if has_id && build_id_of_file(&bytes) != Some(&self.build_id) || !has_id && !is_same {
            return None;
        }
        Some(bytes.leak())
    }
}

/// The build id of a whole file; `None` if it has none.
#[cfg(feature = "sites")]
pub(crate) fn build_id_of_file(file: &[u8]) -> Option<&[u8]> {
    let sections = elf::sections(file)?;
    let notes = sections.get(".note.gnu.build-id").copied().unwrap_or_default();
    Some(elf::build_id(notes)).filter(|id| !id.is_empty())
}

/// The build id of the module that a process has mapped at `base`.
#[cfg(feature = "sites")]
fn build_id(pid: Pid, base: u64) -> Option<Vec<u8>> {
    let segments = elf::segments(&sys::read_memory(pid, base, elf::HEADER)?, |offset, size| {
        sys::read_memory(pid, base.checked_add(offset)?, size).map(Cow::Owned)
    })?;
    let bias = base.wrapping_sub(elf::base(&segments)?);
    let notes = segments.iter().filter(|segment| segment.kind == SegmentKind::Note);
    notes
        .filter_map(|segment| {
            let size = usize::try_from(segment.size.min(NOTES)).ok()?;
            let notes = sys::read_memory(pid, bias.wrapping_add(segment.address), size)?;
            Some(elf::build_id(&notes).to_vec())
        })
        .find(|id| !id.is_empty())
}

#[cfg(all(test, feature = "sites"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::{MappedFile, Maps, build_id_of_file};

    /// The running program, as another process would see it.
    fn own() -> MappedFile {
        let pid = std::process::id() as i32;
        let path = std::env::current_exe().unwrap();
        MappedFile::of(pid, path.to_str().unwrap(), &Maps::read(pid).unwrap()).unwrap()
    }

    #[test]
    fn a_program_is_found_and_known_by_its_identity() {
        let own = own();
        let bytes = own.read().unwrap();
        assert_eq!(build_id_of_file(bytes).unwrap_or_default(), own.build_id);
        // Only the build id matches, as on a file system that shows other device numbers.
        let shifted = MappedFile { device: 0, inode: 0, ..own.clone() };
        assert_eq!(shifted.read().is_some(), !own.build_id.is_empty());
        let other = MappedFile { build_id: vec![1; 20], ..own.clone() };
        assert!(other.read().is_none());
        let unnamed = MappedFile { inode: 0, build_id: Vec::new(), ..own };
        assert!(unnamed.read().is_none());
    }

    #[test]
    fn another_file_of_the_same_path_is_not_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        std::fs::copy("/bin/sh", &path).unwrap();
        let own = own();
        let replaced = MappedFile { found_at: path.to_str().unwrap().to_owned(), ..own };
        assert!(replaced.read().is_none());
    }
}
