//! The directory of one lock: its entries, whose flock shows that their owner lives, and its tokens.
//! It must not know which entry holds the lock.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, fchmod, flock, fstat, ftruncate, openat, renameat,
    statat, unlinkat,
};
use rustix::io::{Errno, pwrite, retry_on_intr};

use super::dir_util::{Modes, list, not_written};
use crate::core::blockers::QueueEntry;
use crate::core::fence::{HighestTokens, Unreadable};
use crate::core::holder::Holder;
use crate::core::local::{
    Cooldown, EntryName, cooled, is_unfinished_lock, is_unnumbered, unnumbered,
};
use crate::core::name::LockName;
use crate::core::proof::{FencingToken, LeaseId};
use crate::core::text::format_duration;
use crate::local::token_file;
use crate::output::exit::Failure;
use crate::sys::atomic_file::{AtomicFile, lock_until, same};
use crate::sys::clock;
use crate::sys::random::random;

/// The id of the boot that `CLOCK_BOOTTIME` counts from (`proc_sys_kernel(5)`).
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// Maximum length of a file, far more than a record or a time needs.
const MAX_FILE_BYTES: u64 = 4096;

/// An open lock directory.
pub(super) struct LockDir {
    pub(super) path: PathBuf,
    pub(super) directory: OwnedFd,
    pub(super) rights: Modes,
    pub(super) name: LockName,
}

/// An entry whose owner lives, or that cools down.
#[derive(Clone, Debug)]
pub(super) struct Present {
    pub(super) ticket: EntryName,
    pub(super) record: Option<Holder>,
    /// The rest of the cooldown, if no process holds the entry any more.
    pub(super) cooling: Option<Duration>,
    /// The nanoseconds from 1970 to its creation, by the clock of its file system.
    pub(super) made_at: i64,
}

impl Present {
    /// The entry as the queue has it.
    pub(super) fn queue_entry(&self) -> QueueEntry {
        let record = self.record.clone().map(|record| Holder {
            slot: self.ticket.slot,
            cooling: self.cooling.is_some(),
            ..record
        });
        QueueEntry {
            key: self.ticket.to_string(),
            token: self.ticket.token,
            lease: LeaseId::NONE,
            mod_revision: 0,
            record,
        }
    }
}

impl LockDir {
    /// The path of a file in it, for messages.
    fn shown(&self, file: &str) -> String {
        self.path.join(file).display().to_string()
    }

    pub(super) fn cannot_use(&self) -> String {
        format!("cannot use the directory '{}'", self.path.display())
    }

    /// The file with this name, which is only replaced as a whole.
    fn atomic_file(&self, file: &str) -> Result<AtomicFile, Failure> {
        let directory = self
            .directory
            .try_clone()
            .with_context(|| self.cannot_use())?;
        let path = self.path.join(file);
        Ok(AtomicFile::in_dir(directory, &path, self.rights.file))
    }

    /// Creates an entry without a token, with this record; the returned descriptor holds its flock.
    pub(super) fn make_entry(&self, record: &Holder) -> Result<(String, OwnedFd), Failure> {
        loop {
            let file = unnumbered(random().with_context(|| self.cannot_use())?);
            let make = || -> Result<(OwnedFd, bool), Errno> {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let entry = openat(&self.directory, &file, flags, self.rights.file)?;
                fchmod(&entry, self.rights.file)?;
                // Another process may have opened it, and would keep us waiting.
                retry_on_intr(|| flock(&entry, FlockOperation::NonBlockingLockExclusive))?;
                let written =
                    retry_on_intr(|| rustix::io::write(&entry, record.to_json().as_bytes()));
                // A sweeping process may have taken it for the entry of a dead owner.
                let there = self.has(&file, &entry)?;
                written?;
                Ok((entry, there))
            };
            match make() {
                Ok((entry, true)) => return Ok((file, entry)),
                Ok((_, false)) | Err(Errno::EXIST) => {}
                Err(Errno::WOULDBLOCK) => self.remove(&file),
                Err(error) => {
                    self.remove(&file);
                    let tried = format!("cannot write '{}'", self.shown(&file));
                    return Err(not_written(&tried, error));
                }
            }
        }
    }

    /// Replaces the record of an entry that has no token.
    pub(super) fn rewrite_entry(
        &self,
        file: &str,
        entry: &OwnedFd,
        record: &Holder,
    ) -> Result<(), Failure> {
        let written = ftruncate(entry, 0)
            .and_then(|()| retry_on_intr(|| pwrite(entry, record.to_json().as_bytes(), 0)));
        let tried = || format!("cannot write '{}'", self.shown(file));
        written.map_err(|error| not_written(&tried(), error))?;
        Ok(())
    }

    /// Whether the file with this name is `entry`.
    pub(super) fn has(&self, file: &str, entry: &OwnedFd) -> Result<bool, Errno> {
        match statat(&self.directory, file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) => Ok(same(&now, &fstat(entry)?)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the file with this name, found by the whole path as others find it, is not `entry` any more. On an error
    /// it counts as not lost.
    pub(super) fn is_lost(&self, file: &str, entry: &OwnedFd) -> bool {
        let path = self.path.join(file);
        match statat(rustix::fs::CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) => fstat(entry).is_ok_and(|ours| !same(&now, &ours)),
            Err(error) => error == Errno::NOENT || error == Errno::NOTDIR,
        }
    }

    /// Waits for the lock for tokens, slots and sweeping.
    pub(super) fn lock(&self) -> Result<Locked<'_>, Failure> {
        self.lock_by(wait)
    }

    /// The same without a wait; `None` if another process has it.
    pub(super) fn try_lock(&self) -> Result<Option<Locked<'_>>, Failure> {
        match self.lock_by(|_| Err(Errno::WOULDBLOCK)) {
            Err(failure) if is_would_block(&failure) => Ok(None),
            locked => locked.map(Some),
        }
    }

    /// The same for `limit` at most.
    pub(super) fn lock_within(&self, limit: Duration) -> Result<Locked<'_>, Failure> {
        let give_up_at = clock::now() + limit;
        self.lock_by(|lock| lock_until(lock, give_up_at))
            .map_err(|failure| {
                if is_would_block(&failure) {
                    self.queue_busy(limit)
                } else {
                    failure
                }
            })
    }

    /// The error when other processes keep us from the queue for `limit`.
    pub(super) fn queue_busy(&self, limit: Duration) -> Failure {
        let cause = format!(
            "{}: another process has changed its queue for more than {}",
            self.cannot_use(),
            format_duration(limit)
        );
        Failure {
            hint: Some("lslocks shows that process, which is stopped or hangs".to_owned()),
            ..anyhow!(cause).into()
        }
    }

    fn lock_by(
        &self,
        wait: impl FnMut(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<Locked<'_>, Failure> {
        let tokens = self.atomic_file("token")?;
        let lock = tokens.lock(wait)?;
        Ok(Locked {
            lock_dir: self,
            tokens,
            _lock: lock,
        })
    }

    /// All entries, the oldest first.
    pub(super) fn present(&self) -> Result<Vec<Present>, Failure> {
        // An entry that has got its slot meanwhile has another name.
        for _ in 0..10 {
            let (present, vanished) = self.scan(false)?;
            if !vanished {
                return Ok(present);
            }
        }
        Ok(self.scan(false)?.0)
    }

    /// All entries, and whether one has ended since the names were read. `sweep`: removes the files of entries that have
    /// ended.
    fn scan(&self, sweep: bool) -> Result<(Vec<Present>, bool), Failure> {
        let names = list(&self.directory).with_context(|| self.cannot_use())?;
        let mut vanished = false;
        let mut present = Vec::new();
        for name in &names {
            if let Some(ticket) = EntryName::parse(name) {
                match self.inspect(ticket, sweep)? {
                    Inspected::Present(one) => present.push(one),
                    Inspected::Dead => {}
                    Inspected::Nobody => vanished = true,
                }
            }
        }
        if sweep {
            let owner_is_gone = |token| {
                !present
                    .iter()
                    .any(|one: &Present| one.ticket.token == token)
            };
            for name in &names {
                if cooled(name).is_some_and(owner_is_gone) {
                    self.remove(name);
                } else if is_unnumbered(name) {
                    self.sweep_unnumbered(name);
                } else if is_unfinished_lock(name) {
                    // A process that still needs it creates another one.
                    self.remove(name);
                }
            }
        }
        present.sort_by_key(|one| one.ticket);
        Ok((present, vanished))
    }

    fn inspect(&self, ticket: EntryName, sweep: bool) -> Result<Inspected, Failure> {
        let name = ticket.to_string();
        let Some(file) = self.open(&name)? else {
            return Ok(Inspected::Nobody);
        };
        let (held, cooling) = match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => (false, self.cooling_left(ticket)?),
            Err(Errno::WOULDBLOCK) => (true, None),
            Err(error) => return Err(self.not_told(&name, error)),
        };
        if !held && cooling.is_none() {
            if sweep {
                // A cooldown that is over belongs to an owner that has released the lock.
                if let (Ok(None), Ok(text)) = (self.open(&ticket.cooling()), self.text(&name, file))
                {
                    self.remember_dead(ticket, &text);
                }
                self.remove(&name);
                self.remove(&ticket.cooling());
            }
            return Ok(Inspected::Dead);
        }
        // The file is written once, when it is created.
        let status = fstat(&file).with_context(|| self.cannot_use())?;
        let nanoseconds = i64::try_from(status.st_mtime_nsec).unwrap_or(0);
        let made_at = (status.st_mtime * 1_000_000_000).saturating_add(nanoseconds);
        let record = Holder::parse(&self.text(&name, file)?);
        Ok(Inspected::Present(Present {
            ticket,
            record,
            cooling,
            made_at,
        }))
    }

    /// Removes an entry without a token whose owner died before it got one.
    fn sweep_unnumbered(&self, name: &str) {
        if let Ok(Some(file)) = self.open(name)
            && flock(&file, FlockOperation::NonBlockingLockShared).is_ok()
        {
            // An owner that has only just created it finds, after this unlock, that it is gone.
            self.remove(name);
        }
    }

    fn cooling_left(&self, ticket: EntryName) -> Result<Option<Duration>, Failure> {
        let name = ticket.cooling();
        let Some(file) = self.open(&name)? else {
            return Ok(None);
        };
        let text = self.text(&name, file)?;
        let boot = boot();
        let left = Cooldown::parse(&text).map(|cooling| cooling.left(&boot, clock::now()));
        Ok(left.filter(|left| !left.is_zero()))
    }

    /// Opens a file for reading; `None` if it does not exist.
    pub(super) fn open(&self, name: &str) -> Result<Option<File>, Failure> {
        // Without waiting: a pipe may have no writer yet.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.not_told(name, error)),
        }
    }

    fn text(&self, name: &str, file: File) -> Result<Vec<u8>, Failure> {
        let mut text = Vec::new();
        let read = file.take(MAX_FILE_BYTES).read_to_end(&mut text);
        read.with_context(|| format!("cannot read '{}'", self.shown(name)))?;
        Ok(text)
    }

    fn not_told(&self, name: &str, error: Errno) -> Failure {
        anyhow!(
            "cannot find out whether '{}' is held: {error}",
            self.shown(name)
        )
        .into()
    }

    /// Waits until that entry has ended or does not exist.
    pub(super) fn await_end(&self, ticket: EntryName) -> Result<(), Failure> {
        let name = ticket.to_string();
        if let Some(file) = self.open(&name)? {
            retry_on_intr(|| flock(&file, FlockOperation::LockShared))
                .map_err(|error| self.not_told(&name, error))?;
        }
        Ok(())
    }

    /// Waits to be the next process that checks for a free slot, in the kernel's order.
    pub(super) fn await_slots(&self) -> Result<OwnedFd, Failure> {
        Ok(self.atomic_file("slots")?.lock(wait)?)
    }

    /// Prepares a cooldown for `hold` from now on, which begins when the owner ends after a call of [`Self::cool`].
    pub(super) fn prepare_cooling(&self, ticket: EntryName, hold: Duration) -> Result<(), Failure> {
        let cooling = Cooldown::new(&boot(), clock::now(), hold);
        let file = ticket.prepared_cooling();
        let whole = self.atomic_file(&file)?;
        let tried = || format!("cannot write '{}'", self.shown(&file));
        let replaced = whole.replace_locked(cooling.to_json().as_bytes());
        replaced.with_context(tried)?;
        Ok(whole.sync_dir().with_context(tried)?)
    }

    /// Starts the prepared cooldown; returns whether any of it is left.
    pub(super) fn cool(&self, ticket: EntryName) -> bool {
        let (directory, prepared) = (&self.directory, ticket.prepared_cooling());
        let cooled = renameat(directory, prepared, directory, ticket.cooling())
            .and_then(|()| rustix::fs::fsync(directory));
        cooled.is_ok() && self.cooling_left(ticket).is_ok_and(|left| left.is_some())
    }

    /// Removes a file. If that fails, others sweep it, or it names a dead owner.
    pub(super) fn remove(&self, file: &str) {
        let _ = unlinkat(&self.directory, file, AtFlags::empty());
    }
}

/// The result of inspecting an entry's file.
enum Inspected {
    Present(Present),
    Dead,
    /// It does not exist any more.
    Nobody,
}

/// The lock for tokens, slots and sweeping.
pub(super) struct Locked<'a> {
    lock_dir: &'a LockDir,
    tokens: AtomicFile,
    _lock: OwnedFd,
}

impl Locked<'_> {
    /// All entries, the oldest first, after the files of ended ones were removed.
    pub(super) fn swept(&self) -> Result<Vec<Present>, Failure> {
        Ok(self.lock_dir.scan(true)?.0)
    }

    /// Gives the entry in `file` the next token, which is on disk before any other process sees it.
    pub(super) fn number(&self, file: &str, present: &[Present]) -> Result<EntryName, Failure> {
        let name = &self.lock_dir.name;
        let mut seen = token_file::read(&self.tokens, repair)?;
        let before = seen
            .highest(name)
            .max(present.last().map(|one| one.ticket.token));
        let FencingToken(before) = before.unwrap_or(FencingToken(0));
        let token = before.checked_add(1).map(FencingToken);
        let token = token.ok_or_else(|| {
            anyhow!(
                "cannot use '{}': there is no higher token",
                self.tokens.path().display()
            )
        })?;
        self.record(&mut seen, token)?;
        let ticket = EntryName { token, slot: None };
        self.rename(file, &ticket.to_string())?;
        Ok(ticket)
    }

    fn record(&self, seen: &mut HighestTokens, token: FencingToken) -> Result<(), Failure> {
        seen.set(&self.lock_dir.name, token);
        token_file::record(&self.tokens, seen)
    }

    /// Gives the entry a free slot, if there is one.
    pub(super) fn slot(
        &self,
        ticket: EntryName,
        slots: u16,
        present: &[Present],
    ) -> Result<Option<EntryName>, Failure> {
        let is_free = |slot: &u16| !present.iter().any(|one| one.ticket.slot == Some(*slot));
        let Some(slot) = (0..slots).find(is_free) else {
            return Ok(None);
        };
        let with_slot = EntryName {
            slot: Some(slot),
            ..ticket
        };
        self.rename(&ticket.to_string(), &with_slot.to_string())?;
        Ok(Some(with_slot))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let directory = &self.lock_dir.directory;
        renameat(directory, from, directory, to).map_err(|error| {
            let tried = format!("cannot make '{}'", self.lock_dir.shown(to));
            not_written(&tried, error)
        })
    }
}

fn is_would_block(failure: &Failure) -> bool {
    failure.error.downcast_ref() == Some(&Errno::WOULDBLOCK)
}

fn repair(why: &Unreadable) -> &'static str {
    match why {
        Unreadable::Version(_) => "use the newer dlock that wrote it",
        Unreadable::Foreign | Unreadable::Line(_) | Unreadable::Cut => {
            "restore it; or remove it, and set a number that is not below any token so far: dlock fence FILE --name NAME --token NUMBER"
        }
    }
}

/// Waits in the kernel for a lock that another process holds.
fn wait(lock: &OwnedFd) -> Result<(), Errno> {
    retry_on_intr(|| flock(lock, FlockOperation::LockExclusive))
}

fn boot() -> String {
    let text = std::fs::read_to_string(BOOT_ID_PATH).unwrap_or_default();
    text.trim_end().to_owned()
}
