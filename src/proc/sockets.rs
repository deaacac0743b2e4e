//! Asks the kernel about sockets.
//!
//! `/proc` shows only a socket's inode. Type and timeouts are read with getsockopt(2) on a duplicate of the
//! fd. The peer of a unix socket is read over netlink (sock_diag(7)), which needs no privilege and covers the
//! process's own network namespace. Both ends of a TCP connection within one namespace are in
//! `/proc/PID/net/tcp` (proc_pid_net(5)).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix;
use std::os::unix::net::UnixStream;

use nix::libc;

use crate::sys::wire::{wire_enum, wire_struct};
use crate::sys::{self, Pid};

wire_enum! {
    /// The peer of a socket.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Peer {
        /// The socket with this inode.
        Socket { ino: u64 },
        /// A connection that is not accepted yet, in the queue of a listening socket.
        Queue { ino: u64 },
        /// No peer: never connected, or closed.
        None,
        /// The peer is unknown, and the reason.
        Unknown { why: PeerUnknown },
    }
}

wire_enum! {
    /// Why the peer of a socket is not known.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum PeerUnknown {
        /// It is neither a unix nor a TCP socket.
        OtherKind,
        /// sock_diag(7) is not available: the errno of the attempt, if there is one.
        NoDiagnostics { errno: Option<i32> },
        /// The socket is in another network namespace.
        OtherNamespace,
        /// The kernel does not report unix sockets (`CONFIG_UNIX_DIAG`).
        NotReported,
        /// The connection has not been accepted, or is closed at the other end.
        NotAccepted,
        /// The connection leads to another machine or network namespace.
        OtherMachine,
    }
}

wire_struct! {
    /// A snapshot of a socket.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Socket {
        pub(crate) ino: u64,
        /// `AF_UNIX`, `AF_INET`, ..; 0 if unknown.
        pub(crate) domain: i32,
        /// `SOCK_STREAM`, ..; 0 if unknown.
        pub(crate) kind: i32,
        pub(crate) listens: bool,
        /// Whether reads and writes are known to have no timeout (`SO_RCVTIMEO`, `SO_SNDTIMEO`).
        pub(crate) reads_forever: bool,
        pub(crate) writes_forever: bool,
        pub(crate) peer: Peer,
        /// The address that a unix socket is bound to.
        pub(crate) name: Option<String>,
        /// The local address of an IP socket, with the port: `127.0.0.1:80`.
        pub(crate) local: Option<String>,
        /// The address that it is connected to: with the port, or that of a named unix socket.
        pub(crate) remote: Option<String>,
        /// The listening socket that accepted this connection, if it still exists.
        pub(crate) listener: Option<u64>,
        /// Bytes in the receive queue, or connections that wait to be accepted.
        pub(crate) queued: Option<u32>,
        /// Whether poll(2) would not report it as writable.
        pub(crate) is_full: bool,
    }
}

impl Socket {
    pub(crate) fn is_unix(&self) -> bool {
        self.domain == libc::AF_UNIX
    }

    pub(crate) fn is_datagram(&self) -> bool {
        self.kind == libc::SOCK_DGRAM
    }

    /// The inodes of the socket and of its peer.
    pub(crate) fn ends(&self) -> Vec<u64> {
        match self.peer {
            Peer::Socket { ino } | Peer::Queue { ino } => vec![self.ino, ino],
            Peer::None | Peer::Unknown { .. } => vec![self.ino],
        }
    }

    /// The inode of the only socket that can send to this one; `None` if unknown, or if any socket can.
    pub(crate) fn other_end(&self) -> Option<u64> {
        let connected = match self.kind {
            // The peer of a connection never changes.
            libc::SOCK_STREAM | libc::SOCK_SEQPACKET => true,
            // An unnamed datagram socket receives only from its pair (unix(7)).
            libc::SOCK_DGRAM => self.name.is_none(),
            _ => false,
        };
        match self.peer {
            Peer::Socket { ino } | Peer::Queue { ino } if self.is_unix() && connected => Some(ino),
            _ => None,
        }
    }

    /// Domain and type, such as `unix stream`.
    pub(crate) fn what(&self) -> String {
        let domain = match self.domain {
            libc::AF_UNIX => "unix",
            libc::AF_INET => "IPv4",
            libc::AF_INET6 => "IPv6",
            libc::AF_NETLINK => "netlink",
            libc::AF_VSOCK => "vsock",
            _ => "",
        };
        let kind = match self.kind {
            libc::SOCK_STREAM => "stream",
            libc::SOCK_DGRAM => "datagram",
            libc::SOCK_SEQPACKET => "seqpacket",
            libc::SOCK_RAW => "raw",
            _ => "",
        };
        [domain, kind].join(" ").trim().to_owned()
    }
}

/// Asks the kernel about sockets, one after the other.
pub(crate) struct Asker {
    netlink: Result<File, PeerUnknown>,
}

impl Asker {
    pub(crate) fn new() -> Asker {
        let made = sys::sock_diag().map(File::from);
        Asker { netlink: made.map_err(|error| PeerUnknown::NoDiagnostics { errno: error.raw_os_error() }) }
    }

    /// Asks about the socket behind one fd of a process. Also returns the inodes of the clients whose
    /// connections wait to be accepted there.
    ///
    /// One request a socket, answered at once: a dump would list every socket of the machine.
    pub(crate) fn ask(&self, pid: Pid, pidfd: Option<&OwnedFd>, fd: i32, ino: u64) -> (Socket, Vec<u64>) {
        let second = pidfd.and_then(|pidfd| sys::pidfd_getfd(pidfd, fd).ok());
        let option = |name| second.as_ref().and_then(|fd| sys::socket_option(fd, name));
        let forever = |name| second.as_ref().and_then(|fd| sys::has_timeout(fd, name)) == Some(false);
        let mut socket = Socket {
            ino,
            domain: option(libc::SO_DOMAIN).unwrap_or(0),
            kind: option(libc::SO_TYPE).unwrap_or(0),
            listens: option(libc::SO_ACCEPTCONN) == Some(1),
            reads_forever: forever(libc::SO_RCVTIMEO),
            writes_forever: forever(libc::SO_SNDTIMEO),
            peer: Peer::None,
            name: None,
            local: None,
            remote: None,
            listener: None,
            queued: None,
            is_full: false,
        };
        if matches!(socket.domain, libc::AF_INET | libc::AF_INET6) {
            // Both calls work on every kind of IP socket.
            let second = second.map(TcpStream::from);
            let shown = |address: SocketAddr| address.to_string();
            socket.local = second.as_ref().and_then(|socket| socket.local_addr().ok()).map(shown);
            socket.remote = second.as_ref().and_then(|socket| socket.peer_addr().ok()).map(shown);
        } else if socket.domain == libc::AF_UNIX {
            // The call works on every kind of unix socket.
            let peer = second.map(UnixStream::from).and_then(|socket| socket.peer_addr().ok());
            socket.remote = peer.as_ref().and_then(address);
        }
        if !matches!(socket.domain, 0 | libc::AF_UNIX) {
            if matches!(socket.domain, libc::AF_INET | libc::AF_INET6) && socket.kind == libc::SOCK_STREAM {
                let table = tcp_table(pid);
                (socket.queued, socket.listener) = (queued_of(&table, ino), listener_of(&table, ino));
                if !socket.listens {
                    socket.peer = tcp_peer(&table, ino);
                }
                return (socket, Vec::new());
            }
            socket.peer = match socket.listens {
                true => Peer::None,
                false => Peer::Unknown { why: PeerUnknown::OtherKind },
            };
            return (socket, Vec::new());
        }
        let netlink = match &self.netlink {
            Ok(netlink) => netlink,
            Err(why) => {
                socket.peer = Peer::Unknown { why: *why };
                return (socket, Vec::new());
            }
        };
        let Some(answer) = u32::try_from(ino).ok().and_then(|ino| exchange(netlink, ino)) else {
            let why = if is_elsewhere(pid) { PeerUnknown::OtherNamespace } else { PeerUnknown::NotReported };
            socket.peer = Peer::Unknown { why };
            return (socket, Vec::new());
        };
        socket.domain = libc::AF_UNIX;
        socket.kind = answer.kind;
        socket.listens |= answer.listens;
        socket.name = answer.name;
        socket.queued = answer.queued;
        socket.is_full = answer.is_full;
        // 0 stands for a socket without an inode: not accepted yet, or closed.
        if answer.peer != 0 {
            socket.peer = Peer::Socket { ino: answer.peer };
        }
        (socket, answer.waiting)
    }
}

/// Whether a process is in another network namespace.
fn is_elsewhere(pid: Pid) -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = namespace("self");
    own.is_some() && namespace(&pid.to_string()).is_some_and(|other| Some(other) != own)
}

/// The prefix of an IPv4-mapped IPv6 address (`::ffff:`), as words in native byte order.
const MAPPED: &str =
    if cfg!(target_endian = "little") { "0000000000000000FFFF0000" } else { "00000000000000000000FFFF" };
/// The most bytes of the TCP table that are read.
const TCP: u64 = 4 << 20;

/// The TCP sockets (IPv4 and IPv6) in the network namespace of a process.
fn tcp_table(pid: Pid) -> String {
    let mut text = String::new();
    for version in ["tcp", "tcp6"] {
        if let Ok(file) = fs::File::open(format!("/proc/{pid}/net/{version}")) {
            let _ = file.take(TCP).read_to_string(&mut text);
        }
    }
    text
}

/// The peer of a TCP connection, if it is in the same namespace.
fn tcp_peer(table: &str, ino: u64) -> Peer {
    match other_end_of(table, ino) {
        Some(0) => match queue_of(table, ino) {
            Some(ino) => Peer::Queue { ino },
            None => Peer::Unknown { why: PeerUnknown::NotAccepted },
        },
        Some(ino) => Peer::Socket { ino },
        None => Peer::Unknown { why: PeerUnknown::OtherMachine },
    }
}

/// The inode of the peer of a TCP connection, 0 if no process has it open.
pub(super) fn other_end_of(text: &str, ino: u64) -> Option<u64> {
    other_line(text, ino)?[9].parse().ok()
}

/// The line of the peer of a TCP connection.
fn other_line(table: &str, ino: u64) -> Option<Vec<&str>> {
    let own = tcp_lines(table).find(|words| words[9].parse() == Ok(ino))?;
    tcp_lines(table).find(|words| (plain(words[1]), plain(words[2])) == (plain(own[2]), plain(own[1])))
}

/// An IPv4 address may be listed in the IPv6 table, as `::ffff:127.0.0.1`.
fn plain(address: &str) -> &str {
    address.strip_prefix(MAPPED).unwrap_or(address)
}

/// The inode of the listening socket that a connection waits at to be accepted. A peer that was accepted, and that no
/// process has open any more, is in a state that begins with its close. `None` if several sockets listen there.
pub(super) fn queue_of(table: &str, ino: u64) -> Option<u64> {
    // include/net/tcp_states.h: `TCP_ESTABLISHED`, `TCP_SYN_RECV` and, once the client has shut down its side,
    // `TCP_CLOSE_WAIT`.
    const IN_QUEUE: [&str; 3] = ["01", "03", "08"];
    let other = other_line(table, ino)?;
    if other[9] != "0" || !IN_QUEUE.contains(&other[3]) {
        return None;
    }
    let (address, port) = plain(other[1]).rsplit_once(':')?;
    let listeners = |is_it: &dyn Fn(&str) -> bool| -> Vec<u64> {
        let all = tcp_lines(table).filter(|words| words[3] == LISTENS);
        let of_port = all.filter_map(|words| {
            let (at, its_port) = plain(words[1]).rsplit_once(':')?;
            (its_port == port && is_it(at)).then(|| words[9].parse().ok())?
        });
        of_port.collect()
    };
    let exact = listeners(&|at| at == address);
    // One that listens at an address comes before one that listens at all.
    let found = if exact.is_empty() { listeners(&|at| at.bytes().all(|byte| byte == b'0')) } else { exact };
    match found[..] {
        [listener] if listener != 0 => Some(listener),
        _ => None,
    }
}

/// `TCP_LISTEN`, as the table has it.
const LISTENS: &str = "0A";

/// The words of each line (proc_pid_net(5)): index, local and remote address, state, queues, ..
fn tcp_lines(table: &str) -> impl Iterator<Item = Vec<&str>> {
    table
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() > 9)
}

/// The inode of the listening socket with the same local port as a connection: the one that accepted it.
pub(super) fn listener_of(table: &str, ino: u64) -> Option<u64> {
    let port = |words: &[&str]| words[1].rsplit(':').next().map(str::to_owned);
    let own = tcp_lines(table).find(|words| words[9].parse() == Ok(ino) && words[3] != LISTENS)?;
    let is_listener = |words: &Vec<&str>| words[3] == LISTENS && port(words) == port(&own);
    tcp_lines(table).find(is_listener)?[9].parse().ok()
}

/// Bytes in the receive queue, or connections that wait to be accepted.
pub(super) fn queued_of(table: &str, ino: u64) -> Option<u32> {
    let own = tcp_lines(table).find(|words| words[9].parse() == Ok(ino))?;
    u32::from_str_radix(own[4].split(':').nth(1)?, 16).ok()
}

/// The answer of sock_diag about a unix socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    kind: i32,
    listens: bool,
    peer: u64,
    name: Option<String>,
    queued: Option<u32>,
    is_full: bool,
    waiting: Vec<u64>,
}

// include/uapi/linux/{netlink,sock_diag,unix_diag}.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const UDIAG_SHOW_NAME: u32 = 0x01;
const UDIAG_SHOW_PEER: u32 = 0x04;
const UDIAG_SHOW_ICONS: u32 = 0x08;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UDIAG_SHOW_MEMINFO: u32 = 0x20;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_ICONS: u16 = 3;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_MEMINFO: u16 = 5;
/// Indices of words in it: the memory of data that is in flight, and its limit (`SO_SNDBUF`).
const SK_MEMINFO_WMEM_ALLOC: usize = 2;
const SK_MEMINFO_SNDBUF: usize = 3;
/// `TCP_LISTEN`: sockets of all kinds use the TCP state numbers.
const UNIX_LISTENS: u8 = 10;

/// Asks about one socket. The kernel answers before `send` returns.
fn exchange(mut netlink: &File, ino: u32) -> Option<Answer> {
    /// `struct nlmsghdr` and `struct unix_diag_req`.
    const SIZE: u32 = 16 + 24;
    let mut request = Vec::with_capacity(SIZE as usize);
    request.extend(SIZE.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // The sequence number, which the answer repeats; the kernel fills in the sender.
    request.extend(ino.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    let show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN | UDIAG_SHOW_MEMINFO;
    // All states, by inode, with any cookie.
    for word in [u32::MAX, ino, show, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes());
    }
    netlink.write_all(&request).ok()?;
    let mut buffer = vec![0; 16 * 1024];
    let length = netlink.read(&mut buffer).ok()?;
    parse(buffer.get(..length)?, ino)
}

/// Parses an answer: `struct nlmsghdr`, `struct unix_diag_msg`, attributes. `None` for an error, and for
/// another socket.
pub(super) fn parse(message: &[u8], ino: u32) -> Option<Answer> {
    let length = usize::try_from(word(message, 0)?).ok()?;
    let message = message.get(..length)?;
    if short(message, 4)? != SOCK_DIAG_BY_FAMILY || word(message, 20)? != ino {
        return None;
    }
    let [family, kind, state] = *message.get(16..19)? else { return None };
    if i32::from(family) != libc::AF_UNIX {
        return None;
    }
    let mut answer = Answer {
        kind: i32::from(kind),
        listens: state == UNIX_LISTENS,
        peer: 0,
        name: None,
        queued: None,
        is_full: false,
        waiting: Vec::new(),
    };
    let mut rest = message.get(32..)?;
    // `struct nlattr`: length (with this header of four bytes), type, payload, padded to four bytes.
    while let (Some(length), Some(kind)) = (short(rest, 0), short(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { break };
        match kind {
            UNIX_DIAG_NAME => answer.name = name(value),
            UNIX_DIAG_PEER => answer.peer = u64::from(word(value, 0)?),
            UNIX_DIAG_RQLEN => answer.queued = word(value, 0),
            UNIX_DIAG_MEMINFO => {
                let bytes = |at: usize| word(value, 4 * at).map(u64::from);
                // The condition of the kernel's `unix_writable`.
                answer.is_full = bytes(SK_MEMINFO_WMEM_ALLOC)
                    .zip(bytes(SK_MEMINFO_SNDBUF))
                    .is_some_and(|(used, room)| used * 4 > room);
            }
            UNIX_DIAG_ICONS => {
                answer.waiting =
                    value.chunks_exact(4).filter_map(|ino| word(ino, 0)).map(u64::from).collect();
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(answer)
}

/// Formats an address as `ss` and `/proc/net/unix` do: `@` marks an abstract one (unix(7)).
fn name(bytes: &[u8]) -> Option<String> {
    let (sign, bytes) = match bytes {
        [] => return None,
        [0, rest @ ..] => ("@", rest),
        path => ("", path.split(|byte| *byte == 0).next().unwrap_or_default()),
    };
    Some(format!("{sign}{}", String::from_utf8_lossy(bytes)))
}

/// The address of a named unix socket, in the same format.
fn address(address: &unix::net::SocketAddr) -> Option<String> {
    match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => Some(path.display().to_string()),
        (None, Some(bytes)) => Some(format!("@{}", String::from_utf8_lossy(bytes))),
        (None, None) => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::time::Duration;

    use super::{Asker, Peer, Socket};
    use crate::sys;

    /// Asks about a socket of this process.
    fn ask(fd: &impl AsRawFd) -> (Socket, Vec<u64>) {
        let pid = std::process::id() as i32;
        let pidfd = sys::pidfd_open(pid).unwrap();
        Asker::new().ask(pid, Some(&pidfd), fd.as_raw_fd(), ino(fd))
    }

    fn ino(fd: &impl AsRawFd) -> u64 {
        sys::fstat(fd.as_raw_fd()).unwrap().st_ino
    }

    #[test]
    fn a_pair_knows_each_other() {
        let (one, mut other) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut other, b"abc").unwrap();
        one.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (socket, _) = ask(&one);
        assert_eq!(socket.peer, Peer::Socket { ino: ino(&other) });
        assert_eq!((socket.what(), socket.queued), ("unix stream".to_owned(), Some(3)));
        assert!(!socket.reads_forever && socket.writes_forever && !socket.listens);
        assert_eq!(socket.other_end(), Some(ino(&other)));
        drop(other);
        assert_eq!(ask(&one).0.peer, Peer::None);
    }

    #[test]
    fn what_has_no_room_is_full() {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        std::io::Write::write_all(&mut &one, b"abc").unwrap();
        assert!(!ask(&one).0.is_full);
        let _ = std::io::Write::write_all(&mut &one, &[0; 4_000_000]);
        assert!(ask(&one).0.is_full && !ask(&other).0.is_full);
    }

    #[test]
    fn a_listener_tells_who_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let (socket, waiting) = ask(&listener);
        assert!(socket.listens && socket.name.as_deref() == path.to_str(), "{socket:?}");
        assert_eq!((waiting, socket.queued), (vec![ino(&client)], Some(1)));
        assert_eq!(ask(&client).0.peer, Peer::None);
        assert_eq!(ask(&client).0.remote.as_deref(), path.to_str());
        let (server, _) = listener.accept().unwrap();
        assert_eq!(ask(&server).0.remote, None);
        assert_eq!(ask(&client).0.other_end(), Some(ino(&server)));
        assert_eq!(ask(&server).0.other_end(), Some(ino(&client)));
    }

    #[test]
    fn a_datagram_socket_with_a_name_may_get_anything() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = UnixDatagram::pair().unwrap();
        assert_eq!(ask(&one).0.other_end(), Some(ino(&other)));
        let path = directory.path().join("s");
        let named = UnixDatagram::bind(&path).unwrap();
        let unnamed = UnixDatagram::unbound().unwrap();
        unnamed.connect(&path).unwrap();
        assert_eq!(ask(&named).0.other_end(), None);
        assert_eq!(ask(&unnamed).0.other_end(), Some(ino(&named)));
    }

    #[test]
    fn a_tcp_connection_knows_its_other_end_and_is_no_pair() {
        // The second address gives IPv6 sockets with IPv4-mapped addresses, if the machine has IPv6.
        for address in ["127.0.0.1:0", "[::]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else { continue };
            let (socket, _) = ask(&listener);
            assert!(socket.listens && socket.other_end().is_none() && !socket.is_unix());
            let port = listener.local_addr().unwrap().port();
            let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            assert_eq!(ask(&client).0.peer, Peer::Queue { ino: ino(&listener) });
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(ask(&client).0.peer, Peer::Queue { ino: ino(&listener) });
            let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            drop(listener.accept().unwrap());
            let (server, _) = listener.accept().unwrap();
            assert_eq!(ask(&server).0.listener, Some(ino(&listener)));
            std::io::Write::write_all(&mut &client, b"abc").unwrap();
            let (socket, _) = ask(&server);
            // An IPv4 address may be shown as an IPv6 one.
            let has_port = |address: Option<String>, port: u16| {
                address.is_some_and(|address| {
                    address.ends_with(&format!("127.0.0.1:{port}"))
                        || address.ends_with(&format!("127.0.0.1]:{port}"))
                })
            };
            assert_eq!(socket.queued, Some(3));
            assert!(has_port(socket.local, port));
            assert!(has_port(socket.remote, client.local_addr().unwrap().port()));
            let (socket, _) = ask(&client);
            assert_eq!(socket.listener, None);
            assert_eq!(
                (&socket.peer, socket.what()),
                (&Peer::Socket { ino: ino(&server) }, "IPv4 stream".into())
            );
            assert_eq!(socket.other_end(), None);
            assert_eq!(ask(&server).0.peer, Peer::Socket { ino: ino(&client) });
        }
    }
}
