//! Stub.
use super::sink::MongoSink;
use oplogue_engine::error::Result;
use oplogue_engine::model::{Change, OpTime};
impl MongoSink {
    pub(super) async fn execute_ddl(&self, _c: &Change, _o: bool) -> Result<Option<OpTime>> { Ok(None) }
}
