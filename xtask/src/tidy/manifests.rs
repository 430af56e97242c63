//! Dependencies: who may link what, and where versions and features are written.
//!
//! The engine is testable without a server because it links no driver, no runtime and no HTTP; that stays true
//! only if somebody looks. Features written in a member would give `-p member` other features than `--workspace`
//! and rebuild wasmtime and the driver each time. Guests have their own workspaces and are left out.

use anyhow::Result;
use toml::{Table, Value};

use super::{Finding, SourceFile};

/// The packages of the host's workspace.
const MEMBERS: [&str; 6] = ["host/", "host/engine/", "host/connectors/", "host/plugin-runtime/", "tests/", "xtask/"];

/// Package and what it may not link.
const BANNED: [(&str, &[&str]); 3] = [
    ("host/engine/", &["mongodb", "wasmtime", "axum", "oplogue-connectors", "oplogue-plugin-runtime"]),
    ("host/connectors/", &["wasmtime", "axum", "oplogue-plugin-runtime"]),
    ("host/plugin-runtime/", &["mongodb", "axum", "oplogue-connectors"]),
];

pub(super) fn check(file: &SourceFile, found: &mut Vec<Finding>) -> Result<()> {
    let Some(folder) = file.path.strip_suffix("Cargo.toml") else {
        return Ok(());
    };
    if !MEMBERS.contains(&folder) {
        return Ok(());
    }
    let manifest: Table = file.text.parse()?;
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = manifest.get(kind).and_then(Value::as_table) else {
            continue;
        };
        for (name, value) in table {
            if !is_from_workspace(name, value) {
                let rule = format!("{name}: version and features stand in the root's [workspace.dependencies]");
                found.push(Finding::new(&file.path, line(file, name), rule));
            }
            let banned = BANNED.iter().any(|(member, list)| *member == folder && list.contains(&name.as_str()));
            if banned && kind == "dependencies" {
                let rule = format!("this package does not link {name}");
                found.push(Finding::new(&file.path, line(file, name), rule));
            }
        }
    }
    Ok(())
}

/// `{ workspace = true }` and nothing that selects features, except test features of our own packages.
fn is_from_workspace(name: &str, value: &Value) -> bool {
    let Some(table) = value.as_table() else {
        return false;
    };
    let own = name.starts_with("oplogue");
    let known = |key: &String| key == "workspace" || key == "optional" || (own && key == "features");
    table.get("workspace").and_then(Value::as_bool) == Some(true) && table.keys().all(known)
}

fn line(file: &SourceFile, name: &str) -> usize {
    file.text.lines().position(|line| line.starts_with(name)).map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, dependencies: &str) -> usize {
        let text = format!("[package]\nname = 'x'\n[dependencies]\n{dependencies}\n");
        let mut found = Vec::new();
        check(&SourceFile { path: path.to_owned(), text }, &mut found).unwrap();
        found.len()
    }

    #[test]
    fn features_and_banned_links_are_found() {
        assert_eq!(rules("host/engine/Cargo.toml", "bson = { workspace = true }"), 0);
        assert_eq!(rules("host/engine/Cargo.toml", "bson = '3'"), 1);
        assert_eq!(rules("host/engine/Cargo.toml", "mongodb = { workspace = true }"), 1);
        assert_eq!(rules("xtask/Cargo.toml", "tokio = { workspace = true, features = ['full'] }"), 1);
        assert_eq!(rules("tests/Cargo.toml", "oplogue-engine = { workspace = true, features = ['test-util'] }"), 0);
        assert_eq!(rules("plugins/x/Cargo.toml", "bson = '3'"), 0);
    }
}
