//! The machine, and the date of the measurements.
//! It must not know the figures.

use std::process::Command;
use std::time::SystemTime;

/// One sentence.
#[expect(clippy::disallowed_methods, reason = "the date, for people")]
pub(crate) fn description() -> String {
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name\t: "));
    let kernel = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Run on {}, on one machine with {cores} cores ({}), Linux {}; {}, {}.",
        date.split('T').next().unwrap_or_default(),
        model.unwrap_or("unknown"),
        kernel.release().to_string_lossy(),
        first_line("etcd", "--version"),
        first_line("flock", "--version"),
    )
}

fn first_line(program: &str, flag: &str) -> String {
    let output = Command::new(program).arg(flag).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    text.lines().next().unwrap_or(program).to_owned()
}
