//! What a view reads from: the collections that its definition names, for whoever must rename them.
//!
//! A view's `viewOn` and the stages `$lookup`, `$graphLookup` and `$unionWith` of its pipeline name collections of the
//! view's own database, at any depth of sub-pipelines and `$facet`. When a plugin renames those collections the
//! definition must follow, or the view shows nothing. Everything else of the definition is passed on byte for byte;
//! what a name becomes is the caller's to say.

use bytes::Bytes;

use super::raw::{Elements, Malformed, kind};

/// Where in a definition the walk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The options of `create`.
    Definition,
    /// An array of stages.
    Pipeline,
    Stage,
    /// The argument of a stage that names a collection in this field.
    Join(&'static [u8]),
    /// The argument of `$facet`: a pipeline in each field.
    Facets,
}

/// The collections that a view's options name, in the order in which they stand there.
///
/// # Errors
/// When the options are no BSON.
pub fn sources(options: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut names = Vec::new();
    let mut note = |name: &str| {
        names.push(name.to_owned());
        name.to_owned()
    };
    rewritten(options, Place::Definition, &mut note)?;
    Ok(names)
}

/// A view's options with every collection name put through `name`.
///
/// # Errors
/// When the options are no BSON.
pub fn with_sources(options: &[u8], mut name: impl FnMut(&str) -> String) -> Result<Bytes, Malformed> {
    Ok(Bytes::from(rewritten(options, Place::Definition, &mut name)?))
}

fn rewritten(document: &[u8], place: Place, name: &mut dyn FnMut(&str) -> String) -> Result<Vec<u8>, Malformed> {
    let mut out = vec![0; 4];
    out.reserve(document.len());
    for element in Elements::new(document)? {
        let element = element?;
        out.push(element.kind);
        out.extend_from_slice(element.name);
        out.push(0);
        match inside(place, element.name, element.kind) {
            Some(Inside::Name) => put_string(&mut out, &name(text(element.value))),
            Some(Inside::Place(place)) => out.extend(rewritten(element.value, place, name)?),
            None => out.extend_from_slice(element.value),
        }
    }
    out.push(0);
    let length = i32::try_from(out.len()).map_err(|_| Malformed { offset: 0, reason: "a view of more than 2 GiB" })?;
    if let Some(prefix) = out.get_mut(..4) {
        prefix.copy_from_slice(&length.to_le_bytes());
    }
    Ok(out)
}

/// What an element is to the walk, if it matters.
enum Inside {
    /// The name of a collection.
    Name,
    Place(Place),
}

fn inside(place: Place, name: &[u8], of_kind: u8) -> Option<Inside> {
    match (place, name, of_kind) {
        (Place::Definition, b"viewOn", kind::STRING) | (Place::Stage, b"$unionWith", kind::STRING) => {
            Some(Inside::Name)
        }
        (Place::Join(field), _, kind::STRING) if name == field => Some(Inside::Name),
        (Place::Definition | Place::Join(_), b"pipeline", kind::ARRAY) | (Place::Facets, _, kind::ARRAY) => {
            Some(Inside::Place(Place::Pipeline))
        }
        (Place::Pipeline, _, kind::DOCUMENT) => Some(Inside::Place(Place::Stage)),
        (Place::Stage, b"$lookup" | b"$graphLookup", kind::DOCUMENT) => Some(Inside::Place(Place::Join(b"from"))),
        (Place::Stage, b"$unionWith", kind::DOCUMENT) => Some(Inside::Place(Place::Join(b"coll"))),
        (Place::Stage, b"$facet", kind::DOCUMENT) => Some(Inside::Place(Place::Facets)),
        _ => None,
    }
}

fn text(value: &[u8]) -> &str {
    let bytes = value.get(4..value.len().saturating_sub(1)).unwrap_or_default();
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    let length = i32::try_from(text.len() + 1).unwrap_or(i32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Document, rawdoc};

    #[test]
    fn every_name_is_found_and_nothing_else_changes() {
        let view = |a: &str, b: &str, c: &str, d: &str, e: &str, f: &str| {
            rawdoc! {
                "viewOn": a,
                "pipeline": [
                    { "$match": { "from": "x", "coll": "y", "viewOn": "z", "$lookup": { "from": "x" } } },
                    { "$lookup": { "from": b, "as": "from", "pipeline": [
                        { "$unionWith": c }, { "$project": { "pipeline": [{ "$lookup": { "from": "x" } }] } },
                    ] } },
                    { "$facet": { "from": [{ "$graphLookup": { "from": d, "startWith": "$from" } }] } },
                    { "$unionWith": { "coll": e, "pipeline": [{ "$lookup": { "from": f, "localField": "from" } }] } },
                ],
                "collation": { "locale": "en" },
            }
        };
        let given = view("a", "b", "c", "d", "e", "f");
        assert_eq!(sources(given.as_bytes()).unwrap(), ["a", "b", "c", "d", "e", "f"]);
        let renamed = with_sources(given.as_bytes(), |name| format!("new_{name}")).unwrap();
        let expected = view("new_a", "new_b", "new_c", "new_d", "new_e", "new_f");
        assert_eq!(&renamed[..], expected.as_bytes());
        assert!(bson::deserialize_from_slice::<Document>(&renamed).is_ok());
    }
}
