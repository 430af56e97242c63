//! The keys that MongoShake does not have: status address and limits.
//!
//! `[[plugin]]` is not among them: its entries have fields of their own and are read by `raw::plugin`. Two more keys of ours
//! stand among those of incremental. A name here never shadows one of MongoShake's.

use super::Shape::{Ip, Path, Size, Time};
use super::Since::Oplogue;
use super::Status::Supported;
use super::{KeySpec, SizeUnit, TimeUnit, key};

const MIB: u64 = 1 << 20;

#[rustfmt::skip]
pub(super) const KEYS: &[KeySpec] = &[
    key("monitor.listen", Ip, "127.0.0.1", Oplogue, Supported,
        "Address on which the status ports listen. There is no authentication: keep it on loopback or inside a trusted network."),
    key("limits.memory_bytes", Size(SizeUnit::Bytes, 16 * MIB, 1 << 40), "64MB", Oplogue, Supported,
        "Memory for data on its way from the source to the target."),
    key("limits.transaction_bytes", Size(SizeUnit::Bytes, 1 << 10, 1 << 40), "64MB", Oplogue, Supported,
        "Memory for transactions that are not committed yet. What is more is put on disk until they are."),
    key("limits.spill_dir", Path, "", Oplogue, Supported,
        "The folder for that. Empty: the system's folder for temporary files, which should not be a memory disk then."),
    key("limits.spill_bytes", Size(SizeUnit::Bytes, 1 << 10, 1 << 50), "16GB", Oplogue, Supported,
        "Most disk space for that; beyond it the run stops."),
    key("limits.guest_memory_bytes", Size(SizeUnit::Bytes, MIB, 4096 * MIB), "64MB", Oplogue, Supported,
        "Memory of one instance of a plugin."),
    key("limits.guest_batch_time", Time(TimeUnit::Milliseconds, 10, 600_000), "1000", Oplogue, Supported,
        "A plugin that works longer on one batch is stopped."),
    key("limits.answer_time", Time(TimeUnit::Seconds, 1, 3_600), "120", Oplogue, Supported,
        "A server that leaves a request without an answer for so long has lost its network: the run goes back and asks \
         again. Commands that may take hours count as answered while the server works on them."),
    key("limits.shutdown_time", Time(TimeUnit::Seconds, 1, 86_400), "30", Oplogue, Supported,
        "Time for an ordered shutdown, then exit code 3."),
];
