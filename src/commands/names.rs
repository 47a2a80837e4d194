//! The names of the locks that there are, for completions.
//! It must not know who asks for them.

use std::time::Duration;

use super::block_on;
use crate::config::Settings;
use crate::core::name::LockName;
use crate::etcd::Cluster;
use crate::etcd::listing::{self, Range};

/// Somebody sits there with a finger on TAB: what has not come by then is left out.
const READ_TIMEOUT: Duration = Duration::from_millis(300);
/// More are no help.
const MAX_NAMES: i64 = 500;

/// The names that begin with `beginning`; none when etcd does not answer at once.
pub(super) fn beginning_with(settings: &Settings, beginning: &str) -> Vec<String> {
    let found = block_on(async {
        let cluster = Cluster::new(settings);
        let range = Range::beginning_with(&settings.prefix, beginning);
        let asking = listing::names(&cluster, &range, MAX_NAMES, READ_TIMEOUT);
        let found = tokio::time::timeout(READ_TIMEOUT, asking).await;
        Ok(found.ok().and_then(Result::ok).unwrap_or_default())
    });
    let names = found.unwrap_or_default();
    let names = names.iter().filter_map(|name| LockName::decode(name));
    names.map(|name| name.to_string()).collect()
}
