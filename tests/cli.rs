//! The real programs, driven as an operator drives them, on an appliance in a temporary directory.

mod common;

#[path = "cli/environment.rs"]
mod environment;
#[path = "cli/failing.rs"]
mod failing;
#[path = "cli/good.rs"]
mod good;
#[path = "cli/killed.rs"]
mod killed;
#[path = "cli/refused.rs"]
mod refused;
