//! The messages of dlock on stderr or in syslog: one line, or a line and its hint, in one write that never blocks.
//! It must not know who says it, nor why.

use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde::Serialize;
use serde_json::{Map, Value};
pub(crate) use tracing::Level;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry;

use crate::core::text::{escaped, truncate};
use crate::output::events;
use crate::output::exit::Failure;
use crate::sys::clock;
use crate::sys::syslog::{self, Severity};

/// `PIPE_BUF` of Linux, `pipe(7)`: a longer write may be torn, or block halfway.
const MAX_LINE_BYTES: usize = 4096;

/// Version of the JSON of an event.
const VERSION: u32 = 1;

/// Rooms of dlock that log.
const ROOMS: [&str; 2] = ["commands", "etcd"];

/// Libraries that log; `cargo tree -e normal -i tracing --depth 1` lists them.
const LIBRARIES: [&str; 4] = ["h2", "hyper_util", "tonic", "tower"];

/// Target of warnings that `--quiet` keeps.
pub(crate) const KEPT: &str = "dlock::kept";

/// The messages that dlock writes, and their form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LogFormat {
    pub(crate) filter: Targets,
    /// One JSON object per line instead of text.
    pub(crate) json: bool,
}

/// Set by [`init`]; a failure before that is written as text.
static JSON: AtomicBool = AtomicBool::new(false);

/// Set once the messages are written to syslog.
static SYSLOG: AtomicBool = AtomicBool::new(false);

/// A line stands on the terminal that the next one must not follow on: see [`draw`].
static LIVE_LINE_DRAWN: AtomicBool = AtomicBool::new(false);

/// To the beginning of the line, and nothing behind it (`console_codes(4)`).
pub(crate) const ERASE: &str = "\r\u{1b}[K";

/// Writes tracing's events to stderr. Call it once; a second call changes nothing.
pub(crate) fn init(format: LogFormat) {
    let subscriber = registry().with(format.filter).with(LineLayer(write_record));
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        JSON.store(format.json, Relaxed);
    }
}

/// The messages of dlock up to `level`, and none of the libraries.
pub(crate) fn level_filter(level: impl Into<LevelFilter>) -> Targets {
    Targets::new().with_target("dlock", level)
}

/// The errors of dlock, and the warnings of the target [`KEPT`].
pub(crate) fn quiet_filter() -> Targets {
    level_filter(Level::ERROR).with_target(KEPT, Level::WARN)
}

/// The filter of `DLOCK_LOG`; `level` is for the rooms that the directives do not cover.
pub(crate) fn parse_filter(directives: &str, level: Level) -> Result<Targets, String> {
    let is_wrong = |one: &str| one.trim().is_empty() || one.contains('[');
    if directives.split(',').any(is_wrong) {
        return Err("expected LEVEL or TARGET=LEVEL".to_owned());
    }
    let invalid = |error: ParseError| error.to_string();
    let parsed: Targets = directives.replace(' ', "").parse().map_err(invalid)?;
    let own = parsed.default_level().unwrap_or(level.into());
    parsed
        .iter()
        .try_fold(level_filter(own), |filter, (target, level)| {
            Ok(filter.with_target(module_path(target)?, level))
        })
}

/// The module path that a target of `DLOCK_LOG` means: that of a room of dlock, or of a library.
fn module_path(target: &str) -> Result<String, String> {
    let path = target.strip_prefix("dlock::").unwrap_or(target);
    let first = path.split("::").next().unwrap_or_default();
    if ROOMS.contains(&first) {
        Ok(format!("dlock::{path}"))
    } else if path == "dlock" || LIBRARIES.contains(&first) {
        Ok(path.to_owned())
    } else {
        let known = [&ROOMS[..], &LIBRARIES].concat().join(", ");
        Err(format!("'{target}' is neither a level nor one of {known}"))
    }
}

/// From now on a panic is said on stderr, and then `end` ends the process.
pub(crate) fn on_panic(end: fn() -> !) {
    std::panic::set_hook(Box::new(move |panic| {
        // The usual hook writes without asking whether anybody reads.
        let message = format!("this is a bug in dlock: {panic}").replace(":\n", ": ");
        write_record(&LogRecord::new(Level::ERROR, events::BUG, message));
        end()
    }));
}

/// Says why dlock could not do its work.
pub(crate) fn log_failure(failure: &Failure) {
    let message = format!("{:#}", failure.error);
    let mut said = LogRecord::new(Level::ERROR, events::FAILED, message);
    said.add("exit_code", failure.exit.code().into());
    if let Some(hint) = &failure.hint {
        said.add("hint", hint.as_str().into());
    }
    write_record(&said);
}

/// Whether the lines are for a program to read.
pub(crate) fn speaks_json() -> bool {
    JSON.load(Relaxed)
}

/// From now on the messages are written to syslog instead of stderr.
pub(crate) fn use_syslog() {
    SYSLOG.store(true, Relaxed);
}

fn write_record(said: &LogRecord) {
    let mut line = if speaks_json() {
        said.json()
    } else {
        said.text()
    };
    if SYSLOG.load(Relaxed) {
        for line in line.lines() {
            // syslog shows the name of the program itself.
            let text = line.strip_prefix("dlock: ").unwrap_or(line);
            syslog::send(severity(said.level), text);
        }
        return;
    }
    if LIVE_LINE_DRAWN.swap(false, Relaxed) {
        line.insert_str(0, ERASE);
    }
    write_line(io::stderr().as_fd(), line.as_bytes());
}

fn severity(level: Level) -> Severity {
    match level {
        Level::ERROR => Severity::Error,
        Level::WARN => Severity::Warning,
        Level::INFO => Severity::Info,
        _ => Severity::Debug,
    }
}

/// Writes a piece of a line that stays open, so that the next one erases it; an empty one has been erased. Like
/// everything that is said it is dropped if it cannot be written at once.
pub(crate) fn draw(text: &str) {
    LIVE_LINE_DRAWN.store(!text.trim_start_matches(ERASE).is_empty(), Relaxed);
    write_line(io::stderr().as_fd(), text.as_bytes());
}

/// Passes on each event as a record. dlock has no spans; those of the libraries are not written.
struct LineLayer<W>(W);

impl<S: Subscriber, W: Fn(&LogRecord) + 'static> Layer<S> for LineLayer<W> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut record = LogRecord::new(*metadata.level(), events::DEBUG, String::new());
        event.record(&mut record);
        if !metadata.target().starts_with("dlock") {
            record = record.into_library(metadata.target());
        }
        debug_assert!(
            record
                .fields
                .keys()
                .all(|key| events::has(&record.event, key)),
            "undocumented: {} {:?}",
            record.event,
            record.fields
        );
        self.0(&record);
    }
}

/// One thing said.
struct LogRecord {
    level: Level,
    /// One of [`events`].
    event: String,
    message: String,
    fields: Map<String, Value>,
}

impl LogRecord {
    fn new(level: Level, event: &str, message: String) -> Self {
        Self {
            level,
            event: event.to_owned(),
            message,
            fields: Map::new(),
        }
    }

    fn add(&mut self, field: &str, value: Value) {
        self.fields.insert(field.to_owned(), value);
    }

    /// The record of a library's event: its fields are in the message.
    fn into_library(self, target: &str) -> Self {
        let mut message = format!("{target}: {}", self.message);
        for (name, value) in &self.fields {
            let _ = write!(message, " {name}={value}");
        }
        let mut record = Self::new(self.level, events::LIBRARY, message);
        record.add("target", target.into());
        record
    }

    /// `dlock: message`, which says all that the fields do, and `hint: ...` on a line of its own.
    fn text(&self) -> String {
        shortest(|limit| {
            let mut text = format!("dlock: {}", fit(&self.message, limit));
            if let Some(hint) = self.fields.get("hint").and_then(Value::as_str) {
                text = format!("{text}\nhint: {}", fit(hint, limit));
            }
            text
        })
    }

    fn json(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            version: u32,
            ts: &'a str,
            level: &'a str,
            event: &'a str,
            message: String,
            fields: Map<String, Value>,
        }
        let ts = clock::wall_clock();
        shortest(|limit| {
            let short = |value: &Value| {
                value
                    .as_str()
                    .map_or_else(|| value.clone(), |text| fit(text, limit).into())
            };
            let fields = self
                .fields
                .iter()
                .map(|(name, value)| (name.clone(), short(value)));
            let line = Line {
                version: VERSION,
                ts: &ts,
                level: &self.level.as_str().to_ascii_lowercase(),
                event: &self.event,
                message: fit(&self.message, limit),
                fields: fields.collect(),
            };
            // Texts and numbers always serialise.
            serde_json::to_string(&line).unwrap_or_default()
        })
    }
}

/// The line with a newline, its texts cut so far that it goes into one write.
fn shortest(line: impl Fn(usize) -> String) -> String {
    let mut limit = MAX_LINE_BYTES;
    loop {
        let mut line = line(limit);
        if line.len() < MAX_LINE_BYTES || limit == 0 {
            line.push('\n');
            return line;
        }
        limit /= 2;
    }
}

/// `text` on one line of at most about `limit` bytes. Names and records come from strangers, so
/// nothing in it may steer a terminal.
fn fit(text: &str, limit: usize) -> String {
    let text = escaped(text.trim_end());
    let shown = truncate(&text, limit);
    if shown.len() == text.len() {
        return text;
    }
    format!("{shown}...")
}

impl Visit for LogRecord {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = value,
            "event" => self.event = value,
            name => self.add(name, value.into()),
        }
    }
}

/// Writes the line if that is possible at once, else drops it: the guard's deadline and the renewals
/// matter more than what is said about them. Nothing is done about errors, there is nobody to tell.
///
/// The descriptor itself must stay blocking, as it shares its flags with the command's stderr. A pipe or
/// a terminal is therefore opened anew for every line; keeping that descriptor would be dangerous, since
/// `guard::launch` closes all that are above stderr, and its number might come back as a socket to etcd.
fn write_line(fd: BorrowedFd<'_>, line: &[u8]) {
    let kind = fstat(fd).map(|status| FileType::from_raw_mode(status.st_mode));
    let _ = match kind {
        Ok(FileType::Socket) => send(fd, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        Ok(FileType::Fifo | FileType::CharacterDevice) => write_anew(fd, line),
        Ok(_) => rustix::io::write(fd, line),
        Err(error) => Err(error),
    };
}

fn write_anew(fd: BorrowedFd<'_>, line: &[u8]) -> Result<usize, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(own) => rustix::io::write(own, line),
        // A pipe that nobody reads.
        Err(Errno::NXIO) => Err(Errno::NXIO),
        // No /proc, or a terminal of another user after su(1).
        Err(_) => write_if_ready(fd, line),
    }
}

/// A pipe that is ready takes `PIPE_BUF` bytes, unless another writer comes between.
fn write_if_ready(fd: BorrowedFd<'_>, line: &[u8]) -> Result<usize, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&at_once))?;
    if !fds[0].revents().contains(PollFlags::OUT) {
        return Err(Errno::AGAIN);
    }
    rustix::io::write(fd, &line[..line.len().min(MAX_LINE_BYTES)])
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use anyhow::anyhow;
    use rustix::fs::{fcntl_getfl, fcntl_setfl};
    use rustix::pipe::pipe;

    use super::*;
    use crate::output::exit::OrFail;

    /// Fails instead of hanging the test run when the writer blocks.
    fn at_once(work: impl FnOnce() + Send + 'static) {
        let (done, waits) = mpsc::channel();
        let worker = thread::spawn(move || {
            work();
            let _ = done.send(());
        });
        assert_ne!(
            waits.recv_timeout(Duration::from_secs(20)),
            Err(mpsc::RecvTimeoutError::Timeout),
            "it blocks"
        );
        worker.join().unwrap();
    }

    fn fill(fd: BorrowedFd<'_>) {
        let flags = fcntl_getfl(fd).unwrap();
        fcntl_setfl(fd, flags | OFlags::NONBLOCK).unwrap();
        while rustix::io::write(fd, &[b'x'; 4096]).is_ok() {}
        while rustix::io::write(fd, b"x").is_ok() {}
        fcntl_setfl(fd, flags).unwrap();
    }

    #[test]
    fn a_pipe_gets_whole_lines_and_keeps_its_flags() {
        at_once(|| {
            let (reader, writer) = pipe().unwrap();
            write_line(writer.as_fd(), b"one\n");
            write_line(writer.as_fd(), b"two\n");
            assert!(!fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
            drop(writer);
            let mut text = String::new();
            File::from(reader).read_to_string(&mut text).unwrap();
            assert_eq!(text, "one\ntwo\n");
        });
    }

    #[test]
    fn a_full_pipe_loses_the_line() {
        at_once(|| {
            let (reader, writer) = pipe().unwrap();
            fill(writer.as_fd());
            write_line(writer.as_fd(), b"lost\n");
            let _ = write_if_ready(writer.as_fd(), b"lost\n");
            let mut some = [0; 4096];
            let _ = rustix::io::read(&reader, &mut some).unwrap();
            write_line(writer.as_fd(), b"kept\n");
            drop(writer);
            let mut text = String::new();
            File::from(reader).read_to_string(&mut text).unwrap();
            assert!(text.ends_with("xkept\n") && !text.contains("lost"));
        });
    }

    #[test]
    fn nobody_reads() {
        at_once(|| {
            let (reader, writer) = pipe().unwrap();
            drop(reader);
            write_line(writer.as_fd(), b"lost\n");
            let _ = write_if_ready(writer.as_fd(), b"lost\n");
            let (one, other) = UnixStream::pair().unwrap();
            drop(other);
            write_line(one.as_fd(), b"lost\n");
        });
    }

    #[test]
    fn a_full_disk_and_a_device() {
        at_once(|| {
            for device in ["/dev/full", "/dev/null"] {
                let device = OpenOptions::new().write(true).open(device).unwrap();
                write_line(device.as_fd(), b"lost\n");
                let _ = write_if_ready(device.as_fd(), b"lost\n");
            }
            let unwritable = File::open("/dev/null").unwrap();
            write_line(unwritable.as_fd(), b"lost\n");
        });
    }

    #[test]
    fn a_file_is_appended_to() {
        let path = std::env::temp_dir().join(format!("dlock-log-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        write_line(file.as_fd(), b"one\n");
        write_line(file.as_fd(), b"two\n");
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(text, "one\ntwo\n");
    }

    #[test]
    fn a_full_socket_loses_the_line() {
        at_once(|| {
            let (writer, mut reader) = UnixStream::pair().unwrap();
            write_line(writer.as_fd(), b"one\n");
            fill(writer.as_fd());
            write_line(writer.as_fd(), b"lost\n");
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert!(text.starts_with("one\nx") && !text.contains("lost"));
        });
    }

    fn said(message: &str, hint: &str) -> LogRecord {
        let mut said = LogRecord::new(Level::WARN, "busy", message.to_owned());
        said.add("hint", hint.into());
        said.add("position", 2.into());
        said
    }

    #[test]
    fn text_has_one_line_and_a_hint() {
        let said = said("lock 'a\u{1b}[2J\nb' is busy", "wait\r\n");
        assert_eq!(
            said.text(),
            "dlock: lock 'a\\u{1b}[2J\\nb' is busy\nhint: wait\n"
        );
    }

    #[test]
    fn json_has_one_schema() {
        let line: Value = serde_json::from_str(&said("x \"y\"", "z").json()).unwrap();
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            ["event", "fields", "level", "message", "ts", "version"]
        );
        assert_eq!(line["message"], "x \"y\"");
        assert_eq!(
            (&line["level"], &line["event"]),
            (&"warn".into(), &"busy".into())
        );
        assert_eq!(
            line["fields"],
            serde_json::json!({"hint": "z", "position": 2})
        );
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_long_line_still_goes_into_one_write() {
        for long in [
            "x".repeat(9000),
            "\u{1}".repeat(9000),
            "\"".repeat(9000),
            "漢".repeat(9000),
        ] {
            let said = said(&long, &long);
            assert!(said.text().len() <= MAX_LINE_BYTES);
            assert_eq!(said.text().lines().count(), 2);
            let json = said.json();
            assert!(json.len() <= MAX_LINE_BYTES && json.lines().count() == 1);
            assert!(serde_json::from_str::<Value>(&json).is_ok());
        }
    }

    /// Logs an event of each level from each target, and returns those that `filter` lets pass.
    fn passed(filter: Targets) -> Vec<String> {
        let (sender, receiver) = mpsc::channel();
        let layer = LineLayer(move |record: &LogRecord| {
            let _ = sender.send(format!("{} {}", record.level, record.message));
        });
        tracing::subscriber::with_default(registry().with(filter).with(layer), || {
            tracing::error!(target: "dlock", "dlock");
            tracing::info!(target: "dlock", event = "lost", lock = "x", "dlock");
            tracing::info!(target: "dlock::etcd::cluster", "cluster");
            tracing::debug!(target: "dlock::etcd::session", "session");
            tracing::debug!(target: "dlock::commands::run", "run");
            tracing::error!(target: "h2::client", stream = 3, name = "x", "sent");
        });
        receiver.iter().collect()
    }

    #[test]
    fn the_level_and_the_target_decide() {
        assert_eq!(
            passed(level_filter(Level::INFO)),
            ["ERROR dlock", "INFO dlock", "INFO cluster"]
        );
    }

    #[test]
    fn directives_choose_a_level_for_each_target() {
        let passed = |directives| passed(parse_filter(directives, Level::WARN).unwrap());
        let all = [
            "ERROR dlock",
            "INFO dlock",
            "INFO cluster",
            "DEBUG session",
            "DEBUG run",
        ];
        assert_eq!(passed("debug"), all);
        assert_eq!(passed("dlock=TRACE, h2=off"), all);
        assert_eq!(passed("etcd=debug,info"), all[..4]);
        assert_eq!(passed("info,dlock::etcd::session=debug"), all[..4]);
        assert_eq!(passed("etcd"), [all[0], all[2], all[3]]);
        assert_eq!(passed("off,etcd::cluster=3"), [all[2]]);
        assert_eq!(
            passed("off,h2=debug"),
            ["ERROR h2::client: sent name=\"x\" stream=3"]
        );
    }

    #[test]
    fn an_invalid_directive_is_an_error() {
        let error = |directives| parse_filter(directives, Level::WARN).unwrap_err();
        assert_eq!(
            error("etcd=debug,ectd=info"),
            "'ectd' is neither a level nor one of commands, etcd, h2, hyper_util, tonic, tower"
        );
        assert!(error("debgu").starts_with("'debgu' is neither a level"));
        assert!(error("etcd=loud").contains("expected one of \"off\""));
        assert!(error("etcd=info=debug").contains("too many '='"));
        for text in ["info,", "etcd[{lock}]=debug", "[span]=debug", " "] {
            assert_eq!(error(text), "expected LEVEL or TARGET=LEVEL", "{text}");
        }
    }

    #[test]
    fn a_failure_is_said_with_its_causes() {
        let failure =
            Err::<(), _>(anyhow!("no such file").context("cannot read 'x'")).or_hint("create it");
        // Only that it does not panic: stderr is the test runner's.
        log_failure(&failure.unwrap_err());
    }
}
