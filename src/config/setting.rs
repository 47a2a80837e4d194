//! The keys of all settings, and the names that the layers have for each. A new setting has its row here, its words in a
//! field of the same name in `cli`, and its effect where the layers are asked for its key.
//! It must not know what a setting means.

use std::fmt;

/// Defines a setting by its key and its long option, within the group that it belongs to.
macro_rules! settings {
    ($($group:ident: $($key:ident $name:literal),+;)+) => {
        /// The key of a setting: an option that has a variable, too.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Setting {
            $($($key,)+)+
        }

        impl Setting {
            /// Every setting, in the order in which the pages list them.
            pub(crate) const ALL: &[Self] = &[$($(Self::$key,)+)+];

            /// The long option, which is the key in the file.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $($(Self::$key => $name,)+)+
                }
            }

            pub(crate) const fn group(self) -> Group {
                match self {
                    $($(Self::$key => Group::$group,)+)+
                }
            }
        }
    };
}

settings! {
    Connection: Endpoints "endpoints", Cacert "cacert", Cert "cert", Key "key", User "user", PasswordFile "password-file", AllowCleartext "allow-cleartext",
        Prefix "prefix", ClusterId "cluster-id", ConnectTimeout "connect-timeout", RequireConfig "require-config";
    File: Config "config";
    Output: Verbose "verbose", Quiet "quiet", LogFormat "log-format", LogFile "log-file";
    Backend: Local "local";
    Run: NoWait "no-wait", Wait "wait", ConflictExitCode "conflict-exit-code", Ttl "ttl",
        KillAfter "kill-after", Signal "signal", Shared "shared", Slots "slots", MinHold "min-hold", MaxHold "max-hold",
        OncePer "once-per", RetryFailed "retry-failed", Supersede "supersede", Note "note", Report "report", Metrics "metrics",
        Leftovers "leftovers", Reentrant "reentrant";
}

/// The subject of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// The connection to etcd, which a local lock does not have.
    Connection,
    /// The path of the configuration file, which cannot itself be in the file.
    File,
    /// The form of the messages, which does not matter to a lock.
    Output,
    /// The choice between locks in etcd and those of this machine.
    Backend,
    /// One run of dlock, and not those inside of its command.
    Run,
}

impl Setting {
    /// The setting with this long option.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.name() == name)
    }

    /// The settings that the configuration file may contain.
    pub(crate) fn in_file() -> impl Iterator<Item = Self> {
        let all = Self::ALL.iter().copied();
        all.filter(|it| it.group() != Group::File)
    }

    /// The variables that the command of a run does not get.
    pub(crate) fn variables_of_one_run() -> impl Iterator<Item = String> {
        let all = Self::ALL.iter();
        all.filter(|it| it.group() == Group::Run)
            .map(|it| it.variable())
    }

    /// The variable. A command gets `DLOCK_KEY`, so a nested dlock must not take that for its private key: the variables of
    /// the client certificate contain CLIENT.
    pub(crate) fn variable(self) -> String {
        match self {
            Self::Cert => "DLOCK_CLIENT_CERT".to_owned(),
            Self::Key => "DLOCK_CLIENT_KEY".to_owned(),
            _ => format!(
                "DLOCK_{}",
                self.name().to_ascii_uppercase().replace('-', "_")
            ),
        }
    }

    /// The variable that users of etcdctl may have set already, the fallback for the setting's own.
    pub(crate) const fn etcdctl_variable(self) -> Option<&'static str> {
        match self {
            Self::Endpoints => Some("ETCDCTL_ENDPOINTS"),
            Self::Cacert => Some("ETCDCTL_CACERT"),
            Self::Cert => Some("ETCDCTL_CERT"),
            Self::Key => Some("ETCDCTL_KEY"),
            Self::User => Some("ETCDCTL_USER"),
            _ => None,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
