//! The reference file, `collector.toml`, written from the key table.
//!
//! A reference that people edit by hand drifts from the code. This one is rendered from the same table that reads a
//! configuration, and a test compares the committed file with it: a new key is documented or the build breaks.

use super::convert::literal;
use super::keys::{self, KeySpec, Shape, SizeUnit, Status, TimeUnit};
use super::value::Value;

const WIDTH: usize = 112;

const HEAD: &str = "\
# The reference configuration of Oplogue: every key, with its default.
#
# Lines that begin with '#' and a key show the default; take the '#' away to change it. The three
# lines without '#' are yours to fill in. `oplogue check` finds every mistake of a file in one run and shows what
# differs from the defaults; `oplogue convert` writes this form from MongoShake's.
#
# Names are MongoShake's. TOML cannot hold a value and a table under one name, so a few moved: tunnel.type,
# incr_sync.worker.count, checkpoint.storage.type, checkpoint.storage.mongo_ssl_root_ca_file, master_quorum.enable.
# Durations take ms, s, m, h, d (30m), sizes KB, MB, GB (powers of 1024).
# A list may be [\"a\", \"b\"], \"a;b\", or \"@@FILE\" (one item a line; a relative path is meant from this file's folder).
";

const PLUGINS: &str = "
# ---- Plugins ----

# The chain is: namespace-filter, ddl-filter, the entries below in their order, namespace-rename, target-delay. The
# default ones are made from the filter, transform and delay keys above; `oplogue check` shows the chain that results.
#
#[[plugin]]
#name = \"mask-names\"            # unique
#path = \"plugins/mask.wasm\"     # relative to this file's folder; \"embedded:namespace-rename\" is one of the default ones
#kind = \"transform\"             # filter, transform or conflict; default: what the plugin's manifest says
#handles = \"changes\"            # changes, or conflicts: it is no part of the chain then (incr_sync.conflict_write_to = sdk)
#on_error = \"fail\"              # an entry on which the plugin fails: fail (stop before it), skip, drop, dead-letter
#grants = []                    # capabilities the plugin may use, out of those its manifest asks for
#config = { field = \"name\" }    # handed to the plugin
";

/// The text of the reference file.
#[must_use]
pub fn render() -> String {
    let mut out = HEAD.to_owned();
    for (title, specs) in keys::sections() {
        out.push_str(&format!("\n# ---- {title} ----\n"));
        for spec in specs {
            out.push_str(&paragraph(spec));
        }
    }
    out.push_str(PLUGINS);
    let old = keys::all().filter_map(|spec| match spec.status {
        Status::Renamed(new) => Some(format!("{} ({new})", spec.toml)),
        Status::Supported | Status::DefaultOnly(_) | Status::Hint(_) | Status::Inert(_) | Status::Removed(_) => None,
    });
    let old = old.collect::<Vec<_>>().join(", ");
    out.push_str(&format!("\n{}", comment(&format!("Old names that are still read: {old}."))));
    out
}

fn paragraph(spec: &KeySpec) -> String {
    let remark = match spec.status {
        Status::Supported => String::new(),
        Status::DefaultOnly(feature) => {
            format!(" Only the default is accepted: {feature} is not built yet.")
        }
        Status::Hint(reason) => format!(" No effect: {reason}."),
        Status::Inert(reason) => format!(" No effect: {reason}."),
        Status::Renamed(_) | Status::Removed(_) => return String::new(),
    };
    let unit = unit(spec.shape);
    let setting = match spec.name {
        "sync_mode" => "sync_mode = \"all\"".to_owned(),
        "mongo_urls" => "mongo_urls = \"mongodb://user:password@source1:27017,source2:27017\"".to_owned(),
        "tunnel.address" => "tunnel.address = \"mongodb://user:password@target1:27017,target2:27017\"".to_owned(),
        _ => format!("#{} = {}", spec.toml, literal(spec, &Value::default_of(spec))),
    };
    format!("\n{}{setting}\n", comment(&format!("{}{unit}{remark}", spec.doc)))
}

fn unit(shape: Shape) -> &'static str {
    match shape {
        Shape::Time(TimeUnit::Milliseconds, ..) => " A bare number counts milliseconds.",
        Shape::Time(TimeUnit::Seconds, ..) => " A bare number counts seconds.",
        Shape::Time(TimeUnit::Days, ..) => " A bare number counts days.",
        Shape::Size(SizeUnit::Bytes, ..) => " A bare number counts bytes.",
        Shape::Size(SizeUnit::Kilobytes, ..) => " A bare number counts KB.",
        Shape::Size(SizeUnit::Megabytes, ..) => " A bare number counts MB.",
        Shape::Text
        | Shape::Secret
        | Shape::Name
        | Shape::Database
        | Shape::Collection
        | Shape::Bool
        | Shape::Int(..)
        | Shape::Port
        | Shape::OneOf(_)
        | Shape::Date
        | Shape::Path
        | Shape::Ip
        | Shape::Uri
        | Shape::Uris
        | Shape::Address
        | Shape::Namespaces
        | Shape::Renames
        | Shape::Texts => "",
    }
}

/// Lines of comment, wrapped.
fn comment(text: &str) -> String {
    let mut out = String::new();
    let mut line = "#".to_owned();
    for word in text.split_whitespace() {
        if line.len() + word.len() + 1 > WIDTH {
            out.push_str(&line);
            out.push('\n');
            line = "#".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    out + &line + "\n"
}
