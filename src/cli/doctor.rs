//! The options of `dlock doctor`, and the settings that it explains.
//! It must not know the checks, nor how the findings are shown.

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

/// The form of the messages does not matter to a lock.
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

/// The resolved options.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) timings: LeaseTimings,
    pub(crate) json: bool,
    pub(crate) settings: Vec<Origin>,
    /// Warnings about the settings.
    pub(crate) warnings: Vec<String>,
}

impl DoctorArgs {
    /// Resolves the options with the variables, the file and the defaults.
    pub(super) fn resolve(self, resolver: &mut Resolver) -> Result<Work, Failure> {
        let (ttl, grace) = lock::times(
            &resolver.layers,
            self.ttl.as_deref(),
            self.kill_after.as_deref(),
        )?;
        let settings = resolver.settings()?;
        let timings = LeaseTimings::new(ttl, grace);
        let options = Options {
            timings,
            json: self.json,
            settings: self.origins(resolver, &settings, timings),
            warnings: std::mem::take(&mut resolver.warnings),
        };
        Ok(Work::Doctor(settings, options))
    }

    /// Every setting that is set, for any sub-command, and the defaults of those that `dlock doctor` uses.
    fn origins(
        &self,
        resolver: &Resolver,
        effective: &Settings,
        timings: LeaseTimings,
    ) -> Vec<Origin> {
        let mut origins = Vec::new();
        for (option, ..) in settings() {
            if OUTPUT_OPTIONS.contains(&option.as_str()) {
                continue;
            }
            let flag = match option.as_str() {
                "ttl" => self.ttl.clone(),
                "kill-after" => self.kill_after.clone(),
                _ => flag(resolver.connection, &option),
            };
            let shown = shown(&option, resolver.layers.file(), effective, timings);
            origins.extend(origin(&resolver.layers, flag.as_deref(), &option, shown));
            if let ("password-file", Some(credentials)) = (&*option, &effective.credentials) {
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

/// The effective value of a setting, if its text is incomplete or secret.
fn shown(option: &str, file: &Path, effective: &Settings, timings: LeaseTimings) -> Option<String> {
    let path = |path: &Option<std::path::PathBuf>| Some(path.as_ref()?.display().to_string());
    match option {
        "endpoints" => {
            let all: Vec<String> = effective
                .endpoints
                .iter()
                .map(ToString::to_string)
                .collect();
            Some(all.join(","))
        }
        "cacert" => path(&effective.tls.cacert),
        "cert" => path(&effective.tls.cert),
        "key" => path(&effective.tls.key),
        // The text may contain the password.
        "user" => Some(effective.credentials.as_ref()?.user.clone()),
        "prefix" => Some(effective.prefix.clone()),
        "cluster-id" => effective.cluster_id.map(|id| id.to_string()),
        "connect-timeout" => Some(format_duration(effective.connect_timeout).to_string()),
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
