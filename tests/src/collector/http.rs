//! One HTTP request on loopback, enough to read and steer the monitor.
//!
//! A client library would be a dependency for one request. It sends HTTP/1.0, so that the answer is neither
//! chunked nor kept open, and reads to the end. It speaks to 127.0.0.1 only.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Returns the body of a page.
///
/// # Errors
/// When nobody listens, nothing comes within a minute, or the status is not 200.
pub async fn get(port: u16, path: &str) -> Result<String> {
    ask("GET", port, path, "").await
}

/// Posts a JSON body and returns the answer's.
///
/// # Errors
/// As [`get`].
pub async fn post(port: u16, path: &str, body: &str) -> Result<String> {
    ask("POST", port, path, body).await
}

async fn ask(method: &str, port: u16, path: &str, body: &str) -> Result<String> {
    let answer = tokio::time::timeout(Duration::from_secs(60), exchange(method, port, path, body)).await;
    let answer = answer.with_context(|| format!("no answer to {method} {path} on port {port}"))??;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "{method} {path} answered {status}: {body}");
    Ok(body.to_owned())
}

async fn exchange(method: &str, port: u16, path: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
