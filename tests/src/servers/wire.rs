//! Commands to one `mongod` as another server of its cluster would send them.
//!
//! A driver decides by itself about sessions and cluster times; a test that plays the part of `mongos` must say them: a
//! session that is the same on two shards, the version of the routing table, the time that another shard has told. So
//! this speaks OP_MSG on a socket of its own. No authentication, no retries; an answer that is an error is returned as
//! it came.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const OP_MSG: i32 = 2013;

/// The newest cluster time that anybody has told.
#[derive(Debug, Clone, Default)]
pub struct Gossip(Arc<Mutex<Option<Document>>>);

impl Gossip {
    fn newest(&self) -> Option<Document> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hear(&self, reply: &Document) {
        let time = |told: &Document| told.get_timestamp("clusterTime").ok();
        if let Ok(told) = reply.get_document("$clusterTime") {
            let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if newest.as_ref().is_none_or(|newest| time(newest) < time(told)) {
                *newest = Some(told.clone());
            }
        }
    }
}

/// A connection to one server.
#[derive(Debug)]
pub struct Wire {
    port: u16,
    socket: Option<TcpStream>,
    gossip: Gossip,
    request: i32,
}

impl Wire {
    /// A connection that is opened with the first command, to a server without authentication.
    #[must_use]
    pub fn new(port: u16, gossip: &Gossip) -> Self {
        Self { port, socket: None, gossip: gossip.clone(), request: 0 }
    }

    /// Runs a command and returns the answer, whether it says `ok` or not.
    ///
    /// # Errors
    /// When the connection breaks: the command may have been executed or not.
    pub async fn run(&mut self, database: &str, mut command: Document) -> Result<Document> {
        command.insert("$db", database);
        if let Some(time) = self.gossip.newest() {
            command.insert("$clusterTime", time);
        }
        let answer = self.exchange(&command).await;
        if answer.is_err() {
            self.socket = None;
        }
        let answer = answer?;
        self.gossip.hear(&answer);
        Ok(answer)
    }

    async fn exchange(&mut self, command: &Document) -> Result<Document> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(TcpStream::connect(("127.0.0.1", self.port)).await.context("connect")?),
        };
        let body = command.to_vec().context("write a command")?;
        self.request += 1;
        let length = i32::try_from(16 + 4 + 1 + body.len())?;
        let mut message = Vec::with_capacity(body.len() + 32);
        for number in [length, self.request, 0, OP_MSG, 0] {
            message.extend_from_slice(&number.to_le_bytes());
        }
        message.push(0);
        message.extend_from_slice(&body);
        socket.write_all(&message).await.context("send a command")?;
        let mut head = [0; 21];
        socket.read_exact(&mut head).await.context("read an answer")?;
        let length = i32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let mut body = vec![0; usize::try_from(length)?.saturating_sub(head.len())];
        socket.read_exact(&mut body).await.context("read an answer")?;
        Document::from_reader(body.as_slice()).context("read an answer")
    }
}

/// The error of an answer: its code and what it says; none when it says that all went well.
#[must_use]
pub fn fault(answer: &Document) -> Option<(i32, String)> {
    let of = |document: &Document| {
        let message = document.get_str("errmsg").unwrap_or_default().to_owned();
        (document.get_i32("code").unwrap_or_default(), message)
    };
    if answer.get_f64("ok").unwrap_or_default() < 1.0 {
        return Some(of(answer));
    }
    let first = answer.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
    first.map(of)
}

/// Fails unless the answer says that all went well.
///
/// # Errors
/// With the server's code and message.
pub fn check(answer: Document) -> Result<Document> {
    match fault(&answer) {
        None => Ok(answer),
        Some((code, message)) => anyhow::bail!("error {code}: {message}"),
    }
}

/// A new session's id.
#[must_use]
pub fn session() -> Document {
    doc! { "id": bson::Uuid::new() }
}
