//! The options of `dlock doctor`, and the settings that it explains.
//! It must not know the checks, nor how the findings are shown.

use std::ffi::OsString;
use std::path::Path;

use clap::{Args, ValueHint};

use super::{Resolver, Work, local, lock};
use crate::config::Settings;
use crate::config::backend::{BackendConfig, BackendKind};
use crate::config::exposure::SettingWarning;
use crate::config::layers::Layers;
use crate::config::origins::{Origin, origin};
use crate::config::setting::{Group, Setting};
use crate::core::text::format_duration;
use crate::core::time::LeaseTimings;
use crate::output::exit::Failure;

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Judge the latency for this TTL [default: 30s]
    ///
    /// The TTL of dlock run, from 5s to 24h.
    #[arg(long, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    ttl: Option<OsString>,

    /// Judge it for this --kill-after [default: 5s]
    ///
    /// The default is a fifth of the TTL if that is less than 5s.
    #[arg(short, long, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    kill_after: Option<OsString>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    local: local::LocalArgs,
}

/// The resolved options.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) timings: LeaseTimings,
    pub(crate) json: bool,
    pub(crate) settings: Vec<Origin>,
    /// Warnings about the settings.
    pub(crate) warnings: Vec<SettingWarning>,
}

impl DoctorArgs {
    /// Resolves the options with the variables, the file and the defaults.
    pub(super) fn resolve(self, resolver: &mut Resolver) -> Result<Work, Failure> {
        let backend = local::resolve(resolver);
        let layers = &resolver.layers;
        let (ttl, grace) = lock::times(layers, BackendKind::of(&backend))?;
        let (backend, timings) = (backend?, LeaseTimings::new(ttl, grace));
        let options = Options {
            timings,
            json: self.json,
            settings: origins(layers, &backend, timings),
            warnings: std::mem::take(&mut resolver.warnings),
        };
        Ok(Work::Doctor(backend, options))
    }
}

/// Every setting that is set, for any sub-command, and the defaults of those that `dlock doctor` uses. Those of the connection
/// to etcd do not matter to a local lock.
fn origins(layers: &Layers, backend: &BackendConfig, timings: LeaseTimings) -> Vec<Origin> {
    let mut origins = Vec::new();
    for setting in Setting::ALL.iter().copied() {
        let effective = match (setting.group(), backend) {
            (Group::Output, _) | (Group::Connection, BackendConfig::Local(_)) => continue,
            (_, BackendConfig::Etcd(settings)) => settings,
            (_, BackendConfig::Local(directory)) => {
                let shown = match setting {
                    Setting::Local => Some(directory.display().to_string()),
                    Setting::Config => Some(shown_file(layers.file())),
                    _ => None,
                };
                origins.extend(origin(layers, setting, shown));
                continue;
            }
        };
        let shown = shown(setting, layers.file(), effective, timings);
        origins.extend(origin(layers, setting, shown));
        if let (Setting::PasswordFile, Some(credentials)) = (setting, &effective.credentials) {
            origins.push(Origin {
                option: "password",
                value: "(not shown)".to_owned(),
                source: credentials.source.clone(),
            });
        }
    }
    origins
}

/// The effective value of a setting, if its text is incomplete or secret.
fn shown(
    setting: Setting,
    file: &Path,
    effective: &Settings,
    timings: LeaseTimings,
) -> Option<String> {
    let path = |path: &Option<std::path::PathBuf>| Some(path.as_ref()?.display().to_string());
    match setting {
        Setting::Endpoints => {
            let all: Vec<String> = effective
                .endpoints
                .iter()
                .map(ToString::to_string)
                .collect();
            Some(all.join(","))
        }
        Setting::Cacert => path(&effective.tls.cacert),
        Setting::Cert => path(&effective.tls.cert),
        Setting::Key => path(&effective.tls.key),
        Setting::Prefix => Some(effective.prefix.clone()),
        Setting::ClusterId => effective.cluster_id.map(|id| id.to_string()),
        Setting::ConnectTimeout => Some(format_duration(effective.connect_timeout()).to_string()),
        Setting::Ttl => Some(format_duration(timings.ttl()).to_string()),
        Setting::KillAfter => Some(format_duration(timings.grace()).to_string()),
        Setting::Config => Some(shown_file(file)),
        _ => None,
    }
}

/// The configuration file.
fn shown_file(file: &Path) -> String {
    if file == Path::new("") {
        return "none".to_owned();
    }
    file.display().to_string()
}
