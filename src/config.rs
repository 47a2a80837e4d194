//! The settings of the connection to etcd, from flags, variables and file, checked.
//! It must not know how a connection is made.

pub(crate) mod backend;
pub(crate) mod credentials;
pub(crate) mod duration;
pub(crate) mod endpoint;
mod etcdctl;
pub(crate) mod exposure;
pub(crate) mod file;
pub(crate) mod layers;
pub(crate) mod origins;
pub(crate) mod secret;
pub(crate) mod setting;

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};

use self::credentials::Credentials;
use self::endpoint::Endpoint;
use self::exposure::{SettingWarning, TrustFile};
use self::layers::{Layers, SettingValue, Source};
use self::setting::Setting;
use crate::core::cluster_id::ClusterId;
use crate::core::keys;
use crate::core::name::PREFIX;
use crate::core::request::WaitPolicy;
use crate::output::exit::{Failure, OrFail};

pub(crate) const DEFAULT_ENDPOINTS: &str = "127.0.0.1:2379";
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const NO_WAIT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_hours(24);

/// Settings of the connection to etcd.
pub(crate) struct Settings {
    /// Never empty, no duplicates, all of one scheme.
    pub(crate) endpoints: Vec<Endpoint>,
    /// The source of the endpoints; `None` if they are the built-in default.
    pub(crate) endpoints_source: Option<String>,
    /// The endpoints of other machines for which http was assumed, if any was given without a scheme.
    pub(crate) assumed_http: Vec<String>,
    pub(crate) tls: Tls,
    pub(crate) credentials: Option<Credentials>,
    /// Ends in a slash.
    pub(crate) prefix: String,
    /// The only cluster whose answers count; `None` if not set.
    pub(crate) cluster_id: Option<ClusterId>,
    /// The limit for reaching etcd, if it is set.
    pub(crate) connect_timeout: Option<Duration>,
}

impl Settings {
    /// The limit for reaching etcd.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT)
    }

    /// The time that etcd has for its first answer to a request for a lock. A run that does not wait for a lock does not
    /// wait long for etcd either, unless the limit is set.
    pub(crate) fn first_answer_limit(&self, wait_policy: WaitPolicy) -> Duration {
        match wait_policy {
            WaitPolicy::Timeout(wait) => wait.min(self.connect_timeout()),
            WaitPolicy::NoWait => self.connect_timeout.unwrap_or(NO_WAIT_CONNECT_TIMEOUT),
            WaitPolicy::Forever => self.connect_timeout(),
        }
    }
}

/// PEM files. Every connection reads them again, since certificates are renewed during a long job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) cacert: Option<PathBuf>,
    /// Present if and only if `key` is.
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// The settings; those that work and are not safe go to `warnings`.
pub(crate) fn resolve(
    layers: &Layers,
    warnings: &mut Vec<SettingWarning>,
) -> Result<Settings, Failure> {
    let tls = tls(layers, warnings)?;
    let any_tls = tls != Tls::default();
    let prefix = layers.parse(Setting::Prefix, parse_prefix)?;
    let cluster_id = layers.parse(Setting::ClusterId, str::parse)?;
    let connect_timeout = layers.parse(Setting::ConnectTimeout, parse_connect_timeout)?;
    let given = layers.find(Setting::Endpoints);
    let endpoints = endpoints(layers, any_tls)?;
    etcdctl::refuse_unsupported(layers, &endpoints)?;
    let exposed = exposed(&endpoints);
    let credentials = credentials::resolve(layers, warnings)?;
    refuse_cleartext(layers, credentials.as_ref(), &exposed)?;
    let assumed = |it: &SettingValue| endpoint::lacks_scheme(&it.text.to_string_lossy());
    let assumed_http = if given.as_ref().is_some_and(assumed) {
        exposed
    } else {
        Vec::new()
    };
    Ok(Settings {
        endpoints,
        endpoints_source: given.map(|found| found.source.to_string()),
        assumed_http,
        tls,
        credentials,
        prefix: prefix.unwrap_or_else(|| PREFIX.to_owned()),
        cluster_id,
        connect_timeout,
    })
}

fn endpoints(layers: &Layers, tls: bool) -> Result<Vec<Endpoint>, Failure> {
    let found = layers.find(Setting::Endpoints);
    if let (None, Some(required)) = (&found, layers.find_switch(Setting::RequireConfig)?) {
        return Err(anyhow!(
            "no endpoints are set, and {} forbids the built-in default '{DEFAULT_ENDPOINTS}'",
            required.source
        ))
        .or_hint("set --endpoints, DLOCK_ENDPOINTS or endpoints in the configuration file; dlock doctor shows which file is read");
    }
    let text = match &found {
        Some(found) => found
            .text
            .to_str()
            .ok_or_else(|| anyhow!("cannot use {found}: not UTF-8 text"))?,
        None => DEFAULT_ENDPOINTS,
    };
    let list = endpoint::parse_list(text, tls);
    // The error does not repeat the list: it may contain a password.
    let source = found.map_or(Source::Flag("endpoints"), |found| found.source);
    Ok(list.map_err(|error| anyhow!("cannot use {source}: {error}"))?)
}

/// The endpoints to which the network can listen.
pub(crate) fn exposed(endpoints: &[Endpoint]) -> Vec<String> {
    let exposed = endpoints.iter().filter(|it| !it.is_private());
    exposed.map(ToString::to_string).collect()
}

/// Refuses to send a password to another machine without encryption.
fn refuse_cleartext(
    layers: &Layers,
    credentials: Option<&Credentials>,
    exposed: &[String],
) -> Result<(), Failure> {
    let allowed = layers.find_switch(Setting::AllowCleartext)?;
    match (credentials, exposed.first(), allowed) {
        (Some(credentials), Some(endpoint), None) => Err(anyhow!(
            "the password of '{}' would go to '{endpoint}' without encryption",
            credentials.user
        ))
        .or_hint("write https://, or accept that everybody on the way can read it: --allow-cleartext or DLOCK_ALLOW_CLEARTEXT=1"),
        _ => Ok(()),
    }
}

fn tls(layers: &Layers, warnings: &mut Vec<SettingWarning>) -> Result<Tls, Failure> {
    let cacert = layers.find(Setting::Cacert);
    let cert = layers.find(Setting::Cert);
    let key = layers.find(Setting::Key);
    let alone = match (&cert, &key) {
        (Some(cert), None) => Some((cert, "key")),
        (None, Some(key)) => Some((key, "cert")),
        _ => None,
    };
    if let Some((found, other)) = alone {
        return Err(anyhow!("cannot use {found} without --{other}"))
            .or_hint("a client certificate needs its private key, and the key its certificate");
    }
    let mut path = |found: Option<SettingValue>, kind| {
        found
            .map(|found| readable(&found, kind, warnings))
            .transpose()
    };
    Ok(Tls {
        cacert: path(cacert, TrustFile::Cacert)?,
        cert: path(cert, TrustFile::Cert)?,
        key: path(key, TrustFile::Key)?,
    })
}

/// The path, after one byte was read: an error now is better than in the middle of a job.
fn readable(
    found: &SettingValue,
    kind: TrustFile,
    warnings: &mut Vec<SettingWarning>,
) -> Result<PathBuf, Failure> {
    let path = found.path();
    let mut read = || {
        let mut file = fs::File::open(&path)?;
        kind.check(&path, &file.metadata()?, warnings);
        file.read(&mut [0])
    };
    match read() {
        Ok(0) => Err(anyhow!("cannot use {found}: the file is empty").into()),
        Ok(_) => Ok(path),
        Err(error) => Err(error).with_context(|| format!("cannot read {found}"))?,
    }
}

fn parse_prefix(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a prefix must not be empty".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("a prefix must not contain control characters".to_owned());
    }
    let slash = if text.ends_with('/') { "" } else { "/" };
    let prefix = format!("{text}{slash}");
    if let Some((outer, kind)) = keys::kind_of(&prefix) {
        return Err(format!(
            "keys under '{outer}' that end with '{kind}/' are those of locks with the prefix '{outer}': give that one, or another"
        ));
    }
    Ok(prefix)
}

fn parse_connect_timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration::parse(text)?;
    if timeout.is_zero() || timeout > MAX_CONNECT_TIMEOUT {
        return Err("expected more than 0 and at most 24h".to_owned());
    }
    Ok(timeout)
}
