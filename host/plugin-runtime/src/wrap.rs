//! Turns what an author built into a component.
//!
//! A compiler's output for wasm32-unknown-unknown is a core module that carries its WIT in a custom section; it is
//! wrapped here, so that `cargo build` and a copy into the plugins folder is a deployment. A component passes as it
//! is. Anything else is refused with what was seen. Precompiled code is never accepted: it would be trusted natively.

use std::borrow::Cow;

use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

use crate::error::LoadError;

const MAGIC: &[u8] = b"\0asm";
const CORE_MODULE: &[u8] = &[1, 0, 0, 0];

/// A component out of a component or of a core module with a WIT section.
pub(crate) fn component(bytes: &[u8]) -> Result<Cow<'_, [u8]>, LoadError> {
    if !bytes.starts_with(MAGIC) {
        let start: String = bytes.iter().take(8).map(|b| b.escape_ascii().to_string()).collect();
        return Err(LoadError::NotWasm { start: if start.is_empty() { "nothing".to_owned() } else { start } });
    }
    let is_core = bytes.get(4..8) == Some(CORE_MODULE);
    let has_wit = scan(bytes)?;
    if !is_core {
        return Ok(Cow::Borrowed(bytes));
    }
    if !has_wit {
        return Err(LoadError::NoWit);
    }
    ComponentEncoder::default()
        .validate(true)
        .module(bytes)
        .and_then(|encoder| encoder.encode())
        .map(Cow::Owned)
        .map_err(|e| LoadError::Wrap(format!("{e:#}")))
}

/// Walks all sections, so that a truncated file is found before anything is compiled, and says whether there is WIT.
fn scan(bytes: &[u8]) -> Result<bool, LoadError> {
    let mut has_wit = false;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|e| LoadError::Broken(e.to_string()))?;
        if let Payload::CustomSection(section) = payload {
            has_wit |= section.name().starts_with("component-type");
        }
    }
    Ok(has_wit)
}
