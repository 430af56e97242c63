//! Transactions of the source in one transaction of the target (`incr_sync.transaction = "atomic"`).
//!
//! All statements go in source order as far as it counts: waves one after the other, and within a wave deletes first.
//! Where a unique index refuses that, final images of all documents are put in place, in one transaction too. What the
//! target does not take as one even so (a document that another program put there, a statement that needs a cure, a
//! transaction that is too large for it) is written in parts, and the caller is told.

use oplogue_engine::error::Result;
use oplogue_engine::model::NamespaceId;
use oplogue_engine::sink::{FlushReport, Refusal, WholeReport, Write, newest_write};

use super::namespace::Prepared;
use super::plan::computed;
use super::together::{self, Why};
use super::{MongoSink, merge};
use crate::mongodb::transaction;

type Indexed<'a> = (usize, &'a Write);

impl MongoSink {
    pub(super) async fn write_waves(&self, waves: &[Vec<Write>]) -> Result<WholeReport> {
        let of_wave = |wave: &Vec<Write>| wave.iter().map(|w| computed(w).unwrap_or_else(|| w.clone())).collect();
        let waves: &[Vec<Write>] = &waves.iter().map(of_wave).collect::<Vec<_>>();
        let target = self.target().await?;
        if target.is_mongos {
            return self.write_in_parts(waves).await;
        }
        let groups = self.by_destination(waves);
        let mut prepared = Vec::with_capacity(groups.len());
        for (namespace, group) in &groups {
            prepared.push(self.prepare(*namespace, group, target).await?);
        }
        let fits = prepared.iter().all(Prepared::fits_transaction) && target.is_replicated;
        let Some(origin) = together::shared_origin(waves.iter().flatten()).filter(|_| fits) else {
            return self.write_in_parts(waves).await;
        };
        let mut tries = transaction::Tries::new();
        loop {
            match self.write_at_once(&prepared, target, origin).await? {
                Ok(sent) => {
                    let mut report = FlushReport::default();
                    for (part, sent) in prepared.iter().zip(sent) {
                        merge(&mut report, self.write_prepared(part, sent).await?);
                    }
                    return Ok(WholeReport { report, at_once: true });
                }
                Err(Why::BrokenOff) => {
                    if !tries.again().await {
                        break;
                    }
                }
                Err(Why::UniqueKey) => {
                    let writes: Vec<&Write> = waves.iter().flatten().collect();
                    if let Some(time) = self.settle_at_once(&writes, origin).await? {
                        let report = FlushReport { operation_time: Some(time), ..FlushReport::default() };
                        return Ok(WholeReport { report, at_once: true });
                    }
                    break;
                }
                Err(Why::Refused) => break,
            }
        }
        self.write_in_parts(waves).await
    }

    /// The writes of each wave by the collection that they belong to now, in source order; indices count through all waves.
    fn by_destination<'w>(&self, waves: &'w [Vec<Write>]) -> Vec<(NamespaceId, Vec<Indexed<'w>>)> {
        let mut groups: Vec<(NamespaceId, Vec<Indexed<'_>>)> = Vec::new();
        let mut index = 0;
        for wave in waves {
            let first = groups.len();
            for write in wave {
                if let Some(destination) = self.destination(write) {
                    let known = groups.iter_mut().skip(first).find(|(namespace, _)| *namespace == destination);
                    match known {
                        Some((_, group)) => group.push((index, write)),
                        None => groups.push((destination, vec![(index, write)])),
                    }
                }
                index += 1;
            }
        }
        groups
    }

    /// Wave by wave. Where unique keys collide, what is left is settled together.
    async fn write_in_parts(&self, waves: &[Vec<Write>]) -> Result<WholeReport> {
        use oplogue_engine::sink::Sink as _;
        let mut all = FlushReport::default();
        let mut offset = 0;
        for (number, wave) in waves.iter().enumerate() {
            let part = self.write(wave).await?;
            all.operation_time = newest_write(all.operation_time, part.operation_time);
            let (unique, other): (Vec<_>, Vec<_>) =
                part.refused.into_iter().partition(|(_, refusal)| matches!(refusal, Refusal::UniqueKey { .. }));
            all.refused.extend(other.into_iter().map(|(at, refusal)| (at + offset, refusal)));
            if !unique.is_empty() {
                let own = unique.iter().filter_map(|(at, _)| Some((at + offset, wave.get(*at)?)));
                let later = waves.iter().skip(number + 1).flatten().enumerate();
                let later = later.map(|(at, write)| (at + offset + wave.len(), write));
                let rest: Vec<Indexed<'_>> = own.chain(later).collect();
                let writes: Vec<Write> = rest.iter().map(|(_, write)| (*write).clone()).collect();
                let settled = self.settle_group(&writes, true).await?;
                all.operation_time = newest_write(all.operation_time, settled.operation_time);
                let refused = settled.refused.into_iter();
                all.refused.extend(refused.filter_map(|(at, refusal)| Some((rest.get(at)?.0, refusal))));
                break;
            }
            offset += wave.len();
        }
        Ok(WholeReport { report: all, at_once: false })
    }
}
