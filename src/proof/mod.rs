//! Whether the services run what was installed, and are healthy; and whether this appliance can be updated at all.

pub mod health;
pub mod observe;
pub mod preflight;
pub mod prove;
