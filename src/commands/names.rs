//! The names of the existing locks, for completion.
//! It must not know who needs them.

use std::time::Duration;

use super::block_on;
use crate::config::Settings;
use crate::core::name::LockName;
use crate::etcd::Cluster;
use crate::etcd::listing::{self, Range};

/// The user waits at TAB: a later answer is dropped.
const READ_TIMEOUT: Duration = Duration::from_millis(300);
/// A longer list does not help.
const MAX_NAMES: i64 = 500;

/// The names that begin with `beginning`; none if etcd does not answer in time.
pub(super) fn beginning_with(settings: &Settings, beginning: &str) -> Vec<String> {
    let found = block_on(async {
        let cluster = Cluster::new(settings);
        let range = Range::beginning_with(&settings.prefix, beginning);
        let reading = listing::names(&cluster, &range, MAX_NAMES, READ_TIMEOUT);
        let found = tokio::time::timeout(READ_TIMEOUT, reading).await;
        Ok(found.ok().and_then(Result::ok).unwrap_or_default())
    });
    let names = found.unwrap_or_default();
    let names = names.iter().filter_map(|name| LockName::decode(name));
    names.map(|name| name.to_string()).collect()
}
