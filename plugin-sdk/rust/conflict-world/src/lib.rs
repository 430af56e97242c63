//! The generated bindings of the world `conflict-plugin`.
//!
//! A package of its own because the generator exports macros by interface name, and the worlds share interfaces: one
//! package can hold one world. Authors use `oplogue-plugin`, never this.

#![allow(warnings, reason = "generated code")]

wit_bindgen::generate!({
    path: "../../../wit/0.1.0",
    world: "conflict-plugin",
    pub_export_macro: true,
    export_macro_name: "export_conflict_world",
    default_bindings_module: "oplogue_plugin_conflict_world",
});
