//! The connection to one process: a question and its answers at a time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::cuda::refusal;
use super::wire::{self, BUSY, COUNTS, Entry, Kind, MOST_ENTRIES, Message};
use crate::gpu::protocol::Refusal;

/// How long a process may take for one step: creating memory takes milliseconds, a process that is stopped for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connected process.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    pid: i32,
    patience: Duration,
    /// After a failure in the middle of an answer the next answer could be that to an older question.
    broken: AtomicBool,
}

/// What a process answers at the end.
pub(super) type Counts = [u64; COUNTS];

impl Link {
    /// Waits for the process's greeting.
    ///
    /// # Errors
    /// If it speaks another version of the protocol ([`io::ErrorKind::Unsupported`]) or something else
    /// ([`io::ErrorKind::InvalidData`]), or not at all.
    pub(super) fn greet(socket: OwnedFd, pid: i32) -> io::Result<Self> {
        Self::greet_within(socket, pid, PATIENCE)
    }

    fn greet_within(socket: OwnedFd, pid: i32, patience: Duration) -> io::Result<Self> {
        let limit = libc::timeval {
            tv_sec: patience.as_secs() as libc::time_t,
            tv_usec: patience.subsec_micros().into(),
        };
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            // SAFETY: an open socket and a live struct of the size given.
            let failed = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const limit).cast(),
                    size_of::<libc::timeval>() as libc::socklen_t,
                )
            } != 0;
            if failed {
                return Err(io::Error::last_os_error());
            }
        }
        match wire::receive(socket.as_fd())? {
            Some((hello, _)) if hello.kind == Kind::Hello && hello.value == wire::VERSION => {
                Ok(Self { socket, pid, patience, broken: AtomicBool::new(false) })
            }
            Some((hello, _)) if hello.kind == Kind::Hello => {
                let (its, ours) = (hello.value, wire::VERSION);
                let text = format!("a preload library of another version ({its}, this is {ours})");
                Err(io::Error::new(io::ErrorKind::Unsupported, text))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no preload library")),
        }
    }

    /// Its process.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Closes the gate and has the process come to rest.
    ///
    /// # Errors
    /// If it does not in time; then it goes on.
    pub(super) fn close(&self, limit: Duration) -> Result<Counts, Refusal> {
        let mut message = Message::new(Kind::Close);
        message.value = (limit.min(PATIENCE / 2)).as_millis() as u64;
        self.ask(&message, |_, _| Ok(()))
    }

    /// Opens the gate.
    ///
    /// # Errors
    /// If memory is still away.
    pub(super) fn open(&self) -> Result<Counts, Refusal> {
        self.ask(&Message::new(Kind::Open), |_, _| Ok(()))
    }

    /// Every chunk, and what cannot be parked.
    ///
    /// # Errors
    /// If the process does not answer.
    pub(super) fn list(&self) -> Result<(Vec<Entry>, Counts), Refusal> {
        let mut entries = Vec::new();
        let counts = self.ask(&Message::new(Kind::List), |batch, _| {
            entries.extend(batch);
            Ok(())
        })?;
        Ok((entries, counts))
    }

    /// Takes chunks' descriptors, batch by batch.
    ///
    /// # Errors
    /// The driver's refusal in the process, or that of `take`.
    pub(super) fn export(
        &self,
        numbers: &[u64],
        take: impl FnMut(Vec<Entry>, Vec<OwnedFd>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.ask_about(Kind::Export, numbers, take)
    }

    /// Has chunks' memory made anew, and takes their descriptors.
    ///
    /// # Errors
    /// The driver's refusal in the process (batches before it have been taken), or that of `take`.
    pub(super) fn restore(
        &self,
        numbers: &[u64],
        take: impl FnMut(Vec<Entry>, Vec<OwnedFd>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.ask_about(Kind::Restore, numbers, take)
    }

    /// Has the process give chunks' memory up.
    ///
    /// # Errors
    /// The driver's refusal in the process.
    pub(super) fn release(&self, numbers: &[u64]) -> Result<(), Refusal> {
        self.ask_about(Kind::Release, numbers, |_, _| Ok(()))
    }

    /// Tells the process that restored chunks hold what they held.
    ///
    /// # Errors
    /// If one has no memory.
    pub(super) fn filled(&self, numbers: &[u64]) -> Result<(), Refusal> {
        self.ask_about(Kind::Filled, numbers, |_, _| Ok(()))
    }

    fn ask_about(
        &self,
        kind: Kind,
        numbers: &[u64],
        mut take: impl FnMut(Vec<Entry>, Vec<OwnedFd>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        for part in numbers.chunks(MOST_ENTRIES) {
            let mut message = Message::new(kind);
            let entry = |&number| Entry { number, bytes: 0, device: 0, place: wire::Place::Here };
            message.entries = part.iter().map(entry).collect();
            self.ask(&message, &mut take)?;
        }
        Ok(())
    }

    /// Asks, takes every batch, and returns at the end of the answer. After a refusal of `take` the rest of the answer
    /// is still read, so that the next question gets its own.
    fn ask(
        &self,
        question: &Message,
        mut take: impl FnMut(Vec<Entry>, Vec<OwnedFd>) -> Result<(), Refusal>,
    ) -> Result<Counts, Refusal> {
        if self.broken.load(Ordering::Relaxed) {
            let text = "the connection to it broke; it has to connect anew";
            return Err(self.gone(question.kind, &io::Error::other(text)));
        }
        let broken = |error: io::Error| {
            self.cut();
            self.gone(question.kind, &error)
        };
        wire::send(self.socket.as_fd(), question, &[]).map_err(broken)?;
        let mut taken = Ok(());
        loop {
            let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection");
            let (answer, descriptors) = wire::receive(self.socket.as_fd())
                .and_then(|answer| answer.ok_or_else(ended))
                .map_err(broken)?;
            match answer.kind {
                Kind::Done if answer.code == 0 => return taken.map(|()| answer.counts),
                Kind::Done => return Err(self.refused(question.kind, &answer)),
                _ if taken.is_ok() => taken = take(answer.entries, descriptors),
                _ => {}
            }
        }
    }

    /// Ends the connection: the process sees it and connects anew.
    fn cut(&self) {
        self.broken.store(true, Ordering::Relaxed);
        // SAFETY: an open socket. One that is closed already needs no more.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }

    fn refused(&self, kind: Kind, answer: &Message) -> Refusal {
        let (kind, on, code) =
            (format!("{kind:?}").to_lowercase(), format!("process {}", self.pid), answer.code);
        let call = wire::CALLS.get(answer.value as usize).filter(|call| !call.is_empty());
        let function = call.map_or(kind.clone(), |call| format!("{kind}: {call}"));
        if code == BUSY {
            let text = "it did not come to rest in time; it goes on".to_owned();
            return Refusal { function, on, code, name: "busy".to_owned(), text };
        }
        refusal(&function, &on, code)
    }

    fn gone(&self, kind: Kind, error: &io::Error) -> Refusal {
        let text = match error.kind() {
            io::ErrorKind::WouldBlock => format!("it has not answered for {:?}", self.patience),
            _ => error.to_string(),
        };
        Refusal {
            function: format!("{kind:?}").to_lowercase(),
            on: format!("process {}", self.pid),
            code: 0,
            name: "gone".to_owned(),
            text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    /// Both ends of a connection: the server's, greeted, and the process's.
    fn pair(patience: Duration) -> (Link, OwnedFd) {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors, which nobody else owns.
        let (ours, theirs) = unsafe {
            assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()), 0);
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        let mut hello = Message::new(Kind::Hello);
        hello.value = wire::VERSION;
        wire::send(theirs.as_fd(), &hello, &[]).unwrap();
        (Link::greet_within(ours, 4711, patience).unwrap(), theirs)
    }

    #[test]
    fn an_answer_that_comes_too_late_is_not_taken_for_the_next_one() {
        let (link, theirs) = pair(Duration::from_millis(1));
        let late = link.open().unwrap_err().to_string();
        assert!(late.contains("has not answered"), "{late}");
        // The answer to the first question is no answer to the second: an empty list would be believed.
        // Whether it can still be sent does not matter.
        let _ = wire::send(theirs.as_fd(), &Message::new(Kind::Done), &[]);
        let refused = link.list().unwrap_err().to_string();
        assert!(refused.contains("connect anew"), "{refused}");
        // The process sees the question and then the end, and connects anew.
        assert_eq!(wire::receive(theirs.as_fd()).unwrap().expect("the question").0.kind, Kind::Open);
        assert!(wire::receive(theirs.as_fd()).unwrap().is_none());
    }

    #[test]
    fn another_version_is_not_met() {
        let mut ends = [0; 2];
        // SAFETY: as in `pair`.
        let (ours, theirs) = unsafe {
            assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()), 0);
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        let mut hello = Message::new(Kind::Hello);
        hello.value = wire::VERSION + 1;
        wire::send(theirs.as_fd(), &hello, &[]).unwrap();
        let refused = Link::greet(ours, 1).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
        assert!(refused.to_string().contains("another version"), "{refused}");
    }
}
