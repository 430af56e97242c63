//! Builds raw BSON by appending bytes.
//!
//! Commands, statements and update pipelines are made of a few bytes of syntax around documents that the source
//! sent. This writer copies those documents as they are, with one `memcpy` each, so that no value passes through a
//! tree of typed nodes on its way. It tracks the nesting depth, since the server refuses commands deeper than 200
//! levels; it never checks what it is given: values come from a walk that has checked them.

use oplogue_engine::model::raw::{Element, Elements, kind};

/// A document under construction. Inside an array the given names are ignored and replaced by the index.
#[derive(Debug)]
pub(crate) struct RawWriter {
    bytes: Vec<u8>,
    open: Vec<Frame>,
    depth_max: usize,
}

#[derive(Debug)]
struct Frame {
    start: usize,
    /// The next index inside an array; `None` inside a document.
    index: Option<u32>,
}

impl RawWriter {
    /// An empty document with room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut writer = Self { bytes: Vec::with_capacity(capacity), open: Vec::with_capacity(8), depth_max: 0 };
        writer.open_frame(None);
        writer
    }

    /// An empty array with room for `capacity` bytes, as a value: it has the form of a document.
    pub(crate) fn array_with_capacity(capacity: usize) -> Self {
        let mut writer = Self { bytes: Vec::with_capacity(capacity), open: Vec::with_capacity(8), depth_max: 0 };
        writer.open_frame(Some(0));
        writer
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The deepest nesting reached, the outermost document counting as 1.
    pub(crate) fn depth_max(&self) -> usize {
        self.depth_max
    }

    /// Notes that a value copied in at the present place nests `levels` deep itself.
    pub(crate) fn note_depth(&mut self, levels: usize) {
        self.depth_max = self.depth_max.max(self.open.len() + levels);
    }

    /// Appends a value of BSON type `kind`.
    pub(crate) fn value(&mut self, name: impl AsRef<[u8]>, kind: u8, value: &[u8]) {
        self.head(kind, name.as_ref());
        self.bytes.extend_from_slice(value);
    }

    /// Appends binary data of a subtype.
    pub(crate) fn binary(&mut self, name: impl AsRef<[u8]>, subtype: u8, bytes: &[u8]) {
        self.head(kind::BINARY, name.as_ref());
        let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.push(subtype);
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends an element under its own name.
    pub(crate) fn element(&mut self, element: &Element<'_>) {
        self.value(element.name, element.kind, element.value);
    }

    /// Appends all elements of a raw document: its bytes without length and end.
    pub(crate) fn splice(&mut self, document: &[u8]) {
        let inner = document.len().checked_sub(1).and_then(|end| document.get(4..end));
        self.bytes.extend_from_slice(inner.unwrap_or_default());
    }

    /// Appends the values of a raw array, numbered anew where they come to stand in an array.
    pub(crate) fn splice_values(&mut self, array: &[u8]) {
        let elements = Elements::new(array).into_iter().flatten().filter_map(Result::ok);
        elements.for_each(|element| self.element(&element));
    }

    /// Appends a raw document as a value.
    pub(crate) fn raw_document(&mut self, name: impl AsRef<[u8]>, document: &[u8]) {
        self.value(name, kind::DOCUMENT, document);
    }

    /// Appends a string given as UTF-8 bytes.
    pub(crate) fn string(&mut self, name: impl AsRef<[u8]>, text: impl AsRef<[u8]>) {
        let text = text.as_ref();
        self.head(kind::STRING, name.as_ref());
        self.bytes.extend_from_slice(&length(text.len() + 1));
        self.bytes.extend_from_slice(text);
        self.bytes.push(0);
    }

    /// Appends a 32-bit integer.
    pub(crate) fn int(&mut self, name: impl AsRef<[u8]>, value: i32) {
        self.value(name, kind::INT32, &value.to_le_bytes());
    }

    /// Appends a boolean.
    pub(crate) fn boolean(&mut self, name: impl AsRef<[u8]>, value: bool) {
        self.value(name, kind::BOOLEAN, &[u8::from(value)]);
    }

    /// Appends a null.
    pub(crate) fn null(&mut self, name: impl AsRef<[u8]>) {
        self.value(name, kind::NULL, &[]);
    }

    /// Appends a document whose elements `fill` writes.
    pub(crate) fn document<R>(&mut self, name: impl AsRef<[u8]>, fill: impl FnOnce(&mut Self) -> R) -> R {
        self.begin_document(name);
        let result = fill(self);
        self.end();
        result
    }

    /// Appends an array whose elements `fill` writes.
    pub(crate) fn array<R>(&mut self, name: impl AsRef<[u8]>, fill: impl FnOnce(&mut Self) -> R) -> R {
        self.begin_array(name);
        let result = fill(self);
        self.end();
        result
    }

    /// Opens a document that [`Self::end`] closes.
    pub(crate) fn begin_document(&mut self, name: impl AsRef<[u8]>) {
        self.head(kind::DOCUMENT, name.as_ref());
        self.open_frame(None);
    }

    /// Opens an array that [`Self::end`] closes.
    pub(crate) fn begin_array(&mut self, name: impl AsRef<[u8]>) {
        self.head(kind::ARRAY, name.as_ref());
        self.open_frame(Some(0));
    }

    /// Closes the innermost document or array.
    pub(crate) fn end(&mut self) {
        let Some(frame) = self.open.pop() else { return };
        self.bytes.push(0);
        let total = length(self.bytes.len() - frame.start);
        if let Some(place) = self.bytes.get_mut(frame.start..frame.start + 4) {
            place.copy_from_slice(&total);
        }
    }

    /// The finished bytes; whatever is still open is closed.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        while !self.open.is_empty() {
            self.end();
        }
        self.bytes
    }

    fn open_frame(&mut self, index: Option<u32>) {
        self.open.push(Frame { start: self.bytes.len(), index });
        self.bytes.extend_from_slice(&[0; 4]);
        self.depth_max = self.depth_max.max(self.open.len());
    }

    fn head(&mut self, kind: u8, name: &[u8]) {
        self.bytes.push(kind);
        match self.open.last_mut().and_then(|frame| frame.index.as_mut()) {
            Some(index) => {
                push_decimal(&mut self.bytes, *index);
                *index += 1;
            }
            None => self.bytes.extend_from_slice(name),
        }
        self.bytes.push(0);
    }
}

/// A BSON length. Commands stay far below 2 GiB.
fn length(bytes: usize) -> [u8; 4] {
    i32::try_from(bytes).unwrap_or(i32::MAX).to_le_bytes()
}

/// Appends `number` in decimal digits, as BSON names array elements.
fn push_decimal(bytes: &mut Vec<u8>, number: u32) {
    let start = bytes.len();
    let mut rest = number;
    loop {
        bytes.push(b'0' + (rest % 10) as u8);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if let Some(digits) = bytes.get_mut(start..) {
        digits.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_the_bson_crate_reads() {
        let mut writer = RawWriter::with_capacity(64);
        writer.string("s", "x");
        writer.array("a", |w| {
            for n in 0..12 {
                w.int("ignored", n);
            }
            w.document("", |w| w.boolean("b", true));
        });
        assert_eq!(writer.depth_max(), 3);
        let read = bson::Document::from_reader(writer.finish().as_slice()).unwrap();
        assert_eq!(read, bson::doc! { "s": "x", "a": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, { "b": true }] });
    }

    #[test]
    fn splices_elements_unchanged() {
        let inner = bson::rawdoc! { "a": 1, "b": [1, 2] };
        let mut writer = RawWriter::with_capacity(64);
        writer.int("before", 0);
        writer.splice(inner.as_bytes());
        let read = bson::Document::from_reader(writer.finish().as_slice()).unwrap();
        assert_eq!(read, bson::doc! { "before": 0, "a": 1, "b": [1, 2] });
    }
}
