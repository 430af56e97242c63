//! Smaller versions of a failing case, for whoever has to understand it.
//!
//! One operation, one operator, one field is taken away at a time; the caller keeps a version if it still fails. What
//! comes out is not the smallest case there is, only one from which nothing more can be dropped.

use bson::{RawBson, RawBsonRef, RawDocument, RawDocumentBuf, cstr};

use super::{Case, Operation};

/// Versions of `case` with one thing less, the largest cuts first.
#[must_use]
pub fn smaller(case: &Case) -> Vec<Case> {
    let mut found = Vec::new();
    for at in 0..case.operations.len() {
        let mut less = case.clone();
        less.operations.remove(at);
        found.push(less);
    }
    for start in without_one(&case.start, &["_id"]) {
        found.push(Case { start, ..case.clone() });
    }
    for at in 0..case.operations.len() {
        for operation in lesser(&case.operations[at]) {
            let mut less = case.clone();
            less.operations[at] = operation;
            found.push(less);
        }
    }
    found
}

fn lesser(operation: &Operation) -> Vec<Operation> {
    let mut found: Vec<Operation> = without_one(&operation.0, &["u", "delete"]).into_iter().map(Operation).collect();
    let rest = |u: RawBson| {
        let mut whole = RawDocumentBuf::new();
        whole.append(cstr!("u"), u);
        for (name, value) in operation.0.iter().flatten().filter(|(name, _)| name.as_str() != "u") {
            whole.append(name, value);
        }
        Operation(whole)
    };
    match operation.0.get("u") {
        Ok(Some(RawBsonRef::Document(update))) => found.extend(thinner(update).into_iter().map(|u| rest(u.into()))),
        Ok(Some(RawBsonRef::Array(stages))) => {
            let stages: Vec<&RawDocument> = stages.into_iter().flatten().filter_map(|s| s.as_document()).collect();
            for at in 0..stages.len() {
                for stage in thinner(stages[at]) {
                    let mut list = bson::RawArrayBuf::new();
                    let others = stages.iter().enumerate();
                    others.for_each(|(n, s)| list.push(if n == at { stage.clone() } else { (*s).to_owned() }));
                    found.push(rest(list.into()));
                }
            }
        }
        _ => {}
    }
    found
}

/// One field less, at any level.
fn thinner(document: &RawDocument) -> Vec<RawDocumentBuf> {
    let mut found = if document.iter().count() > 1 { without_one(document, &["_id"]) } else { Vec::new() };
    for (at, element) in document.iter().flatten().enumerate() {
        let RawBsonRef::Document(inner) = element.1 else { continue };
        for less in thinner(inner) {
            let mut whole = RawDocumentBuf::new();
            for (n, (name, value)) in document.iter().flatten().enumerate() {
                if n == at {
                    whole.append(name, less.clone());
                } else {
                    whole.append(name, value);
                }
            }
            found.push(whole);
        }
    }
    found
}

fn without_one(document: &RawDocument, keep: &[&str]) -> Vec<RawDocumentBuf> {
    let mut found = Vec::new();
    for (at, (name, _)) in document.iter().flatten().enumerate() {
        if keep.contains(&name.as_str()) {
            continue;
        }
        let mut less = RawDocumentBuf::new();
        for (_, (name, value)) in document.iter().flatten().enumerate().filter(|(n, _)| *n != at) {
            less.append(name, value);
        }
        found.push(less);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn every_part_can_go() {
        let case = Case {
            id: 1,
            start: rawdoc! { "_id": 1, "a": 1, "b": 2 },
            operations: vec![
                Operation::update(rawdoc! { "$set": { "x": 1, "y": 2 } }).with(cstr!("upsert"), true),
                Operation::delete(),
            ],
        };
        let versions = smaller(&case);
        assert!(versions.iter().any(|v| v.operations.len() == 1));
        assert!(versions.iter().any(|v| v.start == rawdoc! { "_id": 1, "b": 2 }));
        let thinner = rawdoc! { "u": { "$set": { "y": 2 } }, "upsert": true };
        assert!(versions.iter().any(|v| v.operations[0].0 == thinner));
        assert!(versions.iter().all(|v| v != &case));
    }
}
