//! The gpu server's frames, and the messages of the preload library, which comes from inside an engine.

use std::os::{
    fd::{AsFd, OwnedFd},
    unix::net::UnixDatagram,
};
use swapserve::gpu::protocol::{Call, Numbered, Outcome, frame, read_frame};

#[allow(dead_code, reason = "the other half is the library's")]
#[path = "../../preload/src/wire.rs"]
mod wire;

pub fn run(data: &[u8]) {
    let mut reader = data;
    while let Ok(Some(call)) = read_frame::<Numbered<Call>>(&mut reader) {
        let bytes = frame(&call).expect("what was read is not too long");
        let again: Numbered<Call> = read_frame(&mut &bytes[..]).expect("a frame").expect("one frame");
        assert_eq!((again.id, again.body), (call.id, call.body));
    }
    let mut reader = data;
    while let Ok(Some(_)) = read_frame::<Numbered<Outcome>>(&mut reader) {}
    // Packets, each begun by its length in two bytes. A datagram pair keeps them apart as the real socket does.
    let (ours, theirs) = UnixDatagram::pair().expect("a socket pair");
    let (ours, theirs): (UnixDatagram, OwnedFd) = (ours, theirs.into());
    let mut rest = data;
    while let Some((length, after)) = rest.split_at_checked(2) {
        let length = usize::from(u16::from_le_bytes([length[0], length[1]])).min(after.len());
        let (packet, after) = after.split_at(length);
        rest = after;
        if packet.is_empty() || ours.send(packet).is_err() {
            return;
        }
        if let Ok(Some((message, descriptors))) = wire::receive(theirs.as_fd()) {
            assert!(descriptors.is_empty() && message.entries.len() <= wire::MOST_ENTRIES);
        }
    }
}
