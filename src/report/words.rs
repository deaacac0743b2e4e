//! Numbers, lists and names in words.

use std::time::Duration;

use nix::libc;

use super::escape;
use crate::guard::facts::{Facts, Process};
use crate::guard::report_page::Body;
use crate::proc::fds::end;
use crate::proc::sockets::{PeerUnknown, Socket};
use crate::recorder::call_site::SourceLocation;

/// The end of a pipe that an access mode stands for, before the word "end".
pub(super) fn pipe_end(access: i32) -> &'static str {
    // A FIFO that was opened so.
    if access == libc::O_RDWR { "read and write" } else { end(access) }
}

/// Replaces the words for a test in a sentence by those for a command, if the subject is one. Quoted text is
/// unchanged.
pub(super) fn for_subject(facts: &Facts, sentence: String) -> String {
    let replace: fn(&str) -> String = match &facts.body {
        Body::OfCommand => of_command,
        Body::Inspected => of_inspected,
        _ => return sentence,
    };
    let mut out = String::with_capacity(sentence.len());
    for (number, part) in sentence.split('`').enumerate() {
        if number > 0 {
            out.push('`');
        }
        match number % 2 {
            0 => out += &replace(part),
            _ => out += part,
        }
    }
    out
}

fn of_command(words: &str) -> String {
    const WORDS: [(&str, &str); 5] = [
        ("the test binary", "the program"),
        ("the test process", "the command"),
        ("the test", "the command"),
        ("this test", "this command"),
        ("the body", "the command"),
    ];
    WORDS.iter().fold(words.to_owned(), |words, (of_test, of_command)| words.replace(of_test, of_command))
}

fn of_inspected(words: &str) -> String {
    const WORDS: [(&str, &str); 4] = [
        ("outside of the test", "not inspected"),
        ("of the test", "of those that are inspected"),
        ("in the test itself", "in the process itself"),
        ("the test itself", "the process itself"),
    ];
    WORDS.iter().fold(words.to_owned(), |words, (of_test, of_inspected)| words.replace(of_test, of_inspected))
}

/// What is said of a process that is not among those that the facts are of, behind its name.
pub(super) fn not_among(facts: &Facts) -> &'static str {
    match &facts.body {
        Body::OfCommand => "outside of the command",
        Body::Inspected => "not inspected",
        _ => "outside of the test",
    }
}

/// `only `, unless a process outside of the test, which cannot be seen, may have the same file.
pub(super) fn only(facts: &Facts) -> &'static str {
    if facts.outside.is_unseen { "" } else { "only " }
}

/// `1 process`, `2 processes`, `3 children`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    match (count, noun) {
        (1, _) => format!("1 {noun}"),
        (_, "child") => format!("{count} children"),
        (_, noun) if noun.ends_with("process") => format!("{count} {noun}es"),
        _ => format!("{count} {noun}s"),
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn enumerate(words: &[String]) -> String {
    match words.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => words.concat(),
    }
}

/// `3`, `3 and 4`, `3, 4 and 5`.
pub(super) fn list(numbers: &[i32]) -> String {
    /// The most that are written.
    const MOST: usize = 12;
    let mut words: Vec<String> = numbers.iter().take(MOST).map(i32::to_string).collect();
    if numbers.len() > MOST {
        words.push(format!("{} more", numbers.len() - MOST));
    }
    enumerate(&words)
}

/// `fd 3`, `fds 3 and 4`.
pub(super) fn fds(numbers: &[i32]) -> String {
    format!("{} {}", if numbers.len() == 1 { "fd" } else { "fds" }, list(numbers))
}

/// Why the peer of a socket is not known.
pub(super) fn unknown_peer(why: PeerUnknown) -> String {
    let why = match why {
        PeerUnknown::OtherKind => "only those of unix and TCP sockets are looked for",
        PeerUnknown::NoDiagnostics { errno } => {
            let error = errno
                .map_or_else(String::new, |errno| format!(" ({})", std::io::Error::from_raw_os_error(errno)));
            return format!("the kernel has no sock_diag{error}");
        }
        PeerUnknown::OtherNamespace => "it is in another network namespace",
        PeerUnknown::NotReported => "the kernel does not report it (CONFIG_UNIX_DIAG)",
        PeerUnknown::NotAccepted => "the connection is not accepted, or closed there",
        PeerUnknown::OtherMachine => "the connection leads to another machine or network namespace",
    };
    why.to_owned()
}

/// `SIGSEGV`, `SIGRTMIN+3`.
pub(crate) fn signal_word(signal: i32) -> String {
    // glibc reserves 32 and 33, so real-time signals begin at 34.
    const FIRST_REAL_TIME: i32 = 34;
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => known.to_string(),
        Err(_) if signal == FIRST_REAL_TIME => "SIGRTMIN".to_owned(),
        Err(_) if signal > FIRST_REAL_TIME => format!("SIGRTMIN+{}", signal - FIRST_REAL_TIME),
        Err(_) => format!("signal {signal}"),
    }
}

/// `SIGSEGV (11)`, `SIGRTMIN+3 (37)`.
pub(crate) fn signal_name(signal: i32) -> String {
    match signal_word(signal) {
        word if word.starts_with("SIG") => format!("{word} ({signal})"),
        word => word,
    }
}

/// A process with its program: ``17 `sleep 100` ``.
pub(super) fn process_name(facts: &Facts, pid: i32) -> String {
    match process(facts, pid) {
        Some(process) => format!("{pid} `{}`", escape::command(process)),
        None => pid.to_string(),
    }
}

pub(super) fn process(facts: &Facts, pid: i32) -> Option<&Process> {
    facts.processes.iter().find(|process| process.pid == pid)
}

/// How full a pipe is: `65536 of 65536 bytes queued`.
pub(super) fn queue(facts: &Facts, pipe: u64) -> Option<String> {
    let state = facts.pipe(pipe)?;
    Some(format!("{} of {} bytes queued", state.queued?, state.capacity?))
}

/// The same in brackets, with a leading space; empty if unknown.
pub(super) fn queue_in_brackets(facts: &Facts, pipe: u64) -> String {
    queue(facts, pipe).map_or_else(String::new, |queue| format!(" ({queue})"))
}

/// `a unix stream socket`; `a socket` if its type is unknown.
pub(super) fn a_socket(facts: &Facts, inode: u64) -> String {
    a_kind_of_socket(&facts.socket(inode).map(Socket::what).unwrap_or_default())
}

/// The address of a socket in brackets, with a leading space; empty if it has none.
pub(super) fn address(facts: &Facts, inode: u64) -> String {
    match and_address(facts, inode).strip_prefix(", ") {
        Some(address) => format!(" ({address})"),
        None => String::new(),
    }
}

/// The address of a socket after a comma; empty if it has none.
pub(super) fn and_address(facts: &Facts, inode: u64) -> String {
    let socket = facts.socket(inode);
    let name = socket.and_then(|socket| socket.name.as_deref().or(socket.local.as_deref()));
    name.map_or_else(String::new, |name| format!(", {}", escape::text(name)))
}

/// `a unix stream socket`.
pub(super) fn a_kind_of_socket(kind: &str) -> String {
    let article = if kind.starts_with('I') { "an" } else { "a" };
    format!("{article} {kind} socket").replace("  ", " ")
}

/// ` (WORDS PLACE)`, or nothing.
pub(super) fn in_brackets(words: &str, place: Option<&SourceLocation>) -> String {
    place.map_or_else(String::new, |place| format!(" ({words}{place})"))
}

/// `200 ms`, `10 s`, `1.5 s`.
pub(super) fn duration(time: Duration) -> String {
    match time.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        _ => format!("{} s", time.as_secs_f64()),
    }
}

/// `0.35 s`, `61 s`: for a measured time.
pub(super) fn rough(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.2} s", time.as_secs_f64()),
        seconds => format!("{seconds} s"),
    }
}

/// `0.3 s`, `61.0 s`, `9.5 h`, `3.0 days`: for a process that may have been forgotten.
pub(super) fn long(time: Duration) -> String {
    const HOUR: f64 = 3600.0;
    const DAY: f64 = 24.0 * HOUR;
    match time.as_secs_f64() {
        seconds if seconds >= 2.0 * DAY => format!("{:.1} days", seconds / DAY),
        seconds if seconds >= HOUR => format!("{:.1} h", seconds / HOUR),
        seconds => format!("{seconds:.1} s"),
    }
}

/// The type and the name of a function: `Mutex<T>::lock`, also of `<a::Mutex<T> as Trait>::lock`.
pub(super) fn brief(path: &str) -> String {
    if let Some((of, name)) = path.strip_prefix('<').and_then(|rest| rest.rsplit_once(">::")) {
        let of = of.split(" as ").next().unwrap_or(of);
        let head = of.split('<').next().unwrap_or(of);
        let begin = head.rfind("::").map_or(0, |at| at + 2);
        return format!("{}::{name}", of.get(begin..).unwrap_or(of));
    }
    // A `::` within angle brackets does not separate a function from its type.
    let mut depth = 0;
    let parts: Vec<usize> = path
        .char_indices()
        .filter(|(at, c)| {
            depth += i32::from(*c == '<') - i32::from(*c == '>');
            depth == 0 && path[*at..].starts_with("::")
        })
        .map(|(at, _)| at)
        .collect();
    match parts[..] {
        [.., at, _] => path[at + 2..].to_owned(),
        _ => path.to_owned(),
    }
}

/// The most bytes of one test's output that a file has, from its end: tools read the whole file.
#[cfg(any(feature = "json", feature = "junit"))]
const OUTPUT: usize = 256 << 10;

/// The end of an output, which is more useful than its beginning.
#[cfg(any(feature = "json", feature = "junit"))]
pub(super) fn end_of_output(output: &str) -> &str {
    let mut from = output.len().saturating_sub(OUTPUT);
    while !output.is_char_boundary(from) {
        from += 1;
    }
    &output[from..]
}

#[cfg(test)]
mod tests {
    use super::{brief, for_subject};
    use crate::guard::facts::Facts;
    use crate::guard::report_page::Body;

    #[test]
    fn a_command_is_called_so_and_what_is_quoted_stays() {
        let sentence = "pid 3 `cat the test` was still running when the test ended: the test's.";
        let of_command = "pid 3 `cat the test` was still running when the command ended: the command's.";
        let mut facts = Facts::unguarded(crate::guard::failure::GuardFailure::ReadExitStatus {});
        assert_eq!(for_subject(&facts, sentence.to_owned()), sentence);
        facts.body = Body::OfCommand;
        assert_eq!(for_subject(&facts, sentence.to_owned()), of_command);
    }

    #[test]
    #[cfg(any(feature = "json", feature = "junit"))]
    fn of_a_long_output_the_end_is_kept() {
        use super::{OUTPUT, end_of_output};
        let long = format!("begin{}end", "é".repeat(OUTPUT));
        assert!(end_of_output(&long).len() <= OUTPUT && end_of_output(&long).ends_with("éend"));
        assert_eq!(end_of_output("short"), "short");
    }

    #[test]
    fn a_function_is_named_with_its_type() {
        for (path, expected) in [
            ("std::sync::poison::mutex::Mutex<T>::lock", "Mutex<T>::lock"),
            ("<std::sync::barrier::Barrier>::wait", "Barrier::wait"),
            (
                "<std::sync::lazy_lock::LazyLock<T,F> as core::ops::deref::Deref>::deref",
                "LazyLock<T,F>::deref",
            ),
            ("<a::B<c::D> as e::F<g::H>>::i", "B<c::D>::i"),
            ("malloc", "malloc"),
            ("<", "<"),
        ] {
            assert_eq!(brief(path), expected);
        }
    }
}
