//! From a repository to a verified slot: choose a release, plan it, stage it.

pub mod errands;
pub mod plan;
pub mod select;
pub mod stage;
pub mod unpack;
