//! The keys of incremental, rows of the key table.
//!
//! Most of MongoShake's queue sizes and debugging switches are here, as hints and as keys that accept their default only.
//! Two keys of our own stand among them because an operator looks for them here. Nothing reads a file here.

use super::Shape::{Address, Bool, Int, Namespaces, OneOf, Text, Texts, Time};
use super::Since::{Conf, Hidden, Newer};
use super::Status::{DefaultOnly, Hint, Inert, Renamed, Supported};
use super::{KeySpec, TimeUnit, key};

const QUEUES: &str = "queue sizes are hints: limits.memory_bytes bounds all queues in bytes";
const BY_KEY: &str = "changes are always spread and ordered by namespace and _id";
const OTHER_TUNNEL: &str = "it matters only when tunnel is not direct";
const CHANGE_STREAM: &str =
    "whole documents are asked for where a server shows no exact form of an update, and nowhere else";
const COUNT_MAX: i64 = 1 << 30;

#[rustfmt::skip]
pub(super) const KEYS: &[KeySpec] = &[
    key("incr_sync.mongo_fetch_method", OneOf(&["oplog", "change_stream"]), "oplog", Conf(4), Supported,
        "Where changes are read from, oplog or change_stream. A change stream of a replica set needs no right to read the oplog; docs/OPERATIONS.md says what it lacks, by version of the source."),
    key("incr_sync.change_stream.watch_full_document", Bool, "false", Conf(4), Hint(CHANGE_STREAM),
        "Ask for whole documents."),
    key("incr_sync.oplog.gids", Texts, "", Conf(4), Supported,
        "Global ids of Alibaba's kernels, for two-way replication: only entries whose g is one of these pass. Blank: g is not looked at. On community servers use incr_sync.loop_prevention."),
    key("incr_sync.loop_prevention.origin", Int(0, 255), "0", super::Since::Oplogue, Supported,
        "Number of this source among clusters that replicate to each other. Every write to the target carries it, or the number that the change carries already. 0: no marks."),
    key("incr_sync.loop_prevention.drop", Texts, "", super::Since::Oplogue, Supported,
        "Numbers of the clusters whose changes are left out, because the target has them: the target's own."),
    key("incr_sync.shard_key", OneOf(&["auto", "id", "collection"]), "collection", Conf(4), Supported,
        "auto, id or collection. All three spread by namespace and _id and keep the order of each document. Collections that need one order for all their changes (capped ones, ones with a collation) get one writer; with auto also those whose unique keys collide again and again."),
    key("incr_sync.shard_by_object_id_whitelist", Namespaces, "", Conf(6), Hint(BY_KEY),
        "Collections that MongoShake spreads by _id."),
    key("incr_sync.worker", Int(1, 256), "8", Conf(4), Supported,
        "Writers that work at once.").at("incr_sync.worker.count"),
    key("incr_sync.worker.batch_queue_size", Int(1, COUNT_MAX), "64", Conf(4), Hint(QUEUES),
        "Queue size of MongoShake."),
    key("incr_sync.worker.oplog_compressor", OneOf(&["none", "gzip", "zlib", "deflate", "snappy"]), "none", Conf(4), Inert(OTHER_TUNNEL),
        "Compression of messages."),
    key("incr_sync.target_delay", Time(TimeUnit::Seconds, 0, 366 * 86_400), "0", Conf(4), Supported,
        "Every change waits until it is this old."),
    key("incr_sync.adaptive.batching_max_size", Int(1, COUNT_MAX), "1024", Conf(4), Hint(QUEUES),
        "Batch size of MongoShake."),
    key("incr_sync.fetcher.buffer_capacity", Int(1, COUNT_MAX), "256", Conf(4), Hint(QUEUES),
        "Buffer size of MongoShake."),
    key("incr_sync.fetcher.buffer_size_threshold_in_kb", Int(1, COUNT_MAX), "512", Newer("version 11"), Hint(QUEUES),
        "Buffer size of MongoShake."),
    key("incr_sync.reader.fetch_batch_size", Int(1, 1_000_000), "1024", Conf(10), Supported,
        "Entries asked for in one reply of the source."),
    key("incr_sync.reader.buffer_time", Time(TimeUnit::Seconds, 0, 3_600), "1", Hidden, Hint("nothing waits for a timer"),
        "Time after which MongoShake flushes its buffer."),
    key("incr_sync.reader.debug", OneOf(&["", "discard", "print"]), "", Hidden, DefaultOnly("reading without writing"),
        "Read without writing."),
    key("incr_sync.executor", Int(1, 1_024), "1", Hidden, Hint(BY_KEY),
        "Writers inside one worker of MongoShake.").at("incr_sync.executor.count"),
    key("incr_sync.executor.upsert", Bool, "false", Conf(4), Supported,
        "MongoShake's answer to an update whose document is missing. true is the same as missing_document = \"refetch\": no partial document is invented."),
    key("incr_sync.executor.missing_document", OneOf(&["ignore", "refetch", "upsert", "stop"]), "refetch", super::Since::Oplogue, Supported,
        "An update whose document the target lacks: ignore it; refetch the whole document from the source; upsert what the update carries; stop."),
    key("incr_sync.executor.insert_on_dup_update", Bool, "false", Conf(4), Supported,
        "An insert whose _id, or value of a unique index, another document of the target has: true puts it in that one's place. false: one whose _id is taken is passed over, a taken unique value is a conflict. Where changes may be repeated (after a start) a taken _id is always replaced."),
    key("incr_sync.executor.dup_key_strategy", OneOf(&["ignore", "error", "delete_and_retry", "skip"]), "ignore", Newer("version 14"), Supported,
        "A duplicate that is left when everything is settled, an insert whose _id is taken included. ignore: an insert whose _id is taken is passed over, any other is dealt with as conflict_write_to says. error: the run stops at it. delete_and_retry: the document of the target that stands in the way is deleted, and the change applied. skip: one of an index of dup_key_skip_rules is given up (recorded with conflict_write_to = db), the run stops at any other."),
    key("incr_sync.executor.dup_key_skip_rules", Texts, "", Newer("version 14"), Supported,
        "With dup_key_strategy = skip: indexes of the target whose duplicates are given up, as db.collection:index_name,index_name or db.collection:*."),
    key("incr_sync.executor.immutable_shard_key_fallback", Bool, "false", Newer("2.8.9"), Supported,
        "On a sharded target, an update that changes the document's value of the target's shard key: delete the document there and write it whole, as the source has it. false: the target judges, and what it refuses is a conflict (conflict_write_to). A whole document goes to its new value either way."),
    key("incr_sync.executor.bypass_document_validation", Bool, "false", Newer("version 12"), DefaultOnly("bypassing validators"),
        "Bypass the target's validators."),
    key("incr_sync.executor.majority_enable", Bool, "false", Conf(4), Supported,
        "Write with majority concern. The checkpoint waits for the majority either way."),
    key("incr_sync.executor.debug", Bool, "false", Hidden, DefaultOnly("reading without writing"),
        "Read without writing."),
    key("incr_sync.conflict_write_to", OneOf(&["none", "db", "sdk"]), "none", Conf(4), Supported,
        "What happens to a change that the target refuses for good. none: the run stops at it, except at an insert whose _id is taken. db: it is recorded in the collection conflicts of the database <checkpoint.storage.db>__conflict on the target, and the run goes on. sdk: the [[plugin]] with handles = \"conflicts\" rules over each."),
    key("incr_sync.transaction", OneOf(&["split", "atomic"]), "split", super::Since::Oplogue, Supported,
        "split: the writes of a transaction are spread like any others once it is committed. atomic: they become visible on the target at once, in one transaction there, once the overlap of a start is over. One that is larger than limits.transaction_bytes, or with DDL inside, is split even so, with a warning."),
    key("incr_sync.ddl_refused", OneOf(&["stop", "skip"]), "stop", super::Since::Oplogue, Supported,
        "A DDL that the target refuses (a missing privilege, an option it does not know): stop before it; skip it, with a line in the log."),
    key("incr_sync.barrier.ordering_enable", Bool, "false", Newer("2.8.9"), Hint("a DDL is always ordered against the changes of its scope"),
        "Strict order around DDL."),
    key("incr_sync.lazy_oplog_parse", Bool, "true", Newer("2.8.9"), Hint("documents are never parsed without need"),
        "Parse documents late."),
    key("incr_sync.field.whitelist", Texts, "", Newer("2.8.9"), DefaultOnly("copying only some fields (a plugin can)"),
        "Fields that are copied."),
    key("incr_sync.collision_detection", Bool, "false", Hidden, Hint(BY_KEY),
        "MongoShake's collision matrix."),
    key("incr_sync.dbref", Bool, "false", Hidden, DefaultOnly("renaming inside DBRefs"),
        "Rename inside DBRefs."),
    key("incr_sync.tunnel", OneOf(&["direct", "rpc", "tcp", "file", "kafka", "mock"]), "direct", Hidden, Renamed("tunnel"),
        "Old name.").at("incr_sync.tunnel.type"),
    key("incr_sync.tunnel.address", Address, "", Hidden, Renamed("tunnel.address"), "Old name."),
    key("incr_sync.tunnel.message", OneOf(&["raw", "json", "bson"]), "raw", Hidden, Renamed("tunnel.message"), "Old name."),
    key("incr_sync.tunnel.write_thread", Int(0, 65_536), "0", Conf(9), Inert(OTHER_TUNNEL),
        "Encoding threads."),
    key("incr_sync.tunnel.kafka.debug", Text, "", Hidden, Inert("it matters only with tunnel = kafka"),
        "Write messages to a file."),
    key("incr_sync.move_chunk_enable", Bool, "false", Hidden, super::Status::Removed("it was never in a release of MongoShake; delete the line"),
        "Never released."),
];
