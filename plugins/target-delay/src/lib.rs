//! Holds every change until `delay_ms` after it happened on the source, as MongoShake's `incr_sync.target_delay` does.
//!
//! Each entry is delayed by its own source time, not by its batch's. The full copy passes at once. The waiting is the
//! host's; nothing is kept here.

use oplogue_plugin::{Body, Edit, Entry, Failure, Filter, Json, Ops, Route, Transform};

struct TargetDelay {
    delay_ms: u32,
}

impl Filter for TargetDelay {
    fn new(config: &Json) -> Result<Self, Failure> {
        let delay_ms = config.integer("delay_ms").and_then(|ms| u32::try_from(ms).ok());
        Ok(Self { delay_ms: delay_ms.ok_or_else(|| Failure::new("delay_ms is no number of milliseconds"))? })
    }

    fn decide(&self, _namespace: &str) -> Route {
        if self.delay_ms == 0 { Route::Pass } else { Route::Inspect { body: Body::None, ops: Ops::CHANGES } }
    }
}

impl Transform for TargetDelay {
    fn apply(&mut self, _entry: &Entry<'_>, edit: &mut Edit<'_>) -> Result<(), Failure> {
        edit.delay_ms(self.delay_ms);
        Ok(())
    }
}

oplogue_plugin::export_transform!(TargetDelay, manifest = "manifest.json");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_delay_nothing_is_inspected() {
        let plugin = |ms| TargetDelay::new(&Json::parse(&format!(r#"{{"delay_ms":{ms}}}"#)).unwrap()).unwrap();
        assert_eq!(plugin(0).decide("a.b"), Route::Pass);
        assert_eq!(plugin(1).decide("a.b"), Route::Inspect { body: Body::None, ops: Ops::CHANGES });
    }
}
