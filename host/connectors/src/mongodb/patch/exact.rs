//! The exact path: a diff as one `$replaceWith` stage that does what the server's own diff applier does.
//!
//! What the applier does was found on real servers (correctness.md §1): `u` keeps a field's place and appends a
//! missing field, `i` always moves to the end, a diff of a missing field is skipped, a diff of a value of the wrong
//! type makes it null, arrays are padded with nulls. So the same statement gives the server's own bytes on the right
//! state, on an older one and on a newer one, which is what makes replays safe. Field names never become part of an
//! expression unless they are plain; values always stand under `$literal`. Expressions keep one of two fields of the
//! same name, so a document that has such never comes out of here changed: see [`refuse_twins`].

use thiserror::Error;

use super::Dialect;
use super::diff::{ArrayChange, ArrayDiff, DiffError, Node, ObjectDiff, elements};
use super::shape::{self, Shape};
use crate::mongodb::writer::RawWriter;

/// Up to this many names are taken out by nested `$unsetField`; more go by a filter over the object's fields.
const UNSET_MAX: usize = 8;

/// Why a patch has no exact statement.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CompileError {
    /// The diff itself is not readable.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// The stage would be nested more deeply than a command may be: the document must be read from the source.
    #[error("the update is nested too deeply for one statement")]
    TooDeep,
    /// The statement would be larger than a command may be.
    #[error("the update is too large for one statement")]
    TooLarge,
    /// A value holds two fields of one name. Servers compute the difference that a pipeline makes, and there 5.0.4
    /// aborts and 6.0.27 refuses.
    #[error("the update holds a document with two fields of one name")]
    Twins,
}

/// What a stage reads, and how it may be put.
#[derive(Debug, Clone, Copy)]
struct Input<'a> {
    path: &'a [u8],
    dialect: Dialect,
}

impl Input<'_> {
    /// The variable of [`let_value`].
    fn variable(self) -> Input<'static> {
        Input { path: b"$$v", dialect: self.dialect }
    }
}

/// The pipeline `[{$replaceWith: {$literal: base}}, one stage a diff …]` as a raw BSON array, without the first stage
/// when there is no base.
///
/// # Errors
/// [`CompileError`] when a diff is unreadable, or has no form that the server would take.
pub fn pipeline<'a>(
    dialect: Dialect,
    base: Option<&[u8]>,
    diffs: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, CompileError> {
    let mut writer = RawWriter::array_with_capacity(base.map_or(256, <[u8]>::len) + 256);
    if let Some(base) = base {
        if shape::of(base).twins {
            return Err(CompileError::Twins);
        }
        literal_stage(&mut writer, base);
    }
    let root = Input { path: b"$$ROOT", dialect };
    for diff in diffs {
        if shape::of(diff).twins {
            return Err(CompileError::Twins);
        }
        let tree = ObjectDiff::parse(diff)?;
        writer.document("", |w| object(w, b"$replaceWith", &tree, root));
    }
    if writer.depth_max() > super::DEPTH_MAX {
        return Err(CompileError::TooDeep);
    }
    if writer.len() > super::BYTES_MAX {
        return Err(CompileError::TooLarge);
    }
    Ok(writer.finish())
}

/// Appends the stage that makes the document `document`, byte for byte.
pub(crate) fn literal_stage(writer: &mut RawWriter, document: &[u8]) {
    writer.document("", |w| w.document("$replaceWith", |w| w.raw_document("$literal", document)));
}

/// Writes the expression of a changed object; `input` refers to its present value, which is an object.
fn object(w: &mut RawWriter, name: &[u8], diff: &ObjectDiff<'_>, input: Input<'_>) {
    w.document(name, |w| {
        w.array("$mergeObjects", |w| {
            refuse_twins(w, input.path);
            let removed: Vec<&[u8]> = elements(diff.deleted).chain(elements(diff.inserted)).map(|e| e.name).collect();
            without(w, b"", &removed, input);
            literal_section(w, diff.updated);
            plain_children(w, diff, input);
            for (child, node) in diff.children.iter().filter(|(child, _)| !is_plain(child)) {
                awkward_child(w, child, node, input);
            }
            literal_section(w, diff.inserted);
        });
    });
}

/// An operand that makes the merge fail (code 40400) when the object has two fields of one name: merging would drop
/// one of them, and the merged object is then smaller.
fn refuse_twins(w: &mut RawWriter, input: &[u8]) {
    w.document("", |w| {
        w.array("$cond", |w| {
            w.document("", |w| {
                w.array("$eq", |w| {
                    w.document("", |w| w.string("$bsonSize", input));
                    w.document("", |w| {
                        w.document("$bsonSize", |w| w.array("$mergeObjects", |w| w.string("", input)));
                    });
                });
            });
            w.null("");
            w.int("", 1);
        });
    });
}

fn literal_section(w: &mut RawWriter, section: Option<&[u8]>) {
    if let Some(section) = section {
        w.document("", |w| {
            w.note_depth(shape::of(section).levels);
            w.raw_document("$literal", section);
        });
    }
}

/// Children with plain names share one object expression; a field whose value is missing stays missing in it.
fn plain_children(w: &mut RawWriter, diff: &ObjectDiff<'_>, input: Input<'_>) {
    if !diff.children.iter().any(|(child, _)| is_plain(child)) {
        return;
    }
    w.document("", |w| {
        for (child, node) in diff.children.iter().filter(|(child, _)| is_plain(child)) {
            let path = field(input.path, child);
            child_value(w, child, node, Input { path: &path, ..input });
        }
    });
}

/// A child whose name is empty, dotted or begins with `$`: read by its name as a value, written back by
/// `$arrayToObject`.
fn awkward_child(w: &mut RawWriter, child: &[u8], node: &Node<'_>, input: Input<'_>) {
    let_value(
        w,
        b"",
        |w, name| get_field(w, name, child, input),
        |w, name| {
            w.document(name, |w| {
                w.array("$cond", |w| {
                    is_missing(w, b"$$v");
                    w.document("", |w| w.document("$literal", |_| ()));
                    w.document("", |w| {
                        w.array("$arrayToObject", |w| {
                            w.array("", |w| {
                                w.array("", |w| {
                                    w.document("", |w| w.string("$literal", child));
                                    typed_or_null(w, b"", node, input.variable());
                                });
                            });
                        });
                    });
                });
            });
        },
    );
}

/// The value of the field `field`, whatever it is called; missing when it is.
fn get_field(w: &mut RawWriter, name: &[u8], field: &[u8], input: Input<'_>) {
    w.document(name, |w| match input.dialect {
        Dialect::V5_0 => w.document("$getField", |w| {
            w.document("field", |w| w.string("$literal", field));
            w.string("input", input.path);
        }),
        Dialect::V4_4 => w.document("$let", |w| {
            w.document("vars", |w| {
                w.document("v", |w| {
                    w.array("$arrayElemAt", |w| {
                        fields_where(w, b"", input.path, |w| {
                            w.array("$eq", |w| {
                                w.string("", "$$f.k");
                                w.document("", |w| w.string("$literal", field));
                            });
                        });
                        w.int("", 0);
                    });
                });
            });
            w.string("in", "$$v.v");
        }),
    });
}

/// The fields of an object as an array of `{k: name, v: value}`, those for which `condition` on `$$f` holds.
fn fields_where(w: &mut RawWriter, name: &[u8], input: &[u8], condition: impl FnOnce(&mut RawWriter)) {
    w.document(name, |w| {
        w.document("$filter", |w| {
            w.document("input", |w| w.string("$objectToArray", input));
            w.string("as", "f");
            w.document("cond", condition);
        });
    });
}

/// The new value of an object's field: changed when of the right type, skipped when missing, null otherwise.
fn child_value(w: &mut RawWriter, name: &[u8], node: &Node<'_>, input: Input<'_>) {
    w.document(name, |w| {
        w.array("$cond", |w| {
            is_of_type(w, node, input.path);
            changed(w, b"", node, input);
            w.document("", |w| {
                w.array("$cond", |w| {
                    is_missing(w, input.path);
                    w.string("", "$$REMOVE");
                    w.null("");
                });
            });
        });
    });
}

/// The new value of something that is there: changed when of the right type, null otherwise.
fn typed_or_null(w: &mut RawWriter, name: &[u8], node: &Node<'_>, input: Input<'_>) {
    w.document(name, |w| {
        w.array("$cond", |w| {
            is_of_type(w, node, input.path);
            changed(w, b"", node, input);
            w.null("");
        });
    });
}

fn changed(w: &mut RawWriter, name: &[u8], node: &Node<'_>, input: Input<'_>) {
    match node {
        Node::Object(diff) => object(w, name, diff, input),
        Node::Array(diff) => array(w, name, diff, input),
    }
}

/// Writes the expression of a changed array; `input` refers to its present value, which is an array.
///
/// The array is padded with nulls up to the last index that the diff names, then put together from slices of it and
/// the changed elements.
fn array(w: &mut RawWriter, name: &[u8], diff: &ArrayDiff<'_>, input: Input<'_>) {
    let reach = diff.changes.last().map_or(0, |(index, _)| index + 1).max(diff.length.unwrap_or(0));
    let_value(w, name, |w, name| padded(w, name, reach, input.path), |w, name| segments(w, name, diff, input));
}

/// `input` with nulls behind it up to `reach` elements.
fn padded(w: &mut RawWriter, name: &[u8], reach: u32, input: &[u8]) {
    w.document(name, |w| {
        w.array("$concatArrays", |w| {
            w.string("", input);
            w.document("", |w| {
                w.document("$map", |w| {
                    w.document("input", |w| {
                        w.array("$range", |w| {
                            w.document("", |w| w.string("$size", input));
                            w.int("", reach.cast_signed());
                        });
                    });
                    w.null("in");
                });
            });
        });
    });
}

/// The pieces of the new array, out of the padded old one in `$$v`.
fn segments(w: &mut RawWriter, name: &[u8], diff: &ArrayDiff<'_>, input: Input<'_>) {
    w.document(name, |w| {
        w.array("$concatArrays", |w| {
            let mut at = 0;
            let mut changes = diff.changes.iter().peekable();
            while let Some((index, change)) = changes.next() {
                slice(w, at, *index);
                at = index + 1;
                match change {
                    ArrayChange::Child(node) => element(w, *index, node, input.variable()),
                    ArrayChange::Set(first) => w.document("", |w| {
                        w.array("$literal", |w| {
                            w.note_depth(Shape::of_value(first).levels);
                            w.value("", first.kind, first.value);
                            while let Some((next, ArrayChange::Set(set))) = changes.peek() {
                                if *next != at {
                                    break;
                                }
                                w.note_depth(Shape::of_value(set).levels);
                                w.value("", set.kind, set.value);
                                at += 1;
                                changes.next();
                            }
                        });
                    }),
                }
            }
            slice(w, at, diff.length.unwrap_or(i32::MAX.cast_unsigned()));
        });
    });
}

/// `[from, to)` of the padded array; nothing when empty.
fn slice(w: &mut RawWriter, from: u32, to: u32) {
    if from >= to {
        return;
    }
    w.document("", |w| {
        w.array("$slice", |w| {
            w.string("", "$$v");
            w.int("", from.cast_signed());
            w.int("", (to - from).cast_signed());
        });
    });
}

/// One changed element, as an array of one.
fn element(w: &mut RawWriter, index: u32, node: &Node<'_>, input: Input<'_>) {
    w.array("", |w| {
        let_value(
            w,
            b"",
            |w, name| {
                w.document(name, |w| {
                    w.array("$arrayElemAt", |w| {
                        w.string("", input.path);
                        w.int("", index.cast_signed());
                    });
                });
            },
            |w, name| typed_or_null(w, name, node, input),
        );
    });
}

/// `{$let: {vars: {v: …}, in: …}}`. Every level uses the same name: an inner `v` hides the outer one, which nothing
/// inside refers to.
fn let_value(
    w: &mut RawWriter,
    name: &[u8],
    value: impl FnOnce(&mut RawWriter, &[u8]),
    body: impl FnOnce(&mut RawWriter, &[u8]),
) {
    w.document(name, |w| {
        w.document("$let", |w| {
            w.document("vars", |w| value(w, b"v"));
            body(w, b"in");
        });
    });
}

fn is_of_type(w: &mut RawWriter, node: &Node<'_>, input: &[u8]) {
    w.document("", |w| match node {
        Node::Array(_) => w.array("$isArray", |w| w.string("", input)),
        Node::Object(_) => type_is(w, input, "object"),
    });
}

fn is_missing(w: &mut RawWriter, input: &[u8]) {
    w.document("", |w| type_is(w, input, "missing"));
}

fn type_is(w: &mut RawWriter, input: &[u8], name: &str) {
    w.array("$eq", |w| {
        w.document("", |w| w.string("$type", input));
        w.string("", name);
    });
}

/// `input` without the fields `names`.
fn without(w: &mut RawWriter, name: &[u8], names: &[&[u8]], input: Input<'_>) {
    let nested = input.dialect == Dialect::V5_0 && names.len() <= UNSET_MAX;
    match names {
        [] => w.string(name, input.path),
        [first, rest @ ..] if nested => w.document(name, |w| {
            w.document("$unsetField", |w| {
                w.document("field", |w| w.string("$literal", first));
                without(w, b"input", rest, input);
            });
        }),
        _ => without_by_filter(w, name, names, input.path),
    }
}

fn without_by_filter(w: &mut RawWriter, name: &[u8], names: &[&[u8]], input: &[u8]) {
    w.document(name, |w| {
        fields_where(w, b"$arrayToObject", input, |w| {
            w.array("$not", |w| {
                w.document("", |w| {
                    w.array("$in", |w| {
                        w.string("", "$$f.k");
                        w.document("", |w| {
                            w.array("$literal", |w| names.iter().for_each(|n| w.string("", n)));
                        });
                    });
                });
            });
        });
    });
}

/// A reference to a plainly named field of what `input` refers to.
fn field(input: &[u8], name: &[u8]) -> Vec<u8> {
    let parent: &[u8] = if input == b"$$ROOT" { b"$" } else { input };
    let mut path = Vec::with_capacity(parent.len() + 1 + name.len());
    path.extend_from_slice(parent);
    if parent != b"$" {
        path.push(b'.');
    }
    path.extend_from_slice(name);
    path
}

/// Whether `name` can stand in a field path: not empty, no dot, no `$` in front.
pub(crate) fn is_plain(name: &[u8]) -> bool {
    name.first().is_some_and(|first| *first != b'$') && !name.contains(&b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Bson, Document, doc, rawdoc};
    use oplogue_engine::model::raw::kind;

    fn compiled(diff: &bson::RawDocumentBuf) -> Bson {
        let array = pipeline(Dialect::V5_0, None, [diff.as_bytes()]).unwrap();
        let mut writer = RawWriter::with_capacity(64);
        writer.value("p", kind::ARRAY, &array);
        let read = Document::from_reader(writer.finish().as_slice()).unwrap();
        read.get_array("p").unwrap()[0].clone()
    }

    #[test]
    fn a_flat_diff_is_one_merge() {
        let stage = compiled(&rawdoc! { "d": { "x": false }, "u": { "a": 1 }, "i": { "n": 2 } });
        let twins = doc! { "$cond": [
            { "$eq": [{ "$bsonSize": "$$ROOT" }, { "$bsonSize": { "$mergeObjects": ["$$ROOT"] } }] }, null, 1,
        ] };
        let expected = doc! { "$replaceWith": { "$mergeObjects": [
            twins,
            { "$unsetField": { "field": { "$literal": "x" }, "input": { "$unsetField": {
                "field": { "$literal": "n" }, "input": "$$ROOT" } } } },
            { "$literal": { "a": 1 } },
            { "$literal": { "n": 2 } },
        ] } };
        assert_eq!(stage, Bson::Document(expected));
    }

    #[test]
    fn too_deep_a_diff_is_refused_here_and_not_by_the_server() {
        let mut diff = rawdoc! { "u": { "x": 1 } };
        for _ in 0..60 {
            let mut outer = bson::RawDocumentBuf::new();
            outer.append(bson::raw::cstr!("sa"), diff);
            diff = outer;
        }
        assert_eq!(pipeline(Dialect::V5_0, None, [diff.as_bytes()]), Err(CompileError::TooDeep));
    }

    #[test]
    fn many_removed_names_do_not_nest() {
        let mut names = bson::RawDocumentBuf::new();
        for n in 0..300 {
            names.append(bson::raw::CString::try_from(format!("n{n}")).unwrap(), false);
        }
        let mut diff = bson::RawDocumentBuf::new();
        diff.append(bson::raw::cstr!("d"), names);
        assert!(pipeline(Dialect::V5_0, None, [diff.as_bytes()]).is_ok());
    }
}
