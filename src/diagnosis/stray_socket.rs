//! What a stray socket is for: whether it listens, was accepted, or is connected, and to what.

use super::evidence::Evidence;
use crate::guard::report_page::StrayFd;
use crate::proc::sockets::{Peer, Socket};

/// A stray socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StraySocket {
    /// Domain and type: `unix stream`. Empty if unknown.
    pub(crate) what: String,
    pub(crate) role: SocketRole,
    /// The path of a unix socket (`@` marks an abstract name), or IP address and port; for an accepted one, those of its
    /// listener. `None` if it has none.
    pub(crate) address: Option<String>,
    /// The address that it is connected to.
    pub(crate) remote: Option<String>,
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketRole {
    /// Listens for connections.
    Listening,
    /// A connection that a listening socket accepted.
    Accepted,
    /// Connected to another socket.
    Connected,
    /// One end of a socketpair(2).
    Paired,
    /// Neither connected nor listening; it may be bound to its address.
    Unconnected,
}

/// Describes a stray fd; `None` if it is no socket, or was not asked about.
pub(super) fn of(evidence: &Evidence<'_>, stray: &StrayFd) -> Option<StraySocket> {
    let mut sockets = evidence.facts.stray_sockets.iter().filter(|_| stray.is_socket());
    let socket = sockets.find(|socket| socket.ino == stray.ino)?;
    let call = evidence.names.of_fd(stray.key).map(|site| site.call.as_str());
    // A connection that was not bound has the address that the kernel chose for it, which explains nothing.
    let role = role(socket, call);
    let address = socket.name.clone().or_else(|| match role {
        SocketRole::Connected | SocketRole::Paired => None,
        _ => socket.local.clone().filter(|local| !local.ends_with(":0")),
    });
    Some(StraySocket { what: socket.what(), role, address, remote: socket.remote.clone() })
}

fn role(socket: &Socket, call: Option<&str>) -> SocketRole {
    match call {
        _ if socket.listens => SocketRole::Listening,
        Some("accept" | "accept4") => SocketRole::Accepted,
        Some("socketpair") => SocketRole::Paired,
        // An accepted unix socket has the name of its listener, and its peer seldom has one.
        _ if socket.listener.is_some() => SocketRole::Accepted,
        _ if socket.remote.is_some() || matches!(socket.peer, Peer::Socket { .. } | Peer::Queue { .. }) => {
            SocketRole::Connected
        }
        _ => SocketRole::Unconnected,
    }
}
