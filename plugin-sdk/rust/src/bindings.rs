//! The generated bindings of the worlds.
//!
//! They are public because the export macros expand in the author's crate and must reach them there. Hidden from the
//! documentation: authors use the traits, never these.

/// `filter-plugin`.
pub use oplogue_plugin_filter_world as filter;

/// `conflict-plugin`.
pub use oplogue_plugin_conflict_world as conflict;

/// `transform-plugin`.
#[allow(warnings, reason = "generated code")]
pub mod transform {
    wit_bindgen::generate!({
        path: "../../wit/0.1.0",
        world: "transform-plugin",
        pub_export_macro: true,
        export_macro_name: "export_transform_world",
        default_bindings_module: "oplogue_plugin::bindings::transform",
    });
}

/// Conversions between the authors' types and one world's.
macro_rules! conversions {
    ($module:ident) => {
        const _: () = {
            use $module::oplogue::plugin::types;

            impl From<crate::Failure> for types::Failure {
                fn from(failure: crate::Failure) -> Self {
                    Self { message: failure.message, retry_after_ms: failure.retry_after_ms, entry: None }
                }
            }
        };
    };
}

/// The same for the worlds with routes.
macro_rules! routes {
    ($module:ident) => {
        const _: () = {
            use $module::oplogue::plugin::types;

            impl From<crate::Route> for types::Route {
                fn from(route: crate::Route) -> Self {
                    match route {
                        crate::Route::Pass => Self::Pass,
                        crate::Route::Drop => Self::Drop,
                        crate::Route::Rename(to) => Self::Rename(to),
                        crate::Route::Inspect { body, ops } => Self::Inspect(types::Request {
                            ops: ops.0,
                            body: match body {
                                crate::Body::None => types::Body::None,
                                crate::Body::Key => types::Body::Key,
                                crate::Body::Full => types::Body::Full,
                            },
                        }),
                    }
                }
            }
        };
    };
}

conversions!(filter);
conversions!(transform);
conversions!(conflict);
routes!(filter);
routes!(transform);

/// Lets a plugin rule over one conflict.
///
/// # Errors
/// The plugin's refusal.
#[doc(hidden)]
pub fn resolve<J: crate::Judge>(
    judge: &mut J,
    shown: conflict::exports::oplogue::plugin::conflicts::Conflict,
) -> Result<conflict::exports::oplogue::plugin::conflicts::Ruling, conflict::oplogue::plugin::types::Failure> {
    use conflict::exports::oplogue::plugin::conflicts as wit;
    let reason = match shown.reason {
        wit::Reason::DuplicateId => crate::Reason::DuplicateId,
        wit::Reason::UniqueKey => crate::Reason::UniqueKey,
        wit::Reason::Validation => crate::Reason::Validation,
        wit::Reason::ImmutableField => crate::Reason::ImmutableField,
        wit::Reason::Other => crate::Reason::Other,
    };
    let op = crate::Op::of(shown.op).ok_or_else(|| crate::Failure::new("an op code of a newer host"))?;
    let wit::Conflict { namespace, ts, code, message, key, body, index, pattern, winner, .. } = shown;
    let conflict = crate::Conflict { reason, namespace, op, ts, code, message, key, body, index, pattern, winner };
    Ok(match judge.rule(&conflict)? {
        crate::Ruling::KeepTarget => wit::Ruling::KeepTarget,
        crate::Ruling::Overwrite => wit::Ruling::Overwrite,
        crate::Ruling::Record => wit::Ruling::Record,
        crate::Ruling::Stop(reason) => wit::Ruling::Stop(reason),
    })
}

/// Runs a batch through a plugin, entry by entry.
///
/// # Errors
/// The plugin's refusal, with the entry it stopped at.
#[doc(hidden)]
pub fn process<T: crate::Transform>(
    plugin: &mut T,
    batch: transform::oplogue::plugin::types::Batch,
) -> Result<transform::oplogue::plugin::types::Edits, transform::oplogue::plugin::types::Failure> {
    let batch = crate::Batch {
        seq: batch.seq,
        now_ms: batch.now_ms,
        namespaces: batch.namespaces,
        ns: batch.ns,
        op: batch.op,
        ts: batch.ts,
        wall_ms: batch.wall_ms,
        off: batch.off,
        len: batch.len,
        arena: batch.arena,
    };
    let mut edits = crate::Edits::keep_all(batch.len());
    run(plugin, &batch, &mut edits).map_err(|(failure, entry)| transform::oplogue::plugin::types::Failure {
        entry: entry.map(|at| at as u32),
        ..failure.into()
    })?;
    let crate::Edits { verdict, arg, ns, namespaces, out, notes, .. } = edits;
    Ok(transform::oplogue::plugin::types::Edits { verdict, arg, ns, namespaces, out, notes })
}

/// The same without generated types: what a native unit test calls.
///
/// # Errors
/// The plugin's refusal, with the entry it stopped at; `None` = the whole batch.
pub fn run<T: crate::Transform>(
    plugin: &mut T,
    batch: &crate::Batch,
    edits: &mut crate::Edits,
) -> Result<(), (crate::Failure, Option<usize>)> {
    plugin.begin(batch).map_err(|failure| (failure, None))?;
    for at in 0..batch.len() {
        if let Some(entry) = batch.entry(at) {
            plugin.apply(&entry, &mut edits.edit(at)).map_err(|failure| (failure, Some(at)))?;
        }
    }
    Ok(())
}
