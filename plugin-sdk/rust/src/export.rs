//! The macros that make a plugin file out of a type.
//!
//! They exist only for the wasm32 target, so that a plugin's native unit tests link nothing of it. One file holds
//! one plugin: the instance lives in a thread-local cell that `init` fills.

/// Exports a [`crate::Filter`]: `export_filter!(MyFilter, manifest = "manifest.json")`. The path is relative to the
/// crate's root.
#[macro_export]
macro_rules! export_filter {
    ($plugin:ty, manifest = $manifest:literal) => {
        // Natively, only so that the plugin does not look unused.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&$crate::Json) -> Result<$plugin, $crate::Failure> = <$plugin as $crate::Filter>::new;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::__manifest!($manifest);
            $crate::__lifecycle!(filter, $plugin, Filter);
            $crate::__router!($plugin);
            use $crate::bindings::filter as oplogue_world;
    $crate::bindings::filter::export_filter_world!(Component with_types_in oplogue_world);
        };
    };
}

/// Exports a [`crate::Transform`]: `export_transform!(MyTransform, manifest = "manifest.json")`.
#[macro_export]
macro_rules! export_transform {
    ($plugin:ty, manifest = $manifest:literal) => {
        // Natively, only so that the plugin does not look unused.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&$crate::Json) -> Result<$plugin, $crate::Failure> = <$plugin as $crate::Filter>::new;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::__manifest!($manifest);
            $crate::__lifecycle!(transform, $plugin, Filter);
            $crate::__router!($plugin);
            use $crate::bindings::transform as oplogue_world;

            impl oplogue_world::exports::oplogue::plugin::transform::Guest for Component {
                fn process(
                    batch: oplogue_world::oplogue::plugin::types::Batch,
                ) -> Result<oplogue_world::oplogue::plugin::types::Edits, oplogue_world::oplogue::plugin::types::Failure>
                {
                    PLUGIN.with_borrow_mut(|plugin| match plugin {
                        Some(plugin) => $crate::bindings::process(plugin, batch),
                        None => Err($crate::Failure::new("process was called before init").into()),
                    })
                }
            }

            $crate::bindings::transform::export_transform_world!(Component with_types_in oplogue_world);
        };
    };
}

/// Exports a [`crate::Judge`]: `export_judge!(MyJudge, manifest = "manifest.json")`.
#[macro_export]
macro_rules! export_judge {
    ($plugin:ty, manifest = $manifest:literal) => {
        // Natively, only so that the plugin does not look unused.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&$crate::Json) -> Result<$plugin, $crate::Failure> = <$plugin as $crate::Judge>::new;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::__manifest!($manifest);
            $crate::__lifecycle!(conflict, $plugin, Judge);
            use $crate::bindings::conflict as oplogue_world;

            impl oplogue_world::exports::oplogue::plugin::conflicts::Guest for Component {
                fn resolve(
                    conflict: oplogue_world::exports::oplogue::plugin::conflicts::Conflict,
                ) -> Result<
                    oplogue_world::exports::oplogue::plugin::conflicts::Ruling,
                    oplogue_world::oplogue::plugin::types::Failure,
                > {
                    PLUGIN.with_borrow_mut(|plugin| match plugin {
                        Some(plugin) => $crate::bindings::resolve(plugin, conflict),
                        None => Err($crate::Failure::new("resolve was called before init").into()),
                    })
                }
            }

    $crate::bindings::conflict::export_conflict_world!(Component with_types_in oplogue_world);
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __manifest {
    ($manifest:literal) => {
        #[used]
        #[unsafe(link_section = "oplogue:manifest")]
        static MANIFEST: [u8; include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $manifest)).len()] =
            *include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $manifest));
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __lifecycle {
    ($world:ident, $plugin:ty, $maker:ident) => {
        use $crate::bindings::$world as world;

        ::std::thread_local! {
            static PLUGIN: ::std::cell::RefCell<Option<$plugin>> = const { ::std::cell::RefCell::new(None) };
        }

        struct Component;

        impl world::exports::oplogue::plugin::lifecycle::Guest for Component {
            fn init(config: String) -> Result<(), world::oplogue::plugin::types::Failure> {
                $crate::log::set_panic_hook();
                let config = $crate::Json::parse(&config).map_err($crate::Failure::new)?;
                let plugin = <$plugin as $crate::$maker>::new(&config)?;
                PLUGIN.with_borrow_mut(|place| *place = Some(plugin));
                Ok(())
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __router {
    ($plugin:ty) => {
        impl world::exports::oplogue::plugin::router::Guest for Component {
            fn decide(namespace: String) -> world::oplogue::plugin::types::Route {
                PLUGIN.with_borrow(|plugin| match plugin {
                    Some(plugin) => $crate::Filter::decide(plugin, &namespace).into(),
                    None => world::oplogue::plugin::types::Route::Pass,
                })
            }
        }
    };
}
