//! The one primary that a run writes to, told by its election.
//!
//! A write that waits for a server while the target elects would go to whoever wins. The winner may lack earlier writes
//! of the run, and a later one on top of that hole makes a document that no server ever had: a replay mends its values,
//! but where a source of 4.4 adds fields (`$v:1`), they come to stand in another order. So what a run writes goes to the
//! primary that it began with or nowhere. The address does not tell: a server that is killed and comes back first can
//! lead again, without what it had not journalled.
//!
//! The driver offers no such choice but by a predicate over what it shows of a server, and it shows the election only
//! when a description is serialized. A standalone server and a `mongos` name no election: there the driver chooses.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bson::oid::ObjectId;
use bson::{DateTime, Document};
use mongodb::action::{Action as _, RunCommand};
use mongodb::options::{SelectionCriteria, ServerAddress};
use mongodb::{ServerInfo, ServerType};
use oplogue_engine::error::{Error, Kind, Result, Side};
use tokio_util::sync::CancellationToken;

use super::patience::{self, Asked};

/// A primary in one term of its. Cheap to ask; made once a run.
#[derive(Default)]
pub(crate) struct Primary {
    /// Selects it alone; `None` where there is no election.
    criteria: Option<SelectionCriteria>,
    deposed: CancellationToken,
}

impl Primary {
    /// The one that answered `hello` with this.
    ///
    /// # Errors
    /// `FailedOver` when it is a member that does not lead any more.
    pub(crate) fn of(hello: &Document) -> Result<Self> {
        let Ok(election) = hello.get_object_id("electionId") else {
            if hello.get_str("setName").is_ok() && !hello.get_bool("isWritablePrimary").unwrap_or(false) {
                let text = "ask the target what it is: its primary leads no more";
                return Err(Error::new(Side::Sink, Kind::FailedOver, text));
            }
            return Ok(Self::default());
        };
        let deposed = CancellationToken::new();
        let (descriptions, successor) = (Descriptions::default(), deposed.clone());
        let criteria = SelectionCriteria::Predicate(Arc::new(move |server| {
            if server.server_type() != ServerType::RsPrimary {
                return false;
            }
            let leads = descriptions.election(server);
            // A term is the last eight bytes of its election's id, so the younger one is the greater.
            if leads.is_some_and(|leads| leads > election) {
                successor.cancel();
            }
            leads == Some(election)
        }));
        Ok(Self { criteria: Some(criteria), deposed })
    }

    /// Waits for the answer to a request, unless a successor is elected: then it waits for a server that never comes, or
    /// was sent to one that can no longer keep what it writes.
    async fn while_it_leads<T>(&self, doing: &str, asked: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            answer = asked => answer,
            () = self.deposed.cancelled() => {
                let text = format!("{doing}: the target has another primary than the run began with");
                Err(Error::new(Side::Sink, Kind::FailedOver, text))
            }
        }
    }
}

/// Sends a command that takes no longer than its data, and waits for the answer. `None` = to whoever leads.
///
/// # Errors
/// `FailedOver` when the primary has a successor; `Unavailable` when no answer comes.
pub(crate) async fn answered(
    primary: Option<&Primary>,
    doing: &str,
    command: RunCommand<'_>,
) -> Result<std::result::Result<Document, mongodb::error::Error>> {
    let Some(primary) = primary else { return patience::answered(Side::Sink, doing, command).await };
    let command = command.optional(primary.criteria.clone(), RunCommand::selection_criteria);
    primary.while_it_leads(doing, patience::answered(Side::Sink, doing, command)).await
}

/// The same with a command that may rightly take hours, and says by its `comment` which one it is.
pub(crate) async fn worked_on(
    primary: Option<&Primary>,
    asked: &Asked<'_>,
    doing: &str,
    command: RunCommand<'_>,
) -> Result<std::result::Result<Document, mongodb::error::Error>> {
    let Some(primary) = primary else { return patience::worked_on(asked, doing, command).await };
    let command = command.optional(primary.criteria.clone(), RunCommand::selection_criteria);
    primary.while_it_leads(doing, patience::worked_on(asked, doing, command)).await
}

impl fmt::Debug for Primary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Primary").field("deposed", &self.deposed.is_cancelled()).finish_non_exhaustive()
    }
}

/// The newest description of a primary that was looked into: every command asks, and they change with heartbeats.
#[derive(Default)]
struct Descriptions(Mutex<Option<Seen>>);

struct Seen {
    address: ServerAddress,
    updated: Option<DateTime>,
    election: Option<ObjectId>,
}

impl Descriptions {
    fn election(&self, server: &ServerInfo<'_>) -> Option<ObjectId> {
        let (address, updated) = (server.address(), server.last_update_time());
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = newest.as_ref().filter(|seen| seen.updated == updated && seen.address == *address) {
            return seen.election;
        }
        let election = election(server);
        *newest = Some(Seen { address: address.clone(), updated, election });
        election
    }
}

/// The election by which a server leads, out of its last `hello`.
fn election(server: &ServerInfo<'_>) -> Option<ObjectId> {
    let shown = bson::serialize_to_raw_document_buf(server).ok()?;
    let hello = shown.get_document("reply").ok()?.get_document("Ok").ok()?.get_document("command_response").ok()?;
    hello.get_object_id("electionId").ok()
}
