//! A replica set dressed as a `mongos`: a proxy that changes what a server says of itself, and does no work.
//!
//! No `mongos` is to be had, so the road of one is tried behind this: `hello` answers as a `mongos` does (no set, no
//! `lastWrite`), answers carry no `opTime`, and the two commands that only a cluster knows are turned into an entry of
//! `config.collections`, which is all that a router's client sees of them. Everything else is done by the real `mongod`
//! behind. Beside that it is a referee: it holds every write of a sharded collection against the rules of the manual and
//! remembers those that a `mongos` would have refused. It routes nothing; there is one shard.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bson::{Bson, Document, doc};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const OP_REPLY: i32 = 1;
const OP_MSG: i32 = 2013;
const HEADER: usize = 16;

/// What a member of a replica set says in `hello` and a `mongos` does not.
const OF_A_SET: [&str; 13] = [
    "setName",
    "setVersion",
    "hosts",
    "passives",
    "arbiters",
    "primary",
    "me",
    "secondary",
    "electionId",
    "lastWrite",
    "isImplicitDefaultMajorityWC",
    "isreplicaset",
    "tags",
];

/// What the referee saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Statements that a `mongos` would have refused, with the reason.
    pub violations: Vec<String>,
    /// Statements on sharded collections by what they are: `upsert`, `update by key`, `update by id`, `delete by key`,
    /// `delete by id`.
    pub statements: BTreeMap<&'static str, u64>,
    /// Commands of the catalogue that only a cluster knows.
    pub sharding: Vec<Document>,
}

#[derive(Debug, Default)]
struct State {
    /// Fields of the shard keys by namespace.
    keys: BTreeMap<String, Vec<String>>,
    /// Updates of the shard key get an error of the server.
    refuses_changed_keys: bool,
    seen: Seen,
}

/// A listener on 127.0.0.1 in front of one server. Ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Dressed {
    port: u16,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Dressed {
    /// Listens on a free port and passes everything on to `server` of 127.0.0.1.
    ///
    /// # Errors
    /// When the machine has no free port.
    pub async fn start(server: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen for the dressed server")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, Arc::clone(&state)));
        Ok(Self { port, state, _tasks: tasks })
    }

    /// The connection string of the `mongos` that this is.
    #[must_use]
    pub fn uri(&self, login: Option<(&str, &str)>) -> String {
        let port = self.port;
        match login {
            Some((name, password)) => format!("mongodb://{name}:{password}@127.0.0.1:{port}/?authSource=admin"),
            None => format!("mongodb://127.0.0.1:{port}/"),
        }
    }

    /// From now on every statement on a namespace is held against this shard key.
    pub fn referee(&self, namespace: &str, key: &Document) {
        let fields = key.keys().cloned().collect();
        self.lock().keys.insert(namespace.to_owned(), fields);
    }

    /// From now on updates by modifiers that set a field of a shard key are refused by the server: they come to it as
    /// updates of the `_id`, which has the error that a changed shard key had until 4.2 (66, ImmutableField).
    pub fn refuse_changed_keys(&self) {
        self.lock().refuses_changed_keys = true;
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.lock().seen.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Enters a collection in `config.collections` as sharded, by hand on the server itself.
///
/// # Errors
/// What the server answers.
pub async fn enter_sharded(server: &mongodb::Client, namespace: &str, key: &Document) -> Result<()> {
    let collections = server.database("config").collection::<Document>("collections");
    let entry = doc! { "$set": { "key": key.clone(), "unique": false } };
    collections
        .update_one(doc! { "_id": namespace }, entry)
        .upsert(true)
        .write_concern(mongodb::options::WriteConcern::majority())
        .await
        .context("enter a sharded collection")?;
    Ok(())
}

async fn accept(listener: TcpListener, server: u16, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(connect(client, server, Arc::clone(&state)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(client: TcpStream, server: u16, state: Arc<Mutex<State>>) {
    let Ok(server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, server))).await else { return };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = pass(from_client, to_server, |message| asked(message, &state));
    let down = pass(from_server, to_client, answered);
    // Either end's end is both ends' end.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Passes whole messages on, each as `change` makes it.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, change: impl Fn(Vec<u8>) -> Vec<u8>) {
    while let Ok(message) = read(&mut from).await {
        if to.write_all(&change(message)).await.is_err() {
            return;
        }
    }
}

async fn read(from: &mut OwnedReadHalf) -> Result<Vec<u8>> {
    let mut message = vec![0; HEADER];
    from.read_exact(&mut message).await?;
    let length = usize::try_from(number(&message, 0))?;
    message.resize(length.max(HEADER), 0);
    from.read_exact(message.get_mut(HEADER..).unwrap_or_default()).await?;
    Ok(message)
}

fn number(message: &[u8], at: usize) -> i32 {
    message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_le_bytes)
}

/// Where the one document of a message begins; none of a message that has several or another form.
fn body(message: &[u8]) -> Option<usize> {
    match number(message, 12) {
        // Flags, and a section of kind 0. A checksum, or further sections, would stand behind it.
        OP_MSG if message.get(20) == Some(&0) => Some(HEADER + 5),
        // Flags, cursor, start, count.
        OP_REPLY => Some(HEADER + 20),
        _ => None,
    }
}

fn document(message: &[u8]) -> Option<(usize, Document)> {
    let at = body(message)?;
    let bytes = message.get(at..).filter(|bytes| usize::try_from(number(bytes, 0)).is_ok_and(|n| n == bytes.len()))?;
    Some((at, Document::from_reader(bytes).ok()?))
}

/// The message with another document in it.
fn with(message: &[u8], at: usize, document: &Document) -> Vec<u8> {
    let Ok(body) = document.to_vec() else { return message.to_vec() };
    let mut changed = message.get(..at).unwrap_or_default().to_vec();
    changed.extend_from_slice(&body);
    let length = i32::try_from(changed.len()).unwrap_or(i32::MAX).to_le_bytes();
    if let Some(place) = changed.get_mut(..4) {
        place.copy_from_slice(&length);
    }
    changed
}

/// An answer as a `mongos` gives it.
fn answered(message: Vec<u8>) -> Vec<u8> {
    // Documents of a cursor pass as they are: they are what is compared in the end.
    let Some((at, mut answer)) = document(&message).filter(|(_, answer)| !answer.contains_key("cursor")) else {
        return message;
    };
    let is_hello = answer.contains_key("maxWireVersion");
    if is_hello {
        OF_A_SET.iter().for_each(|name| drop(answer.remove(name)));
        answer.insert("msg", "isdbgrid");
    } else if ["opTime", "electionId"].iter().filter(|name| answer.remove(name).is_some()).count() == 0 {
        return message;
    }
    with(&message, at, &answer)
}

/// A command as the server behind can run it; the referee has a look.
fn asked(message: Vec<u8>, state: &Mutex<State>) -> Vec<u8> {
    let Some((at, mut command)) = document(&message) else { return message };
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((verb, of)) = command.iter().next().map(|(verb, of)| (verb.clone(), of.clone())) else { return message };
    match verb.as_str() {
        "enableSharding" => {
            state.seen.sharding.push(plain(&command));
            with(&message, at, &around(&command, doc! { "ping": 1, "$db": "admin" }))
        }
        "shardCollection" => {
            state.seen.sharding.push(plain(&command));
            let entry = doc! { "key": command.get("key").cloned(), "unique": command.get("unique").cloned() };
            let update = doc! { "q": { "_id": of }, "u": { "$set": entry }, "upsert": true };
            with(
                &message,
                at,
                &around(&command, doc! { "update": "collections", "updates": [update], "$db": "config" }),
            )
        }
        "update" | "delete" => {
            let namespace =
                format!("{}.{}", command.get_str("$db").unwrap_or_default(), of.as_str().unwrap_or_default());
            let Some(fields) = state.keys.get(&namespace).cloned() else { return message };
            let refuses = state.refuses_changed_keys;
            let list = if verb == "update" { "updates" } else { "deletes" };
            let mut is_changed = false;
            for statement in command.get_array_mut(list).into_iter().flatten().filter_map(Bson::as_document_mut) {
                judge(&mut state.seen, &verb, statement, &fields);
                is_changed |= refuses && refuse(statement, &fields);
            }
            if is_changed { with(&message, at, &command) } else { message }
        }
        _ => message,
    }
}

/// What a command says besides what the driver adds.
fn plain(command: &Document) -> Document {
    let of_driver = |name: &str| name.starts_with('$') || name == "lsid";
    command.iter().filter(|(name, _)| !of_driver(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Another command with what the driver added to this one.
fn around(command: &Document, mut other: Document) -> Document {
    for (name, value) in command.iter().filter(|(name, _)| *name == "lsid" || *name == "$clusterTime") {
        other.insert(name.clone(), value.clone());
    }
    other
}

/// Holds a statement against the manual: an upsert names the whole shard key, another write of one document either that
/// or exactly one `_id`.
fn judge(seen: &mut Seen, verb: &str, statement: &Document, fields: &[String]) {
    let query = statement.get_document("q").cloned().unwrap_or_default();
    let is_equality = |value: &Bson| value.as_document().is_none_or(|value| value.keys().all(|name| name == "$eq"));
    let named = |field: &String| query.get(field).is_some_and(is_equality);
    let (by_key, by_id) = (fields.iter().all(named), named(&"_id".to_owned()));
    let is_upsert = statement.get_bool("upsert").unwrap_or_default();
    let what = match (verb, is_upsert, by_key) {
        (_, true, _) => "upsert",
        ("update", false, true) => "update by key",
        ("update", false, false) => "update by id",
        (_, false, true) => "delete by key",
        (_, false, false) => "delete by id",
    };
    *seen.statements.entry(what).or_default() += 1;
    let is_right = if is_upsert { by_key && by_id } else { by_key || by_id };
    if !is_right {
        seen.violations.push(format!("{what}: {statement}"));
    }
}

/// Makes modifiers that set a field of the key into ones that the server refuses with ImmutableField.
fn refuse(statement: &mut Document, fields: &[String]) -> bool {
    let sets = statement.get_document("u").is_ok_and(|update| {
        update.get_document("$set").is_ok_and(|set| fields.iter().any(|field| set.contains_key(field)))
    });
    if sets {
        statement.insert("u", doc! { "$set": { "_id": "another" } });
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(code: i32, head: usize, document: &Document) -> Vec<u8> {
        let mut message = vec![0; HEADER + head];
        message[12..16].copy_from_slice(&code.to_le_bytes());
        with(&message.clone(), message.len(), document)
    }

    #[test]
    fn a_member_of_a_set_becomes_a_mongos_in_either_form_of_answer() {
        let hello =
            doc! { "ok": 1.0, "setName": "rs", "lastWrite": {}, "maxWireVersion": 17, "isWritablePrimary": true };
        for (code, head) in [(OP_MSG, 5), (OP_REPLY, 20)] {
            let (_, dressed) = document(&answered(message(code, head, &hello))).unwrap();
            assert_eq!(dressed, doc! { "ok": 1.0, "maxWireVersion": 17, "isWritablePrimary": true, "msg": "isdbgrid" });
        }
    }

    #[test]
    fn the_referee_knows_the_rules() {
        let fields = ["k".to_owned(), "a.b".to_owned()];
        let mut seen = Seen::default();
        for right in [
            doc! { "q": { "_id": 1, "k": null, "a.b": { "$eq": { "x": 1 } } }, "u": {}, "upsert": true },
            doc! { "q": { "_id": 1 }, "u": {} },
            doc! { "q": { "k": 1, "a.b": 2 }, "u": {} },
        ] {
            judge(&mut seen, "update", &right, &fields);
        }
        assert_eq!(seen.violations, Vec::<String>::new());
        for wrong in [
            doc! { "q": { "_id": 1, "k": 1 }, "u": {}, "upsert": true },
            doc! { "q": { "_id": { "$gt": 1 } }, "u": {} },
        ] {
            judge(&mut seen, "update", &wrong, &fields);
        }
        assert_eq!(seen.violations.len(), 2);
        judge(&mut seen, "delete", &doc! { "q": { "k": 1 }, "limit": 1 }, &fields);
        assert_eq!(seen.violations.len(), 3);
    }
}
