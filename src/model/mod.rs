//! What is known, as values: nothing here reads a file, a clock or the environment.

pub mod boots;
pub mod changes;
pub mod choice;
pub mod config;
pub mod dataplan;
pub mod dataset;
pub mod fit;
pub mod id;
pub mod idle;
pub mod kept;
pub mod moment;
pub mod operation;
pub mod phase;
pub mod record;
pub mod refusal;
pub mod slot;
pub mod source;
pub mod transition;
pub mod watch;
