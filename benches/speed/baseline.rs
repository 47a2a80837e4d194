//! The minimum for any client: the requests of an uncontended lock, one fork and exec, and nothing else.
//! It must not know dlock.

use std::num::NonZeroU64;
use std::process::{Command, ExitCode};
use std::time::Duration;

use etcd_client::{
    Channel, Client, Compare, CompareOp, GetOptions, LeaseGrantOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnResponse, WatchOptions,
};
use tonic::transport::{Certificate, Channel as Tonic, ClientTlsConfig, Endpoint};

/// The argument that makes this program the bare client.
pub(crate) const WORD: &str = "floor";

/// Like dlock: the request that needs the lease does not wait for its grant.
pub(crate) const PIPELINED: &str = "pipelined";
/// One request after the other, as a plain client does it.
pub(crate) const SEQUENTIAL: &str = "sequential";
/// Pipelined; waits for the entry before its own, without a read of earlier entries, and without renewals.
pub(crate) const QUEUED: &str = "queued";

/// Replaces the CA file, for a server without TLS.
pub(crate) const PLAIN: &str = "-";

/// How long the request that needs the lease waits for its grant: as in dlock.
const LEAD: Duration = Duration::from_millis(1);

/// The client's command line up to the command. `way` is one of the above, `cacert` a file or [`PLAIN`].
pub(crate) fn line(way: &str, endpoint: &str, cacert: &str, name: &str) -> Vec<String> {
    let mut line = vec![crate::tool::myself(), WORD.to_owned()];
    line.extend([way, endpoint, cacert, name].map(str::to_owned));
    line
}

/// `floor WAY ENDPOINT CACERT NAME COMMAND [ARG...]`.
pub(crate) fn run(words: &[String]) -> ExitCode {
    let [way, endpoint, cacert, name, command @ ..] = words else {
        return ExitCode::FAILURE;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an event loop");
    runtime
        .block_on(async {
            let channel = connect(endpoint, cacert).await?;
            lock(way, channel, name, command).await
        })
        .expect("etcd serves");
    // The rest ends with the process.
    std::mem::forget(runtime);
    ExitCode::SUCCESS
}

async fn connect(endpoint: &str, cacert: &str) -> Result<Tonic, Box<dyn std::error::Error>> {
    let mut endpoint = Endpoint::from_shared(endpoint.to_owned())?;
    if cacert != PLAIN {
        let authority = Certificate::from_pem(std::fs::read(cacert)?);
        endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(authority))?;
    }
    Ok(endpoint.connect().await?)
}

async fn lock(
    way: &str,
    channel: Tonic,
    name: &str,
    command: &[String],
) -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Client::from_channel(Channel::Tonic(channel), None).await?;
    let lease = random_lease()?;
    let key = format!("{name}/{lease:x}");
    let mut granting = client.clone();
    let ttl = if way == QUEUED { 600 } else { 30 };
    let grant = granting.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(lease)));
    let mut grant = std::pin::pin!(grant);
    let follow = || put(client.clone(), name, &key, lease);
    let lead = if way == SEQUENTIAL {
        Duration::MAX
    } else {
        LEAD
    };
    let placed = tokio::select! {
        biased;
        granted = &mut grant => {
            granted?;
            follow().await
        }
        () = tokio::time::sleep(lead) => {
            let (granted, placed) = tokio::join!(grant, follow());
            granted?;
            placed
        }
    };
    let placed = match placed {
        Ok(placed) => placed,
        // The request overtook the grant.
        Err(_) => follow().await?,
    };
    let revision = placed.header().ok_or("no header")?.revision();
    if way == QUEUED {
        wait(&mut client, name, revision).await?;
    }
    Command::new(&command[0]).args(&command[1..]).status()?;
    let ours = Compare::create_revision(key.as_str(), CompareOp::Equal, revision);
    let release = Txn::new().when([ours]).and_then([TxnOp::delete(key, None)]);
    client.txn(release).await?;
    tokio::select! {
        biased;
        _ = client.lease_revoke(lease) => {}
        () = sent(Duration::from_micros(150)) => {}
    }
    Ok(())
}

/// Waits until the entry before the one with this revision is gone.
async fn wait(client: &mut Client, name: &str, revision: i64) -> Result<(), etcd_client::Error> {
    let before = GetOptions::new()
        .with_prefix()
        .with_max_create_revision(revision - 1)
        .with_sort(SortTarget::Create, SortOrder::Descend)
        .with_limit(1);
    let read = client.get(format!("{name}/"), Some(before)).await?;
    let (Some(before), Some(header)) = (read.kvs().first(), read.header()) else {
        return Ok(());
    };
    let from = WatchOptions::new().with_start_revision(header.revision() + 1);
    let mut events = client.watch(before.key(), Some(from)).await?;
    while let Some(answer) = events.message().await? {
        if !answer.events().is_empty() {
            break;
        }
    }
    Ok(())
}

fn random_lease() -> rustix::io::Result<i64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok((i64::from_ne_bytes(bytes) & i64::MAX).max(1))
}

/// Lets the request leave, and then waits for a moment, as dlock does.
async fn sent(moment: Duration) {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    std::thread::sleep(moment);
}

async fn put(
    mut client: Client,
    name: &str,
    key: &str,
    lease: i64,
) -> Result<TxnResponse, etcd_client::Error> {
    let all = GetOptions::new().with_prefix().with_count_only();
    let record = PutOptions::new().with_lease(lease);
    let txn = Txn::new()
        .when([Compare::create_revision(key, CompareOp::Equal, 0)])
        .and_then([
            TxnOp::put(key, "", Some(record)),
            TxnOp::get(format!("{name}/"), Some(all)),
        ]);
    client.txn(txn).await
}
