//! A plugin that rules over conflicts as its configuration says, or traps, loops, lies and eats memory instead.
//!
//! It shows back what it was shown, in the reason of a stop, so that a test sees the whole border. Without a
//! configuration it records.

use std::cell::Cell;

use oplogue_plugin::{Conflict, Failure, Json, Judge, Ruling, log};

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

struct Contrary(String);

fn spin() -> ! {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

fn hog() -> ! {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(std::hint::black_box(vec![1; 1 << 20]));
    }
}

impl Judge for Contrary {
    fn new(config: &Json) -> Result<Self, Failure> {
        Ok(Self(config.text("rule").unwrap_or("record").to_owned()))
    }

    fn rule(&mut self, conflict: &Conflict) -> Result<Ruling, Failure> {
        CALLS.set(CALLS.get() + 1);
        log::write(log::Level::Debug, "asked");
        match self.0.as_str() {
            "keep" => Ok(Ruling::KeepTarget),
            "overwrite" => Ok(Ruling::Overwrite),
            "stop" => Ok(Ruling::Stop("I say so".to_owned())),
            "tell" => Ok(Ruling::Stop(format!("{conflict:?}"))),
            "trap" => panic!("no ruling from me"),
            "loop" => spin(),
            "hog" => hog(),
            "refuse" => Err(Failure::new("I cannot decide")),
            "retry-once" if CALLS.get() == 1 => Err(Failure { message: "not yet".to_owned(), retry_after_ms: Some(1) }),
            "wear-out" if CALLS.get() > 2 => panic!("worn out"),
            _ => Ok(Ruling::Record),
        }
    }
}

oplogue_plugin::export_judge!(Contrary, manifest = "manifest.json");
