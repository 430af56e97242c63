//! Plugin files: the built ones of this repository, surgery on them, and a collection of broken ones.
//!
//! What must not load is listed here once, with the words that an operator gets. The tests of this package load each file,
//! and `e2e::plugins` of the server tests includes this module by path and puts each under a running collector. It holds nothing
//! that knows a chain or a server.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A file of this repository; a built guest may stand in another tree (`cargo xtask plugins --check`).
pub(crate) fn file(path: &str) -> PathBuf {
    if let Some(fresh) = std::env::var_os("OPLOGUE_GUESTS").filter(|_| path.ends_with(".wasm")) {
        return PathBuf::from(fresh).join(path);
    }
    // Two packages compile this file, from two depths.
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above.find(|folder| folder.join("Cargo.lock").is_file()).unwrap().join(path)
}

pub(crate) fn guest(name: &str) -> Vec<u8> {
    std::fs::read(file(&format!("host/plugin-runtime/tests/guests/{name}/{name}.wasm"))).unwrap()
}

/// A manifest that takes any configuration.
pub(crate) fn any_config(kind: &str) -> Value {
    json!({ "name": "x", "version": "1", "kind": kind, "wants": "full", "config": { "type": "object" } })
}

/// A file that must not load, whatever its configuration, and what the refusal says.
pub(crate) struct BrokenFile {
    pub(crate) bytes: Vec<u8>,
    pub(crate) says: &'static str,
}

/// Broken files, no two with the same words.
pub(crate) fn broken_files() -> Vec<BrokenFile> {
    let broken = |bytes: Vec<u8>, says| BrokenFile { bytes, says };
    let good = filter();
    let empty_component = wat("(component)");
    let wants = |extra: Value| {
        let mut manifest = any_config("transform");
        manifest.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        with_manifest(&guest("counting"), Some(&manifest))
    };
    let manifest = |manifest: Value| with_manifest(&good, Some(&manifest));
    vec![
        broken(b"#!/bin/sh\n".to_vec(), "not a WebAssembly file: it starts with #!/bin/s, not with"),
        broken(Vec::new(), "not a WebAssembly file: it starts with nothing"),
        broken(b"\x7fELF\x02\x01\x01\x00".to_vec(), "not a WebAssembly file: it starts with \\x7fELF"),
        broken(good[..good.len() / 2].to_vec(), "broken or truncated WebAssembly file"),
        broken(wat("(module)"), "a core module without a WIT section"),
        broken(interface_without_code(&good), "cannot be wrapped into a component"),
        broken(with_manifest(&good, None), "no manifest"),
        broken(manifest(json!({ "name": "x", "version": "1" })), "missing field `kind`"),
        broken(manifest(json!({ "name": "x", "version": "1", "kind": "sink" })), "unknown variant `sink`"),
        broken(manifest(json!({ "name": "", "version": "1", "kind": "filter" })), "must not be empty"),
        broken(
            manifest(json!({ "name": "x", "version": "1", "kind": "filter", "config": { "type": 7 } })),
            "no JSON Schema",
        ),
        broken(
            wants(json!({ "config": { "type": "object", "required": ["key"] } })),
            "does not fit the plugin's schema",
        ),
        broken(wants(json!({ "capabilities": ["metrics"] })), "\"metrics\", which is not granted"),
        broken(
            with_manifest(&good, Some(&any_config("transform"))),
            "wrong world: a transform plugin exports oplogue:plugin/transform@0.1.0",
        ),
        broken(with_manifest(&empty_component, Some(&any_config("filter"))), "this file exports nothing"),
        broken(
            with_manifest(&wat(IMPORTS_WASI), Some(&any_config("filter"))),
            "wasi:filesystem/preopens@0.2.0, which this host",
        ),
        broken(with_manifest(&wat(EXPORTS_NOTHING), Some(&any_config("filter"))), "the function init is missing"),
    ]
}

const IMPORTS_WASI: &str = r#"(component
    (import "wasi:filesystem/preopens@0.2.0" (instance $i (export "get-directories" (func))))
    (instance $empty)
    (export "oplogue:plugin/lifecycle@0.1.0" (instance $empty))
    (export "oplogue:plugin/router@0.1.0" (instance $empty)))"#;

const EXPORTS_NOTHING: &str = r#"(component
    (instance $empty)
    (export "oplogue:plugin/lifecycle@0.1.0" (instance $empty))
    (export "oplogue:plugin/router@0.1.0" (instance $empty)))"#;

/// The built namespace filter.
pub(crate) fn filter() -> Vec<u8> {
    std::fs::read(file("plugins/namespace-filter/namespace-filter.wasm")).unwrap()
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// The interface and the manifest of a plugin on a module without its functions.
fn interface_without_code(wasm: &[u8]) -> Vec<u8> {
    let mut out = wat("(module)");
    for (section, name) in sections(wasm) {
        if name.is_some_and(|name| name == b"oplogue:manifest" || name.starts_with(b"component-type")) {
            out.extend_from_slice(section);
        }
    }
    out
}

/// The file with another manifest; `None` takes it out.
pub(crate) fn with_manifest(wasm: &[u8], manifest: Option<&Value>) -> Vec<u8> {
    let mut out = wasm[..8].to_vec();
    for (section, name) in sections(wasm) {
        if name != Some(b"oplogue:manifest") {
            out.extend_from_slice(section);
        }
    }
    if let Some(manifest) = manifest {
        let mut body = vec![16];
        body.extend_from_slice(b"oplogue:manifest");
        body.extend_from_slice(manifest.to_string().as_bytes());
        out.push(0);
        let mut length = body.len();
        while length >= 0x80 {
            out.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(&body);
    }
    out
}

/// The sections of a module or component, whole, with the name of each custom one.
fn sections(wasm: &[u8]) -> Vec<(&[u8], Option<&[u8]>)> {
    let mut found = Vec::new();
    let mut at = 8;
    while at < wasm.len() {
        let (length, digits) = leb(&wasm[at + 1..]);
        let body = at + 1 + digits;
        let end = body + length;
        let name = (wasm[at] == 0).then(|| {
            let (length, digits) = leb(&wasm[body..]);
            &wasm[body + digits..][..length]
        });
        found.push((&wasm[at..end], name));
        at = end;
    }
    found
}

fn leb(bytes: &[u8]) -> (usize, usize) {
    let digits = bytes.iter().position(|b| b & 0x80 == 0).unwrap() + 1;
    (bytes[..digits].iter().rev().fold(0, |n, b| n << 7 | usize::from(b & 0x7f)), digits)
}
