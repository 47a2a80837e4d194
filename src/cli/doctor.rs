//! The words of `dlock doctor`, and all settings that it is to explain.
//! It must not know what is examined, nor how the findings are shown.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Args, ValueHint};

use super::connection::Connection;
use super::{Resolver, Work, lock, settings};
use crate::config::Settings;
use crate::config::origins::{Origin, origin};
use crate::core::text::format_duration;
use crate::core::time::LeaseTimings;
use crate::output::exit::Failure;

/// How dlock talks decides nothing about a lock.
const OUTPUT_OPTIONS: [&str; 3] = ["verbose", "quiet", "log-format"];

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// The TTL to judge by, as dlock run has it; default 30s
    #[arg(long, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    ttl: Option<OsString>,

    /// The grace to judge by, as dlock run has it; default 5s, or a fifth of the TTL if that is less
    #[arg(short, long, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    kill_after: Option<OsString>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What the words mean.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) timings: LeaseTimings,
    pub(crate) json: bool,
    pub(crate) settings: Vec<Origin>,
    /// What is odd about the settings.
    pub(crate) warnings: Vec<String>,
}

impl DoctorArgs {
    /// Puts the words together with the variables, the file and the defaults.
    pub(super) fn resolve(self, asked: &mut Resolver) -> Result<Work, Failure> {
        let (ttl, grace) = lock::times(
            &asked.layers,
            self.ttl.as_deref(),
            self.kill_after.as_deref(),
        )?;
        let settings = asked.settings()?;
        let timings = LeaseTimings::new(ttl, grace);
        let options = Options {
            timings,
            json: self.json,
            settings: self.origins(asked, &settings, timings),
            warnings: std::mem::take(&mut asked.warnings),
        };
        Ok(Work::Doctor(settings, options))
    }

    /// Every setting that is set, for whichever sub-command, and the defaults of those that count here.
    fn origins(&self, asked: &Resolver, resolved: &Settings, timings: LeaseTimings) -> Vec<Origin> {
        let mut origins = Vec::new();
        for (option, ..) in settings() {
            if OUTPUT_OPTIONS.contains(&option.as_str()) {
                continue;
            }
            let flag = match option.as_str() {
                "ttl" => self.ttl.clone(),
                "kill-after" => self.kill_after.clone(),
                _ => flag(asked.connection, &option),
            };
            let shown = shown(&option, asked.layers.file(), resolved, timings);
            origins.extend(origin(&asked.layers, flag.as_deref(), &option, shown));
            if let ("password-file", Some(credentials)) = (&*option, &resolved.credentials) {
                origins.push(Origin {
                    option: "password".to_owned(),
                    value: "(not shown)".to_owned(),
                    source: credentials.source.clone(),
                });
            }
        }
        origins
    }
}

/// The value of a setting as it counts, where its text does not say it or says too much.
fn shown(option: &str, file: &Path, resolved: &Settings, timings: LeaseTimings) -> Option<String> {
    let path = |path: &Option<std::path::PathBuf>| Some(path.as_ref()?.display().to_string());
    match option {
        "endpoints" => {
            let all: Vec<String> = resolved.endpoints.iter().map(ToString::to_string).collect();
            Some(all.join(","))
        }
        "cacert" => path(&resolved.tls.cacert),
        "cert" => path(&resolved.tls.cert),
        "key" => path(&resolved.tls.key),
        // Its text may hold the password.
        "user" => Some(resolved.credentials.as_ref()?.user.clone()),
        "prefix" => Some(resolved.prefix.clone()),
        "cluster-id" => resolved.cluster_id.map(|id| id.to_string()),
        "connect-timeout" => Some(format_duration(resolved.connect_timeout).to_string()),
        "ttl" => Some(format_duration(timings.ttl()).to_string()),
        "kill-after" => Some(format_duration(timings.grace()).to_string()),
        "config" if file == Path::new("") => Some("none".to_owned()),
        "config" => Some(file.display().to_string()),
        _ => None,
    }
}

fn flag(connection: &Connection, option: &str) -> Option<OsString> {
    match option {
        "endpoints" if connection.endpoints.is_empty() => None,
        "endpoints" => Some(connection.endpoints.join(OsStr::new(","))),
        "cacert" => connection.cacert.clone(),
        "cert" => connection.cert.clone(),
        "key" => connection.key.clone(),
        "user" => connection.user.clone(),
        "password-file" => connection.password_file.clone(),
        "prefix" => connection.prefix.clone(),
        "cluster-id" => connection.cluster_id.clone(),
        "connect-timeout" => connection.connect_timeout.clone(),
        "config" => connection.config.clone(),
        _ => None,
    }
}
