//! The mapped file `processes` and the lock around changes to it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use crate::config::Machine;
use crate::record::{Record, started};

/// Processes that can use the software driver at once.
pub const SLOTS: usize = 128;

/// The shared folder, opened: the machine, and a record for each process that uses it.
#[derive(Debug)]
pub struct Table {
    directory: PathBuf,
    machine: Machine,
    records: &'static [Record; SLOTS],
}

/// Held while bytes or states change; ends with its process, however that ends.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

impl Table {
    /// Opens the folder named by [`crate::DIRECTORY_VARIABLE`].
    pub fn from_environment() -> io::Result<Self> {
        let directory = std::env::var_os(crate::DIRECTORY_VARIABLE)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, crate::DIRECTORY_VARIABLE))?;
        Self::open(Path::new(&directory))
    }

    /// Opens a shared folder and maps its records, making the file if it is not there. The mapping stays for the
    /// life of the process.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("processes"))?;
        let bytes = size_of::<[Record; SLOTS]>();
        if file.metadata()?.len() < bytes as u64 {
            file.set_len(bytes as u64)?;
        }
        // SAFETY: a fresh shared mapping of a file that is at least this long; nothing is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is page aligned, as long as the array, never unmapped, and every field of a record
        // is an atomic integer for which all bit patterns are valid.
        let records = unsafe { &*address.cast::<[Record; SLOTS]>() };
        Ok(Self { directory: directory.to_owned(), machine: Machine::read(directory), records })
    }

    /// The machine as it was when the table was opened.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The shared folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes the table's lock and clears the records of processes that have ended.
    pub fn lock(&self) -> Guard {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.directory.join("lock"))
            .expect("the shared folder outlives the processes that use it");
        // SAFETY: flock takes a descriptor that is open for the whole call.
        while unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {}
        for record in self.records.iter().filter(|record| record.pid().is_some() && !record.alive()) {
            record.clear();
        }
        Guard { _file: file }
    }

    /// The records of processes that run.
    pub fn processes(&self) -> impl Iterator<Item = &'static Record> {
        self.records.iter().filter(|record| record.alive())
    }

    /// The record of process `pid`, if it runs and has called `cuInit`.
    pub fn find(&self, pid: i32) -> Option<&'static Record> {
        self.processes().find(|record| record.pid() == Some(pid))
    }

    /// The record of process `pid`, made if there is none; `None` when every slot is taken.
    pub fn register(&self, pid: i32) -> Option<&'static Record> {
        let _guard = self.lock();
        if let Some(record) = self.find(pid) {
            return Some(record);
        }
        let record = self.records.iter().find(|record| record.pid().is_none())?;
        record.clear();
        record.born.store(started(pid)?, Ordering::SeqCst);
        record.pid.store(pid, Ordering::SeqCst);
        Some(record)
    }

    /// Bytes in use on `gpu`, all processes together.
    pub fn used(&self, gpu: usize) -> u64 {
        self.processes().map(|record| record.held[gpu].load(Ordering::SeqCst)).sum()
    }

    /// Bytes free on `gpu`.
    pub fn free(&self, gpu: usize) -> u64 {
        self.machine.gpus[gpu].bytes.saturating_sub(self.used(gpu))
    }

    /// Charges `bytes` of `gpu` to `record`; false if the GPU has no room.
    pub fn charge(&self, record: &Record, gpu: usize, bytes: u64) -> bool {
        let _guard = self.lock();
        let room = self.free(gpu) >= bytes;
        if room {
            record.held[gpu].fetch_add(bytes, Ordering::SeqCst);
        }
        room
    }

    /// Gives `bytes` of `gpu` back.
    pub fn refund(&self, record: &Record, gpu: usize, bytes: u64) {
        let _guard = self.lock();
        record.held[gpu].fetch_sub(bytes, Ordering::SeqCst);
    }
}
