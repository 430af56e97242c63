//! Masks, renames and removes fields, wherever their values travel: full copy, inserts, replacements and updates.
//!
//! The rules are written once as a [`Patch`]. The second version, built with the feature `v2`, masks with another
//! text by default; swapping one file for the other while the stream runs shows a hot swap.

use oplogue_plugin::{Edit, Entry, Failure, Filter, Json, Patch, Route, Transform};

const MASK: &str = if cfg!(feature = "v2") { "[hidden]" } else { "***" };

struct MaskField {
    namespaces: Vec<String>,
    patch: Patch,
}

impl Filter for MaskField {
    fn new(config: &Json) -> Result<Self, Failure> {
        let with = config.text("with").unwrap_or(MASK);
        let mut patch = Patch::default();
        for path in config.texts("mask") {
            patch = patch.overwrite(path, with);
        }
        for rule in config.texts("rename") {
            let (from, to) = rule.split_once(':').ok_or_else(|| Failure::new(format!("{rule:?} is not from:to")))?;
            patch = patch.rename(from, to);
        }
        for path in config.texts("unset") {
            patch = patch.unset(path);
        }
        patch.check()?;
        Ok(Self { namespaces: config.texts("namespaces").map(str::to_owned).collect(), patch })
    }

    fn decide(&self, namespace: &str) -> Route {
        let covers =
            |rule: &String| namespace.strip_prefix(rule.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        if self.namespaces.is_empty() || self.namespaces.iter().any(covers) { Route::bodies() } else { Route::Pass }
    }
}

impl Transform for MaskField {
    fn apply(&mut self, entry: &Entry<'_>, edit: &mut Edit<'_>) -> Result<(), Failure> {
        edit.patch(entry, &self.patch)
    }
}

#[cfg(not(feature = "v2"))]
oplogue_plugin::export_transform!(MaskField, manifest = "manifest.json");
#[cfg(feature = "v2")]
oplogue_plugin::export_transform!(MaskField, manifest = "manifest-v2.json");

#[cfg(test)]
mod tests {
    use super::*;
    use oplogue_plugin::{Batch, Edits, Op, bson, run};

    #[test]
    fn a_field_has_one_rule() {
        let rules = Json::parse(r#"{"mask":["ssn"],"rename":["ssn:tax_id"]}"#).unwrap();
        assert!(MaskField::new(&rules).err().unwrap().message.contains("ssn"));
    }

    #[test]
    fn a_masked_insert() {
        let mut plugin = MaskField::new(&Json::parse(r#"{"mask":["ssn"]}"#).unwrap()).unwrap();
        // {_id: 1, ssn: "7"}
        let body = b"\x18\0\0\0\x10_id\0\x01\0\0\0\x02ssn\0\x02\0\0\x007\0\0";
        let mut body = body.to_vec();
        let length = body.len() as u32;
        body[..4].copy_from_slice(&length.to_le_bytes());
        let mut batch = Batch::default();
        batch.push(Op::Insert, "crm.people", &[], &body);
        let mut edits = Edits::keep_all(1);
        run(&mut plugin, &batch, &mut edits).unwrap();
        assert_eq!(bson::find(&edits.out, "ssn").unwrap().text(), Some(MASK));
    }
}
