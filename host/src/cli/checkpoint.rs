//! `oplogue checkpoint`: the stored position of a job, to look at and to move by hand.
use super::Exit;

#[derive(Debug, clap::Args)]
pub struct CheckpointArgs {}

pub(super) fn run(_: &CheckpointArgs) -> Exit {
    Exit::Fault
}
