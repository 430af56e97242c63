//! The shape of the stored documents.
//!
//! `{_id: "<job>/<set>", format: "oplogue", name: "<set>", ckpt: <secs << 32 | inc>, stage, position: {ts, t, date},
//! plugins: […], configuration, lease: {id, epoch, holder, since}, updated_at}`. Of a sharded source, `position` is a cut of
//! cluster time and holds `shards: [{name, ts, t, date, open_since: {ts, t, date}}]` besides: the last entry of each, and
//! where it has to be read from when a transaction was open at the cut. `name` and `ckpt` mean what they mean in
//! MongoShake's document, so a user who goes back finds a position there; `format` tells the two apart. Positions are
//! read back from `position` only.

use std::sync::Arc;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, RawDocumentBuf, Timestamp, doc};
use bytes::Bytes;
use oplogue_engine::checkpoint::{Checkpoint, Identity, Stage, ViewPair};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, OpTime, Position, ShardPosition, ShardPositions};
use oplogue_engine::plugin::GenerationInfo;

use super::super::topology;

/// Marks our documents.
pub(super) const FORMAT: &str = "oplogue";

const FULL_SYNC: &str = "full-sync";
const CATCH_UP: &str = "catch-up";
const INCREMENTAL: &str = "incremental";

/// The fields that a checkpoint sets.
pub(super) fn write(checkpoint: &Checkpoint) -> Result<Document> {
    let time = checkpoint.position.time();
    let plugins: Vec<Document> = checkpoint.plugins.iter().map(write_plugin).collect();
    Ok(doc! {
        "format": FORMAT,
        "ckpt": time.ts().cast_signed(),
        "stage": match checkpoint.stage {
            Stage::FullSync => FULL_SYNC,
            Stage::CatchUp => CATCH_UP,
            Stage::Incremental => INCREMENTAL,
        },
        "position": write_position(&checkpoint.position)?,
        "plugins": plugins,
        "configuration": &checkpoint.configuration,
    })
}

/// Reads a document of ours that has a position.
pub(super) fn read(document: &Document) -> Result<Checkpoint> {
    let position = position(document).ok_or_else(|| {
        let text = "read the checkpoint: its position is missing or wrong; say it with `oplogue checkpoint set`";
        Error::new(Side::Store, Kind::Malformed, text)
    })?;
    at(document, position)
}

/// A document of ours, as if its position was this one.
pub(super) fn at(document: &Document, position: Position) -> Result<Checkpoint> {
    let plugins = document.get_array("plugins").into_iter().flatten().filter_map(Bson::as_document);
    Ok(Checkpoint {
        stage: stage(document)?,
        position,
        plugins: plugins.map(read_plugin).collect(),
        configuration: text(document, "configuration"),
    })
}

/// How far a job has come.
pub(super) fn stage(document: &Document) -> Result<Stage> {
    match document.get_str("stage") {
        Ok(FULL_SYNC) => Ok(Stage::FullSync),
        Ok(CATCH_UP) => Ok(Stage::CatchUp),
        Ok(INCREMENTAL) => Ok(Stage::Incremental),
        _ => {
            let text = format!(
                "read the checkpoint: its `stage` is none of \"{FULL_SYNC}\", \"{CATCH_UP}\" and \"{INCREMENTAL}\", and \
                 without it nobody knows what a copy has left to do; correct it in the document, or begin anew after \
                 `oplogue checkpoint reset`"
            );
            Err(Error::new(Side::Store, Kind::Malformed, text))
        }
    }
}

fn write_position(position: &Position) -> Result<Document> {
    let time = position.time();
    let mut written = op_time(time);
    if !position.shards().is_empty() {
        let shards = position.shards().iter().map(|ShardPosition { name, at, open_since }| {
            let mut shard = doc! { "name": &**name };
            shard.extend(op_time(*at));
            if let Some(since) = open_since {
                shard.insert("open_since", op_time(*since));
            }
            shard
        });
        written.insert("shards", shards.collect::<Vec<_>>());
    }
    if let Position::Stream { token, .. } = position {
        let malformed = |e| Error::new(Side::Store, Kind::Malformed, "store a resume token").caused_by(e);
        let token = RawDocumentBuf::from_bytes(token.to_vec()).map_err(malformed)?;
        written.insert("token", Document::try_from(token).map_err(malformed)?);
    }
    Ok(written)
}

/// The position of a document of ours.
pub(super) fn position(document: &Document) -> Option<Position> {
    let position = document.get_document("position").ok()?;
    let time = topology::op_time(position)?;
    if let Ok(shards) = position.get_array("shards") {
        let shards = shards.iter().map(|shard| shard_position(shard.as_document()?)).collect::<Option<_>>()?;
        return Some(Position::Shards(Arc::new(ShardPositions { time, shards })));
    }
    match position.get_document("token") {
        Ok(token) => {
            let token = RawDocumentBuf::try_from(token).ok()?;
            Some(Position::Stream { token: Bytes::from(token.into_bytes()), time })
        }
        Err(_) => Some(Position::Oplog(time)),
    }
}

fn shard_position(shard: &Document) -> Option<ShardPosition> {
    let name = shard.get_str("name").ok()?.into();
    let open_since = match shard.get("open_since") {
        Some(since) => Some(topology::op_time(since.as_document()?)?),
        None => None,
    };
    Some(ShardPosition { name, at: topology::op_time(shard)?, open_since })
}

/// The position of MongoShake's document; none while it is only a place holder. Its `ckpt` is a number
/// (`secs << 32 | inc`, 1 at first) or a timestamp and knows no term.
#[allow(clippy::wildcard_enum_match_arm, reason = "BSON has twenty types and two of them are times")]
pub(super) fn mongoshake(document: &Document) -> Option<Position> {
    let ts = match document.get("ckpt")? {
        Bson::Int64(n) => n.cast_unsigned(),
        Bson::Timestamp(ts) => (u64::from(ts.time) << 32) | u64::from(ts.increment),
        _ => return None,
    };
    let time = OpTime::from_ts(ts);
    (time.secs > 1).then_some(Position::Oplog(time))
}

fn op_time(time: OpTime) -> Document {
    doc! { "ts": time.timestamp(), "t": time.term, "date": date(time) }
}

fn date(time: OpTime) -> DateTime {
    DateTime::from_millis(i64::from(time.secs) * 1000)
}

fn write_plugin(info: &GenerationInfo) -> Document {
    doc! {
        "plugin": &info.plugin,
        "generation": info.generation.cast_signed(),
        "version": &info.version,
        "sha256": &info.sha256,
        "configuration": &info.configuration,
    }
}

fn read_plugin(document: &Document) -> GenerationInfo {
    GenerationInfo {
        plugin: text(document, "plugin"),
        generation: document.get_i64("generation").unwrap_or_default().cast_unsigned(),
        version: text(document, "version"),
        sha256: text(document, "sha256"),
        configuration: text(document, "configuration"),
    }
}

/// The epoch of the lease; 0 where there is none. A shell may have made another number type of it.
pub(super) fn epoch(document: &Document) -> i64 {
    lease(document).0
}

/// Epoch and holder of the lease.
pub(super) fn lease(document: &Document) -> (i64, String) {
    let Ok(lease) = document.get_document("lease") else {
        return (0, "nobody".to_owned());
    };
    let epoch = match lease.get("epoch") {
        Some(Bson::Int64(n)) => *n,
        Some(Bson::Int32(n)) => i64::from(*n),
        Some(Bson::Double(n)) => *n as i64,
        _ => 0,
    };
    (epoch, text(lease, "holder"))
}

/// What tells the lease of this job from that of every other one; none in a document of an older version.
pub(super) fn lease_id(document: &Document) -> Option<String> {
    document.get_document("lease").ok()?.get_str("id").ok().map(str::to_owned)
}

pub(super) fn text(document: &Document, name: &str) -> String {
    document.get_str(name).unwrap_or_default().to_owned()
}

/// `<job>/<set>/ui/<hex>`: found by a range of the `_id` index.
pub(super) fn identity_id(job: &str, source: CollectionUuid) -> String {
    let hex: String = source.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{job}/ui/{hex}")
}

/// All identity documents of a job.
pub(super) fn identities_of(job: &str) -> Document {
    // '0' follows '/': every `<job>/ui/…` and nothing else.
    doc! { "_id": { "$gte": format!("{job}/ui/"), "$lt": format!("{job}/ui0") } }
}

pub(super) fn write_identity(identity: &Identity) -> Document {
    let Identity { source, target, copied } = *identity;
    let mut written = doc! { "source": uuid(source), "target": uuid(target) };
    if let Some(copied) = copied {
        written.insert("copied", Timestamp { time: copied.secs, increment: copied.inc });
    }
    written
}

pub(super) fn identity(document: &Document) -> Result<Identity> {
    let side = |name| match document.get(name) {
        Some(Bson::Binary(binary)) => CollectionUuid::try_from(binary.bytes.as_slice()).ok(),
        _ => None,
    };
    let (source, target) = side("source").zip(side("target")).ok_or_else(|| {
        let text = format!("read the identity {}: it holds no pair", super::id_text(document));
        Error::new(Side::Store, Kind::Malformed, text)
    })?;
    let copied = document.get_timestamp("copied").ok().map(|at| OpTime::new(at.time, at.increment, -1));
    Ok(Identity { source, target, copied })
}

/// `<job>/<set>/view/<name on the source>`.
pub(super) fn view_id(job: &str, source: &Namespace) -> String {
    format!("{job}/view/{source}")
}

/// All documents of a job that pair views.
pub(super) fn views_of(job: &str) -> Document {
    doc! { "_id": { "$gte": format!("{job}/view/"), "$lt": format!("{job}/view0") } }
}

pub(super) fn write_view(pair: &ViewPair) -> Document {
    doc! { "source": pair.source.as_str(), "target": pair.target.as_str() }
}

pub(super) fn view(document: &Document) -> Result<ViewPair> {
    let side = |name| document.get_str(name).ok().map(Namespace::new);
    let (source, target) = side("source").zip(side("target")).ok_or_else(|| {
        let text = format!("read the names of the view {}: it holds no pair", super::id_text(document));
        Error::new(Side::Store, Kind::Malformed, text)
    })?;
    Ok(ViewPair { source, target })
}

fn uuid(bytes: CollectionUuid) -> Binary {
    Binary { subtype: BinarySubtype::Uuid, bytes: bytes.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(position: Position) -> Checkpoint {
        Checkpoint {
            stage: Stage::Incremental,
            position,
            plugins: vec![GenerationInfo {
                plugin: "namespace-filter".to_owned(),
                generation: 3,
                version: "0.1.0".to_owned(),
                sha256: "ab".to_owned(),
                configuration: "ef".to_owned(),
            }],
            configuration: "cd".to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let time = OpTime::new(1_700_000_000, 5, 2);
        let token = Bytes::copy_from_slice(bson::rawdoc! { "_data": "82" }.as_bytes());
        let shards = vec![
            ShardPosition { name: "s1".into(), at: time, open_since: Some(OpTime::new(1_700_000_000, 1, 2)) },
            ShardPosition { name: "s2".into(), at: OpTime::new(1_600_000_000, 0, -1), open_since: None },
        ];
        let cut = Position::Shards(Arc::new(ShardPositions { time, shards }));
        for position in [Position::Oplog(time), Position::Stream { token, time }, cut] {
            let checkpoint = checkpoint(position);
            assert_eq!(read(&write(&checkpoint).unwrap()).unwrap(), checkpoint);
        }
    }

    #[test]
    fn the_number_of_mongoshake_is_the_time() {
        let expected = Position::Oplog(OpTime::new(1_700_000_000, 7, -1));
        let number = (1_700_000_000_i64 << 32) | 7;
        assert_eq!(mongoshake(&doc! { "name": "rs", "ckpt": number }), Some(expected.clone()));
        let ts = Timestamp { time: 1_700_000_000, increment: 7 };
        assert_eq!(mongoshake(&doc! { "name": "rs", "ckpt": ts }), Some(expected));
        assert_eq!(mongoshake(&doc! { "name": "rs", "ckpt": 1_i64 }), None);
    }

    #[test]
    fn a_broken_document_is_named() {
        let fault = read(&doc! { "stage": "incremental", "position": { "t": 1 } }).unwrap_err();
        assert!(fault.to_string().contains("position"), "{fault}");
    }
}
