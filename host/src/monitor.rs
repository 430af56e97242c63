//! The status server: MongoShake's REST paths, health, metrics and a page for people.
//!
//! MongoShake serves the copy on `full_sync.http_port` and incremental on `incr_sync.http_port`; here both ports answer
//! every path, so a script never asks the wrong one. It listens on loopback unless the operator says otherwise, since
//! nothing is protected by a password. It reads counters and status and never touches the data path; the one thing that
//! it can steer is whether the source is read (`POST /sentinel/options`).

pub mod conf;
pub mod page;
pub mod paths;
pub mod profile;
pub mod repl;

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::routing::get;
use oplogue_engine::config::checked::Monitor as Settings;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::metrics::{Metrics, Status};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::report::Tps;

/// What the server reads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Monitored {
    pub metrics: Metrics,
    pub status: Status,
    pub tps: Tps,
    /// The configuration, secrets masked, for `/conf`.
    pub conf: serde_json::Value,
}

/// Opens the listeners of both ports.
///
/// # Errors
/// When a port is taken or the address is not this host's; the message names the key to change.
pub async fn bind(settings: &Settings) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for (key, port) in
        [("full_sync.http_port", settings.full_http_port), ("incr_sync.http_port", settings.incr_http_port)]
    {
        if let Some(port) = port {
            listeners.push(listen(settings.listen, port, key).await?);
        }
    }
    Ok(listeners)
}

async fn listen(address: IpAddr, port: u16, key: &str) -> Result<TcpListener> {
    let at = SocketAddr::new(address, port);
    TcpListener::bind(at).await.map_err(|error| {
        let message = format!("listen on {at} for the status server ({key}: another port, or 0 for none)");
        Error::new(Side::Config, Kind::Misconfigured, message).caused_by(error)
    })
}

/// Opens the profiler's listener, where one is wanted.
///
/// # Errors
/// As [`bind`].
pub async fn bind_profiler(settings: &Settings) -> Result<Option<TcpListener>> {
    match settings.profile_port {
        Some(port) => listen(settings.listen, port, "system_profile_port").await.map(Some),
        None => Ok(None),
    }
}

/// Serves one listener until `stop`.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(listener: TcpListener, pages: Router, stop: CancellationToken) -> Result<()> {
    axum::serve(listener, pages)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(|error| Error::new(Side::Internal, Kind::Exhausted, "serve the status pages").caused_by(error))
}

/// All paths.
pub fn router(monitored: Monitored) -> Router {
    Router::new()
        .route("/", get(paths::list))
        .route("/healthz", get(paths::healthz))
        .route("/metrics", get(paths::metrics))
        .route("/repl", get(repl::repl))
        .route("/progress", get(repl::progress))
        .route("/worker", get(paths::worker))
        .route("/queue", get(paths::queue))
        .route("/executor", get(paths::executor))
        .route("/conflicts", get(paths::conflicts))
        .route("/persist", get(paths::persist))
        .route("/conf", get(paths::conf))
        .route("/sentinel", get(paths::sentinel))
        .route("/sentinel/options", get(paths::sentinel).post(paths::sentinel_options))
        .route("/status", get(page::status))
        .fallback(paths::unknown)
        .with_state(monitored)
}

#[cfg(test)]
mod tests;
