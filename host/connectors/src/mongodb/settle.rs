//! Stub.
use super::sink::MongoSink;
use oplogue_engine::error::Result;
use oplogue_engine::sink::{FlushReport, Write};
impl MongoSink {
    pub(super) async fn settle_group(&self, _w: &[Write]) -> Result<FlushReport> {
        Ok(FlushReport::default())
    }
}
