//! The words of the options of every sub-command: the connection to etcd, and the form of the messages.
//! It must not know how they become settings (`config`), nor what a connection is.

use std::ffi::OsString;

use clap::{ArgAction, Args, ValueHint};

/// Options of the connection to etcd.
#[derive(Args, Debug)]
#[command(next_help_heading = "Connection options")]
pub(crate) struct Connection {
    /// etcd members [default: 127.0.0.1:2379]
    ///
    /// Separated by commas, or by repeating the option. A member is HOST:PORT, http://HOST:PORT or https://HOST:PORT;
    /// the default port is 2379; an IPv6 address needs brackets. Without a scheme, dlock uses https if a TLS option
    /// is set, else http.
    #[arg(long, global = true, value_name = "LIST", action = ArgAction::Append, value_hint = ValueHint::Hostname)]
    endpoints: Vec<OsString>,

    /// CA certificates [default: the system's]
    ///
    /// A PEM file. dlock then trusts no other authority.
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cacert: Option<OsString>,

    /// Client certificate, PEM; needs --key
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cert: Option<OsString>,

    /// Private key of --cert, PEM
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    key: Option<OsString>,

    /// User of etcd
    ///
    /// NAME:PASSWORD works as in etcdctl if no password is given in another way. Prefer --password-file: every user of
    /// the machine can read the arguments of a process.
    #[arg(long, global = true, value_name = "NAME", value_hint = ValueHint::Other)]
    user: Option<OsString>,

    /// File with the password of the user
    ///
    /// dlock ignores one newline at its end.
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    password_file: Option<OsString>,

    /// Send a password without TLS
    ///
    /// Without the option dlock refuses a user together with an http:// endpoint on another machine: everybody on the way
    /// could read the password.
    #[arg(long, global = true)]
    allow_cleartext: bool,

    /// Prefix of dlock's keys [default: dlock/]
    ///
    /// All users of a lock need the same prefix. dlock adds a slash at the end if there is none. The last part must
    /// not be lock, once, released or slot behind another one: dlock's own keys are there.
    #[arg(long, global = true, value_name = "PREFIX", value_hint = ValueHint::Other)]
    prefix: Option<OsString>,

    /// Refuse all other etcd clusters
    ///
    /// The id as dlock doctor prints it, which is hexadecimal, or as etcdctl prints it: 17 to 20 digits are
    /// decimal. Without the option dlock accepts the cluster that answers first: an endpoint of another cluster in
    /// the list can put two commands under one lock.
    #[arg(long, global = true, value_name = "ID", value_hint = ValueHint::Other)]
    cluster_id: Option<OsString>,

    /// Time limit to reach etcd [default: 10s]
    ///
    /// The default of a run with --no-wait is 3s.
    #[arg(long, global = true, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    connect_timeout: Option<OsString>,

    /// Refuse to use the default endpoint
    ///
    /// Without endpoints from an option, a variable or a file, dlock uses 127.0.0.1:2379: on a host without its
    /// configuration, the lock would be in another etcd than on the other hosts.
    #[arg(long, global = true)]
    require_config: bool,

    /// Configuration file
    ///
    /// Default: the first of ~/.config/dlock/config.toml and /etc/dlock/config.toml that exists.
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<OsString>,
}

/// Options of the messages.
#[derive(Args, Debug)]
#[command(next_help_heading = "Output options")]
pub(crate) struct Output {
    /// Report the wait; -vv: report every step
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    /// Report errors only
    ///
    /// dlock still reports that it stops processes which the command left behind.
    #[arg(short, long, global = true)]
    quiet: bool,

    /// Messages as text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT", value_parser = ["text", "json"], hide_possible_values = true)]
    log_format: Option<String>,
}
