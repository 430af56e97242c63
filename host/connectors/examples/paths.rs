//! What an update costs on either path, and what decoding costs an entry.
//!
//! The same updates go through the sink as classic modifiers and as exact pipelines, in turns and back again, so that
//! what disturbs the machine disturbs both; the two turns of a path are its control. The server's processor time is read
//! from `/proc`, so the server must run here. The entries that these updates leave in the server's own oplog are then
//! decoded, over and over. It lives here because nothing else needs the sink without the collector; it judges nothing.
//!
//! `paths URI PID`: a replica set without authentication, and the process id of its one member.

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bson::{Bson, Document, RawDocumentBuf, doc, rawdoc};
use bytes::Bytes;
use futures_util::StreamExt as _;
use mongodb::Client;
use oplogue_connectors::mongodb::sink::{MongoSink, SinkOptions};
use oplogue_engine::budget::Permit;
use oplogue_engine::checkpoint::{Checkpoint, CheckpointStore, Found, Identity, ViewPair};
use oplogue_engine::decode::{DecodeOptions, Decoder};
use oplogue_engine::error::Result;
use oplogue_engine::model::{CollectionUuid, Namespace, NamespaceId, Namespaces, OpTime, RawBatch};
use oplogue_engine::sink::{Content, Patch, Sink as _, Write};

type Fallible<T> = std::result::Result<T, Box<dyn Error>>;

const DOCUMENTS: usize = 4_000;
const FLUSH: usize = 500;
const UPDATES: usize = if cfg!(debug_assertions) { 8_000 } else { 60_000 };
const ROUNDS: usize = 3;
const DECODINGS: usize = if cfg!(debug_assertions) { 2 } else { 40 };

/// Ticks a second of `/proc/<pid>/stat`, fixed by the kernel's interface.
const TICKS: f64 = 100.0;

/// Nobody asks it for anything.
struct NoStore;

#[async_trait]
impl CheckpointStore for NoStore {
    async fn acquire(&self) -> Result<Found> {
        Ok(Found::Nothing)
    }

    async fn save(&self, _: &Checkpoint) -> Result<()> {
        Ok(())
    }

    async fn still_held(&self) -> Result<()> {
        Ok(())
    }

    async fn identities(&self) -> Result<Vec<Identity>> {
        Ok(Vec::new())
    }

    async fn record_identity(&self, _: Identity) -> Result<()> {
        Ok(())
    }

    async fn forget_identity(&self, _: CollectionUuid) -> Result<()> {
        Ok(())
    }

    async fn views(&self) -> Result<Vec<ViewPair>> {
        Ok(Vec::new())
    }

    async fn record_view(&self, _: &ViewPair) -> Result<()> {
        Ok(())
    }

    async fn forget_view(&self, _: &Namespace) -> Result<()> {
        Ok(())
    }
}

struct Bench {
    sink: MongoSink,
    namespace: NamespaceId,
    pid: u32,
}

/// One turn: what `UPDATES` updates took.
struct Cost {
    wall: Duration,
    server_s: f64,
}

fn main() -> Fallible<()> {
    let mut arguments = std::env::args().skip(1);
    let uri = arguments.next().ok_or("paths URI PID")?;
    let pid = arguments.next().ok_or("paths URI PID")?.parse()?;
    tokio::runtime::Runtime::new()?.block_on(Box::pin(measure(&uri, pid)))
}

async fn measure(uri: &str, pid: u32) -> Fallible<()> {
    let client = Client::with_uri_str(uri).await?;
    let names = Namespaces::shared();
    let sink = MongoSink::new(client.clone(), None, Arc::new(NoStore), Arc::clone(&names), SinkOptions::default());
    let bench = Bench { sink, namespace: names.intern("bench.paths"), pid };
    fill(&client).await?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<10}{:>6}{:>14}{:>20}", "path", "turn", "wall us/upd", "server CPU us/upd")?;
    let mut serial = 0;
    // One turn each to warm up.
    for overlap in [false, true] {
        bench.turn(overlap, &mut serial).await?;
    }
    for round in 0..ROUNDS {
        for (turn, overlap) in [("A", false), ("A", true), ("B", true), ("B", false)] {
            let cost = bench.turn(overlap, &mut serial).await?;
            let each = |seconds: f64| seconds * 1e6 / UPDATES as f64;
            let path = if overlap { "exact" } else { "fast" };
            let (wall, server) = (each(cost.wall.as_secs_f64()), each(cost.server_s));
            writeln!(out, "{path:<10}{:>6}{wall:>14.1}{server:>20.1}", format!("{}{turn}", round + 1))?;
        }
    }
    let counts = bench.sink.counts();
    writeln!(out, "{} updates on the fast path, {} on the exact path", counts.fast, counts.exact)?;
    decode(&client, &names, &mut out).await
}

async fn fill(client: &Client) -> Fallible<()> {
    let things = client.database("bench").collection::<Document>("paths");
    let documents = (0..DOCUMENTS).map(|id| {
        let pad = "x".repeat(500);
        doc! {
            "_id": id as i64, "n": 0_i64, "text": "text", "name": format!("name {id}"), "tags": ["a", "b"],
            "nested": { "x": 1_i64, "y": 2.5 }, "at": Bson::DateTime(bson::DateTime::now()), "pad": pad,
        }
    });
    things.insert_many(documents).await?;
    Ok(())
}

impl Bench {
    /// Writes `UPDATES` updates of three fields, one of them in a nested document.
    async fn turn(&self, overlap: bool, serial: &mut i64) -> Fallible<Cost> {
        let (cpu, started) = (cpu_s(self.pid)?, Instant::now());
        for flush in 0..UPDATES / FLUSH {
            let writes: Vec<Write> = (0..FLUSH)
                .map(|at| {
                    *serial += 1;
                    self.update(((flush * FLUSH + at) % DOCUMENTS) as i64, *serial, overlap)
                })
                .collect();
            let report = self.sink.write(&writes).await?;
            if !report.refused.is_empty() {
                return Err("the server refused an update".into());
            }
        }
        Ok(Cost { wall: started.elapsed(), server_s: cpu_s(self.pid)? - cpu })
    }

    fn update(&self, id: i64, serial: i64, overlap: bool) -> Write {
        let diff =
            rawdoc! { "u": { "n": serial, "text": format!("text {serial}") }, "snested": { "u": { "x": serial } } };
        Write {
            target: self.namespace,
            source: self.namespace,
            key: Bytes::from(rawdoc! { "_id": id }.into_bytes()),
            content: Content::Patch(vec![Patch::Diff(Bytes::from(diff.into_bytes()))]),
            overlap,
            origin: None,
            moved: false,
            creates: false,
            in_order: false,
            time: OpTime::default(),
            collection: None,
        }
    }
}

/// Decodes the server's own oplog, in the replies in which it comes.
async fn decode(client: &Client, names: &Arc<Namespaces>, out: &mut impl std::io::Write) -> Fallible<()> {
    let oplog = client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    let mut cursor = oplog.find(doc! {}).batch_size(5_000).batch().await?;
    let mut replies = Vec::new();
    while let Some(reply) = cursor.next().await {
        let reply = reply?;
        let part = reply.as_raw_document().get_document("cursor")?;
        let entries = part.get_array("firstBatch").or_else(|_| part.get_array("nextBatch"))?;
        replies.push(Bytes::copy_from_slice(entries.as_bytes()));
    }
    let bytes: usize = replies.iter().map(Bytes::len).sum();
    let mut best = Duration::MAX;
    let mut entries = 0;
    for _ in 0..DECODINGS {
        let mut decoder = Decoder::new(Arc::clone(names), DecodeOptions::default(), OpTime::default());
        let started = Instant::now();
        for reply in &replies {
            let raw = RawBatch { entries: reply.clone(), reached: None, runs: Vec::new(), permit: Permit::none() };
            std::hint::black_box(decoder.decode(raw)?);
        }
        best = best.min(started.elapsed());
        entries = decoder.counts().entries;
    }
    let each = best.as_secs_f64() * 1e9 / entries as f64;
    let size = bytes as f64 / entries as f64;
    writeln!(out, "decode: {each:.0} ns an entry of {size:.0} bytes ({entries} entries, best of {DECODINGS})")?;
    Ok(())
}

/// Processor seconds of a process so far.
fn cpu_s(pid: u32) -> Fallible<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets and may contain anything.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).ok_or("an unknown format of /proc")?;
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS)
}
