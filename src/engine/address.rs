//! Where an engine listens: a Unix socket in the run directory, or a loopback port that nobody else has.
//!
//! A port is found free by binding it and letting it go, so somebody may take it before the engine does. An engine that
//! loses it exits and is started again on another; a stranger who wins it is found out by [`belongs_to_us`].

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

/// Longest path of a Unix socket, its closing zero included (unix(7), `sun_path`).
pub(super) const LONGEST_SOCKET_PATH: usize = 108;

/// Lowest port that is tried: below it well-known services are more likely.
const LOWEST: u16 = 15_000;
/// Where the kernel begins to take ports for outgoing connections, if it does not say (ip(7), `ip_local_port_range`).
const DEFAULT_EPHEMERAL: u16 = 32_768;
/// Random ports that are tried before the kernel is asked for one.
const TRIES: usize = 64;

/// `preferred`, if nobody has it, or a free port at random below those that the kernel gives to outgoing connections: one
/// of those could be taken by any client in the time until the engine binds it.
pub(super) fn free_port(preferred: Option<u16>) -> io::Result<u16> {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    if let Some(port) = preferred.filter(is_free) {
        return Ok(port);
    }
    let range = LOWEST..ephemeral_begin().max(LOWEST + 1);
    let mut random = [0; 2 * TRIES];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let tries = random
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| range.start + u16::from_ne_bytes(*pair) % (range.end - range.start));
    match tries.into_iter().find(is_free) {
        Some(port) => Ok(port),
        None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr().map(|at| at.port()),
    }
}

fn ephemeral_begin() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(DEFAULT_EPHEMERAL)
}

/// Whether who listens on this loopback port runs under this user's id. Another user's process that got the port first
/// would be given the prompts of this job. Unknown counts as ours: `/proc/net` may be hidden.
pub(super) fn belongs_to_us(at: SocketAddr) -> bool {
    let me = rustix::process::geteuid().as_raw();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let mut owners =
        tables.iter().flat_map(|table| table.lines()).filter_map(|line| listener(line, at.port()));
    owners.all(|uid| uid == me)
}

/// The owner of a listening socket on `port`, from one line of `/proc/net/tcp` (proc_pid_net(5)).
fn listener(line: &str, port: u16) -> Option<u32> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (_, at) = local.rsplit_once(':')?;
    let uid = fields.nth(3)?.parse().ok()?;
    (state == LISTEN && u16::from_str_radix(at, 16) == Ok(port)).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_is_kept_until_somebody_has_it() {
        let first = free_port(None).expect("there are free ports");
        assert_eq!(free_port(Some(first)).ok(), Some(first));
        let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).expect("it was free");
        assert_ne!(free_port(Some(first)).ok(), Some(first));
    }

    #[test]
    fn the_owner_of_a_listener_is_read_from_the_kernels_table() {
        let line =
            "   3: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1004        0 99 1";
        assert_eq!(listener(line, 8080), Some(1004));
        assert_eq!(listener(line, 8081), None);
        assert_eq!(listener(&line.replace(" 0A ", " 01 "), 8080), None);
        let mine = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there are free ports");
        assert!(belongs_to_us(mine.local_addr().expect("it is bound")));
    }
}
