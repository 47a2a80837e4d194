//! `dlock check`: whether a token still is that of a holder of its lock.
//! It must not know how etcd is asked.

use anyhow::anyhow;

use super::{block_on, failed};
use crate::cli::look::Check;
use crate::config::Settings;
use crate::core::queue::Queue;
use crate::etcd::Cluster;
use crate::etcd::look::holds;
use crate::exit::{Exit, Failure, OrFail as _};

/// Says nothing when it is; else that it is not.
pub(super) fn check(settings: &Settings, check: &Check) -> Result<Exit, Failure> {
    let Check { name, token } = check;
    let queue = Queue::new(&settings.prefix, name);
    let tried = format_args!("cannot tell whether token {token} still has the lock '{name}'");
    let holds = block_on(async {
        let cluster = Cluster::new(settings);
        let holds = holds(&cluster, &queue, *token, settings.connect_timeout).await;
        holds.map_err(|trouble| failed(tried, trouble))
    })?;
    if holds {
        return Ok(Exit::Done);
    }
    Err(anyhow!("token {token} does not hold the lock '{name}'")).or_exit(Exit::Lost)
}
