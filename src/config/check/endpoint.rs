//! The endpoint's address: bound for a moment, to see whether it can be.

use crate::config::{
    Context,
    mistake::{Code, Mistake},
    raw::File,
    resolve,
};
use std::{
    io::{Error, ErrorKind},
    net::{SocketAddr, TcpListener},
};

pub(super) fn check(file: &File, context: &Context, mistakes: &mut Vec<Mistake>) {
    let router = resolve::router(file);
    let address = SocketAddr::new(context.host.unwrap_or(router.host), context.port.unwrap_or(router.port));
    let Err(error) = TcpListener::bind(address) else { return };
    let (message, help) = explain(address, &error);
    let raw = file.router.as_ref().map(|at| &at.value);
    // A port 0 that cannot be bound is the address's fault.
    let port =
        raw.and_then(|raw| raw.port.as_ref()).filter(|_| context.port.is_none() && address.port() != 0);
    let host = raw.and_then(|raw| raw.host.as_ref()).filter(|_| context.host.is_none());
    let place = match error.kind() {
        ErrorKind::AddrNotAvailable => host.map(|at| at.span.clone()),
        _ => port.map(|at| at.span.clone()),
    };
    mistakes.push(match place {
        Some(span) => Mistake::at(span, Code::PortUnavailable, message, help),
        None => Mistake::whole(Code::PortUnavailable, message, help),
    });
}

fn explain(address: SocketAddr, error: &Error) -> (String, String) {
    match error.kind() {
        ErrorKind::AddrInUse => (
            format!("port {} is taken by another program on this node", address.port()),
            format!(
                "leave `port` out to get a free one, or find the program: ss -ltnp 'sport = {}'",
                address.port()
            ),
        ),
        ErrorKind::PermissionDenied => (
            format!("port {} is privileged: only root may listen on it", address.port()),
            "take a port from 1024 up, or leave `port` out to get a free one".to_owned(),
        ),
        ErrorKind::AddrNotAvailable => (
            format!("{} is no address of this node", address.ip()),
            "use \"127.0.0.1\" for clients on this node, \"0.0.0.0\" for clients on others".to_owned(),
        ),
        _ => (format!("cannot listen on {address}: {error}"), "choose another `host` or `port`".to_owned()),
    }
}
