//! A probe by plain HTTP, on a connection of its own: the certificate, and the version, which every user may read.
//! It must not know what they are used for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::certificates;
use crate::config::Tls;
use crate::config::endpoint::Endpoint;
use crate::core::doctor::certificate::Certificate;
use crate::etcd::connection::dial;
use crate::etcd::tls;

/// In bytes; etcd's answer has some hundred.
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

/// The results of a probe; if it fails, the other connection shows the reason.
#[derive(Default)]
pub(super) struct HttpProbe {
    pub(super) version: Option<String>,
    pub(super) certificate: Option<Certificate>,
}

/// Probes the endpoint, within `limit`.
pub(super) async fn probe(endpoint: &Endpoint, files: &Tls, limit: Duration) -> HttpProbe {
    let mut found = HttpProbe::default();
    let ended = timeout(limit, exchange(endpoint, files, limit, &mut found)).await;
    match ended {
        Ok(Ok(())) => tracing::debug!("'{endpoint}' has answered the probe"),
        Ok(Err(error)) => tracing::debug!("cannot probe '{endpoint}': {error}"),
        Err(_) => tracing::debug!("cannot probe '{endpoint}': no answer in time"),
    }
    found
}

async fn exchange(
    endpoint: &Endpoint,
    files: &Tls,
    limit: Duration,
    found: &mut HttpProbe,
) -> io::Result<()> {
    let stream = dial(&endpoint.host, endpoint.port, limit).await?;
    if !endpoint.https {
        found.version = version(stream, endpoint).await?;
        return Ok(());
    }
    let config = tls::client_config(files).map_err(|error| io::Error::other(error.cause))?;
    let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    found.certificate = chain.first().and_then(|first| certificates::parse(first));
    found.version = version(stream, endpoint).await?;
    Ok(())
}

/// `GET /version`, which needs no user (api/etcdhttp/version.go).
async fn version(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    endpoint: &Endpoint,
) -> io::Result<Option<String>> {
    #[derive(Deserialize)]
    struct Versions {
        etcdserver: String,
    }
    let request = format!("GET /version HTTP/1.0\r\nHost: {}\r\n\r\n", endpoint.host);
    stream.write_all(request.as_bytes()).await?;
    let mut stream = stream.take(MAX_ANSWER_BYTES);
    let mut answer = Vec::new();
    // The end of the connection may take long, so the answer is parsed as it arrives.
    while stream.read_buf(&mut answer).await? > 0 {
        let text = String::from_utf8_lossy(&answer);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        if let Ok(Versions { etcdserver }) = serde_json::from_str(body) {
            return Ok(Some(etcdserver));
        }
    }
    Ok(None)
}
