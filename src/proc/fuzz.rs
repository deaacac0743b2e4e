//! Property tests of the parsers, with valid and with invalid input.
//!
//! The input comes from processes that can give themselves any name and can exit while they are read. A
//! parser returns the right value or nothing; it never panics.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use proptest::prelude::*;

#[cfg(feature = "sites")]
use super::elf;
use super::fds;
use super::maps::Maps;
use super::process::{self, Stat};
use super::sockets;
use super::waits;
use crate::sys::Pid;

/// A process name: any 15 bytes but NUL.
fn comm() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(b')'), Just(b'('), Just(b' '), Just(b'\n'), 1..=255u8], 0..=15)
}

/// A line that is truncated or has changed bytes.
fn damaged(line: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (
        line,
        any::<prop::sample::Index>(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    )
        .prop_map(|(mut line, cut, changes)| {
            if !line.is_empty() {
                for (at, byte) in changes {
                    let at = at.index(line.len());
                    line[at] = byte;
                }
                line.truncate(cut.index(line.len()) + 1);
            }
            line
        })
}

fn stat_line() -> impl Strategy<Value = (Pid, Vec<u8>, char, Pid, u64, Vec<u8>)> {
    let state = prop::sample::select(vec!['R', 'S', 'D', 'Z', 'T', 't', 'X', 'I']);
    (1..=4_194_304, comm(), state, 0..=4_194_304, any::<u64>()).prop_map(
        |(pid, comm, state, parent, start)| {
            let mut line = format!("{pid} (").into_bytes();
            line.extend(&comm);
            // Fields 4 to 52 of proc_pid_stat(5).
            let rest = format!(
                ") {state} {parent} 7 8 0 -1 4194368 1 2 3 4 5 6 7 8 20 0 3 0 {start} 100 200 18446744073709551615 \
                 1 2 3 4 5 0 0 0 0 0 0 0 17 1 0 0 0 0 0 9 10 11 12 13 14 0\n"
            );
            line.extend(rest.into_bytes());
            (pid, comm, state, parent, start, line)
        },
    )
}

proptest! {
    #[test]
    fn a_stat_is_read_whatever_the_name((pid, comm, state, parent, start, line) in stat_line()) {
        let stat = Stat::parse(&line).unwrap();
        prop_assert_eq!((stat.pid, stat.state, stat.ppid, stat.start_ticks), (pid, state, parent, start));
        prop_assert_eq!(stat.comm, String::from_utf8_lossy(&comm).into_owned());
        prop_assert_eq!((stat.threads, stat.pgid, stat.sid), (3, 7, 8));
        prop_assert_eq!(process::argv(&line), Some((12, 13)));
        prop_assert!(stat.forked_without_exec && !stat.is_kernel_thread);
    }

    #[test]
    fn a_damaged_stat_is_no_panic(line in damaged(stat_line().prop_map(|(.., line)| line))) {
        let _ = (Stat::parse(&line), process::argv(&line));
    }

    #[test]
    fn arguments_are_what_was_given(words in prop::collection::vec("[^\0]{1,20}", 1..6)) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
        prop_assert_eq!(process::arguments(&bytes), words);
    }

    #[test]
    fn any_bytes_are_arguments(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        process::arguments(&bytes);
    }

    #[test]
    fn any_status_has_some_signals(set in any::<u64>(), junk in ".*") {
        let caught: Vec<i32> = process::caught(&format!("Name:\t{junk}\nSigCgt:\t{set:016x}\n")).collect();
        prop_assert!(caught.iter().all(|signal| set >> (signal - 1) & 1 == 1));
        let _ = process::caught(&junk).count();
    }

    #[test]
    fn a_syscall_is_read_and_junk_is_not_one(number in 0..600i64, arguments in any::<[u64; 6]>(), junk in ".*") {
        let words: Vec<String> = arguments.iter().map(|argument| format!("{argument:#x}")).collect();
        let line = format!("{number} {} 0x7ffc 0x7f10\n", words.join(" "));
        prop_assert_eq!(waits::parsed(&line), Some((number, arguments)));
        let _ = waits::parsed(&junk);
        let _ = waits::fingerprint(&junk, &junk);
        waits::parse_interests(&junk);
    }

    #[test]
    fn a_mapping_holds_its_addresses_and_no_other(
        pages in prop::collection::vec((1..1000u64, "[^\n]{0,30}"), 1..20),
        address in any::<u64>(),
    ) {
        let (mut text, mut at) = (String::new(), 0x5000_0000u64);
        let mut mapped = Vec::new();
        for (size, path) in &pages {
            let end = at + size * 4096;
            text += &format!("{at:x}-{end:x} r--p 00000000 fe:00 12                 /{path}\n");
            mapped.push((at, end));
            at = end + 4096;
        }
        let maps = Maps::parse(&text);
        for (start, end) in &mapped {
            prop_assert!(maps.locate(*start).is_some() && maps.locate(end - 1).is_some());
            prop_assert!(maps.locate(*end).is_none());
        }
        let inside = mapped.iter().any(|(start, end)| (*start..*end).contains(&address));
        prop_assert_eq!(maps.locate(address).is_some(), inside);
    }

    #[test]
    fn damaged_maps_are_no_panic(text in "([0-9a-f]{0,17}-?[0-9a-f]{0,17} ?[rwxps-]{0,5} ?.{0,40}\n){0,8}") {
        let maps = Maps::parse(&text);
        let _ = maps.locate(0);
        let _ = maps.locate(u64::MAX);
        maps.is_private(u64::MAX);
    }

    #[test]
    fn any_fdinfo_is_an_fd(fd in any::<i32>(), target in ".*", info in ".*", flags in any::<u32>()) {
        let _ = fds::parse(fd, target.clone(), &info);
        let known = fds::parse(fd, target, &format!("pos:\t0\nflags:\t{:o}\n", flags >> 1));
        let kept = nix::libc::O_ACCMODE | nix::libc::O_PATH;
        prop_assert_eq!(known.access, (flags >> 1) as i32 & kept);
        // An fd with `O_PATH` has neither end open.
        prop_assert_eq!(known.is_path(), !known.reads() && !known.writes());
    }

    #[test]
    fn any_bytes_are_no_socket_or_some(
        ino in any::<u32>(),
        attributes in prop::collection::vec((any::<u16>(), 0..7u16, prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        junk in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        // `struct nlmsghdr` and `struct unix_diag_msg`, and attributes with wrong lengths.
        let mut rest = Vec::new();
        for (length, kind, value) in &attributes {
            let length = if length % 2 == 0 { value.len() as u16 + 4 } else { *length };
            rest.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            rest.extend(value);
        }
        let mut message = (32 + rest.len() as u32).to_ne_bytes().to_vec();
        message.extend([&20u16.to_ne_bytes()[..], &[0; 10], &[1, 1, 10, 0], &ino.to_ne_bytes(), &[0; 8]].concat());
        message.extend(rest);
        let _ = sockets::parse(&message, ino);
        prop_assert!(sockets::parse(&message, !ino).is_none());
        message.truncate(junk.len());
        let _ = sockets::parse(&message, ino);
        let _ = sockets::parse(&junk, ino);
        sockets::other_end_of(&String::from_utf8_lossy(&junk), u64::from(ino));
    }

    #[cfg(feature = "sites")]
    #[test]
    fn any_file_has_some_headers(bytes in prop::collection::vec(any::<u8>(), 0..400), is_elf in any::<bool>()) {
        let mut bytes = bytes;
        if is_elf && bytes.len() > 6 {
            bytes[..6].copy_from_slice(&elf::MAGIC);
        }
        if let Some(segments) = elf::segments_of_file(&bytes) {
            elf::base(&segments);
        }
        let _ = elf::sections(&bytes);
    }

    #[cfg(feature = "sites")]
    #[test]
    fn a_damaged_program_is_no_panic(
        file in damaged(Just(elf_file())),
        changes in prop::collection::vec((0..elf::HEADER, any::<u8>()), 1..8),
    ) {
        let _ = (elf::segments_of_file(&file), elf::sections(&file));
        // Damages only the header, so that the tables are looked for in the wrong place.
        let mut file = elf_file();
        prop_assert!(elf::sections(&file).is_some_and(|sections| sections.contains_key("abc")));
        for (at, value) in changes {
            file[at] = value;
        }
        let _ = (elf::segments_of_file(&file), elf::sections(&file));
    }
}

/// A small ELF file: one segment, and one section `abc`, which holds the names.
#[cfg(feature = "sites")]
fn elf_file() -> Vec<u8> {
    let header = elf::HEADER as u64;
    let mut file = vec![0; elf::HEADER];
    file[..6].copy_from_slice(&elf::MAGIC);
    // The program headers, the section headers behind them, and the sizes and numbers of both.
    file[0x20..0x28].copy_from_slice(&header.to_ne_bytes());
    file[0x28..0x30].copy_from_slice(&(header + 56).to_ne_bytes());
    for (at, value) in [(0x36, 56_u16), (0x38, 1), (0x3a, 64), (0x3c, 1), (0x3e, 0)] {
        file[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    // PT_LOAD at 0x1234.
    file.extend([1, 0, 0x1234, 0, 0, 0x100, 0].map(u64::to_ne_bytes).concat());
    // Name 0, SHT_STRTAB, no flags, no address, behind the headers, 4 bytes.
    file.extend([3 << 32, 0, 0, header + 56 + 64, 4, 0, 0, 0].map(u64::to_ne_bytes).concat());
    file.extend(b"abc\0");
    file
}
