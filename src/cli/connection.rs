//! The words of the options of every sub-command: the connection to etcd, and the form of the messages.
//! It must not know how they become settings (`config`), nor what a connection is.

use std::ffi::OsString;

use clap::{ArgAction, Args, ValueHint};

/// Options of the connection to etcd.
#[derive(Args, Debug)]
#[command(next_help_heading = "Connection options")]
pub(crate) struct Connection {
    /// Members of the etcd cluster, separated by commas
    ///
    /// May be repeated. HOST:PORT, http://HOST:PORT or https://HOST:PORT; the port is 2379 when absent; IPv6
    /// addresses stand in brackets. Without a scheme, https is taken if any TLS option is given, else http.
    /// Default: 127.0.0.1:2379.
    #[arg(long, global = true, value_name = "LIST", action = ArgAction::Append, value_hint = ValueHint::Hostname)]
    endpoints: Vec<OsString>,

    /// Trust the certificate authorities in this PEM file instead of the system's
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cacert: Option<OsString>,

    /// Client certificate, a PEM file; needs --key
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cert: Option<OsString>,

    /// Private key of the client certificate, a PEM file; needs --cert
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    key: Option<OsString>,

    /// etcd user
    ///
    /// NAME:PASSWORD is understood as etcdctl does when no password is given in another way, but the
    /// arguments of a process are visible to everybody on its machine: better use --password-file.
    #[arg(long, global = true, value_name = "NAME", value_hint = ValueHint::Other)]
    user: Option<OsString>,

    /// File that holds the user's password; one newline at its end is ignored
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    password_file: Option<OsString>,

    /// Send the password to another machine without TLS
    ///
    /// Without it, a user together with an http:// endpoint that is not on this machine is an error: everybody on the way
    /// could read the password.
    #[arg(long, global = true)]
    allow_cleartext: bool,

    /// Where dlock's keys begin in etcd
    ///
    /// All users of a lock need the same prefix. A slash is added at its end when it has none. Default: dlock/. Its last
    /// part must not be lock, once, released or slot behind another one: below those are dlock's own keys.
    #[arg(long, global = true, value_name = "PREFIX", value_hint = ValueHint::Other)]
    prefix: Option<OsString>,

    /// Use no endpoint of another etcd cluster than this one
    ///
    /// The id as dlock doctor prints it, which is hexadecimal, or as etcdctl prints it: 17 to 20 digits are
    /// decimal. Without it, the cluster that answers first is the one: an endpoint of another cluster in the
    /// list can put two commands under one lock.
    #[arg(long, global = true, value_name = "ID", value_hint = ValueHint::Other)]
    cluster_id: Option<OsString>,

    /// How long to try to reach etcd before giving up; default 10s
    #[arg(long, global = true, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    connect_timeout: Option<OsString>,

    /// Fail instead of using the built-in default endpoint
    ///
    /// Without endpoints from an option, a variable or a file, dlock uses 127.0.0.1:2379: on a host whose configuration is
    /// missing, the lock would be in another etcd than on the other hosts.
    #[arg(long, global = true)]
    require_config: bool,

    /// Configuration file
    ///
    /// Default: the first that exists of ~/.config/dlock/config.toml and /etc/dlock/config.toml.
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<OsString>,
}

/// Options of the messages.
#[derive(Args, Debug)]
#[command(next_help_heading = "Output options")]
pub(crate) struct Output {
    /// Say more: what is waited for; twice: every step
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    /// Say errors only, and that processes which the command left behind are stopped
    #[arg(short, long, global = true)]
    quiet: bool,

    /// Form of the messages on stderr, text or json; default text
    #[arg(long, global = true, value_name = "FORMAT", value_parser = ["text", "json"], hide_possible_values = true)]
    log_format: Option<String>,
}
