//! The past holds of a local lock: a file in its directory, to which each holder adds a line when it releases the lock.
//! It must not know who may hold the lock. Nothing here is synchronised to the disk, or ever an error of a run.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{AtFlags, FileType, OFlags, fchmod, fstat, ftruncate, openat, renameat, unlinkat};
use rustix::io::{Errno, retry_on_intr};

use super::lock_dir::{LockDir, Present};
use crate::core::blockers::{QueueEntry, holders};
use crate::core::history::{Acquired, End, Hold, LocalHold};
use crate::core::holder::Holder;
use crate::core::local::EntryName;
use crate::core::request::Mode as LockMode;
use crate::output::exit::Failure;
use crate::sys::atomic_file::lock_until;
use crate::sys::clock;

/// Number of holds that are shown.
pub(super) const HISTORY_LENGTH: usize = 100;
/// Length of the file, in bytes, from which on only [`HISTORY_LENGTH`] holds stay. So many of the longest ones, whose record
/// has 1 KiB, are shorter; of the usual ones it has a thousand.
const MAX_BYTES: u64 = 256 * 1024;
/// Maximum length of the file: that one, and the longest line.
const MAX_READ_BYTES: u64 = MAX_BYTES + 64 * 1024;
/// Time for other writers, which need microseconds. Any process that can open the file may lock it.
const LOCK_TIMEOUT: Duration = Duration::from_millis(50);

/// Behind the record in the file of an entry: its owner has got the lock.
pub(super) const HELD: &[u8] = b"\n";

const FILE: &str = "history";
const NEW_FILE: &str = "history.new";

impl LockDir {
    /// Adds a hold, if possible.
    pub(super) fn add_to_history(&self, hold: &LocalHold) {
        let _ = self.append(hold.to_line().as_bytes());
    }

    fn append(&self, line: &[u8]) -> Result<(), Errno> {
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let give_up_at = clock::now() + LOCK_TIMEOUT;
        loop {
            let file = openat(&self.directory, FILE, flags, self.rights.file)?;
            lock_until(&file, give_up_at)?;
            // Another process may have replaced it before we had the lock.
            if !self.has(FILE, &file)? {
                continue;
            }
            let status = fstat(&file)?;
            if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
                return Err(Errno::INVAL);
            }
            if status.st_size == 0 {
                // The umask removes permissions.
                fchmod(&file, self.rights.file)?;
            }
            let before = u64::try_from(status.st_size).unwrap_or_default();
            let written = retry_on_intr(|| rustix::io::write(&file, line));
            if written != Ok(line.len()) {
                // Half a line would spoil the next one.
                ftruncate(&file, before)?;
                return written.and(Err(Errno::NOSPC));
            }
            if before > MAX_BYTES {
                self.shorten()?;
            }
            return Ok(());
        }
    }

    /// Keeps the last holds only. The file is locked.
    fn shorten(&self) -> Result<(), Errno> {
        let text = self.read_history().unwrap_or_default();
        let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        lines.drain(..lines.len().saturating_sub(HISTORY_LENGTH));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.directory, NEW_FILE, flags, self.rights.file)?;
        let last = lines.concat();
        let replace = |file: &OwnedFd| {
            fchmod(file, self.rights.file)?;
            if rustix::io::write(file, &last)? != last.len() {
                return Err(Errno::NOSPC);
            }
            renameat(&self.directory, NEW_FILE, &self.directory, FILE)
        };
        replace(&file).inspect_err(|_| {
            let _ = unlinkat(&self.directory, NEW_FILE, AtFlags::empty());
        })
    }

    /// The end of the file, which may begin within a line.
    fn read_history(&self) -> Result<Vec<u8>, Failure> {
        let Some(mut file) = self.open(FILE)? else {
            return Ok(Vec::new());
        };
        let mut text = Vec::new();
        let mut read = || -> io::Result<()> {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(MAX_READ_BYTES)))?;
            file.by_ref().take(MAX_READ_BYTES).read_to_end(&mut text)?;
            Ok(())
        };
        read().with_context(|| format!("cannot read '{}'", self.path.join(FILE).display()))?;
        Ok(text)
    }

    /// Adds the hold of an owner that died, and so has written nothing, from the file of its entry.
    pub(super) fn remember_dead(&self, ticket: EntryName, text: &[u8]) {
        if let (true, Some(holder)) = (text.ends_with(HELD), Holder::parse(text)) {
            self.add_to_history(&LocalHold {
                token: ticket.token,
                slot: ticket.slot,
                holder,
                ended: None,
            });
        }
    }

    /// The past holds and the current ones.
    pub(super) fn past_and_current(&self) -> Result<Vec<Hold>, Failure> {
        let text = self.read_history()?;
        let mut past = LocalHold::parse_all(&text);
        past.drain(..past.len().saturating_sub(HISTORY_LENGTH));
        let mut holds: Vec<Hold> = past.into_iter().map(LocalHold::into_hold).collect();
        let last_end = holds.iter().filter_map(|hold| hold.ended_at).max();
        let present = self.present()?;
        let queue: Vec<QueueEntry> = present.iter().map(Present::queue_entry).collect();
        for (entry, held) in queue.iter().zip(holders(&queue)) {
            // A cooldown was a hold, and is in the file.
            if !held || entry.is_cooling() {
                continue;
            }
            let queued_at = entry.record.as_ref().and_then(Holder::queued_at);
            let began_at = match entry.mode() {
                LockMode::Exclusive => queued_at.max(last_end),
                LockMode::Shared | LockMode::Slots(_) => queued_at,
            };
            holds.push(Hold {
                entry: entry.clone(),
                acquired: Some(Acquired::Before),
                left: None,
                end: End::Holds,
                began_at,
                ended_at: None,
                held: None,
            });
        }
        Ok(holds)
    }
}
