//! Work that must not be cut short by whoever kills this process's tree.

use std::io::{self, Read as _};

/// Runs `work` in a process that nobody finds below this one, and waits for it; here, if none can be forked. To be called
/// while this process has one thread.
pub fn out_of_the_tree(work: impl FnOnce()) {
    // Its end tells that the work is done, or can be done no more.
    let Ok((mut done, working)) = io::pipe() else { return work() };
    // SAFETY: this process has one thread, so the child's memory is whole.
    match unsafe { libc::fork() } {
        -1 => work(),
        0 => {
            drop(done);
            // SAFETY: as above; the process between ends at once, which makes the next one an orphan.
            if let 0 | -1 = unsafe { libc::fork() } {
                let _ = rustix::process::setsid();
                work();
            }
            drop(working);
            // SAFETY: ends this process without its parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        child => {
            drop(working);
            let _ = done.read(&mut [0]);
            super::child::wait(child);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_done_by_an_orphan() {
        let (mut told, tell) = io::pipe().expect("a pipe");
        // The work is a system call, as it must be here, where there are more threads.
        out_of_the_tree(|| {
            let (pid, parent) = (std::process::id(), std::os::unix::process::parent_id());
            let bytes = [pid.to_ne_bytes(), parent.to_ne_bytes()].concat();
            let _ = rustix::io::write(&tell, &bytes);
        });
        drop(tell);
        let mut bytes = [0; 8];
        told.read_exact(&mut bytes).expect("it was told");
        let parent = u32::from_ne_bytes(bytes[4..].try_into().expect("four"));
        assert_ne!(parent, std::process::id());
    }
}
