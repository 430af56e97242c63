//! Drops changes of the catalogue unless they are enabled, as MongoShake's `filter.ddl_enable` does.
//!
//! It is a plugin so that an operator can replace the rule by a finer one. It asks to see DDL entries only, so
//! documents pass at the price of a route and it never sees one.

use oplogue_plugin::{Body, Edit, Entry, Failure, Filter, Json, Op, Ops, Route, Transform};

struct DdlFilter {
    enable: bool,
}

impl Filter for DdlFilter {
    fn new(config: &Json) -> Result<Self, Failure> {
        Ok(Self { enable: config.boolean("enable").unwrap_or(false) })
    }

    fn decide(&self, _namespace: &str) -> Route {
        if self.enable { Route::Pass } else { Route::Inspect { body: Body::None, ops: Ops::DDL } }
    }
}

impl Transform for DdlFilter {
    fn apply(&mut self, entry: &Entry<'_>, edit: &mut Edit<'_>) -> Result<(), Failure> {
        if entry.op == Op::Ddl {
            edit.drop_entry();
        }
        Ok(())
    }
}

oplogue_plugin::export_transform!(DdlFilter, manifest = "manifest.json");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ddl_is_inspected() {
        let plugin = |on| DdlFilter::new(&Json::parse(&format!(r#"{{"enable":{on}}}"#)).unwrap()).unwrap();
        assert_eq!(plugin(true).decide("a.b"), Route::Pass);
        assert_eq!(plugin(false).decide("a.b"), Route::Inspect { body: Body::None, ops: Ops::DDL });
    }
}
