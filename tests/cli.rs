//! The real programs, driven as an operator drives them, on an appliance in a temporary directory.
//!
//! They wait for services most of the time: with `--test-threads 10` they take a good minute, with as many as there are
//! processors several. `QX_TEST_KEEP=1` keeps the directories of tests that fail.

mod common;

#[path = "cli/clock.rs"]
mod clock;
#[path = "cli/data.rs"]
mod data;
#[path = "cli/environment.rs"]
mod environment;
#[path = "cli/failing.rs"]
mod failing;
#[path = "cli/good.rs"]
mod good;
#[path = "cli/killed.rs"]
mod killed;
#[path = "cli/preflight.rs"]
mod preflight;
#[path = "cli/refused.rs"]
mod refused;
#[path = "cli/services.rs"]
mod services;
#[path = "cli/sources.rs"]
mod sources;
#[path = "cli/surroundings.rs"]
mod surroundings;
#[path = "cli/text.rs"]
mod text;
#[path = "cli/truth.rs"]
mod truth;
#[path = "cli/wall.rs"]
mod wall;
