//! Whether the services run what was installed, and are healthy; and whether this appliance can be updated at all.

#[cfg(feature = "update")]
pub mod health;
pub mod observe;
#[cfg(feature = "update")]
pub mod preflight;
#[cfg(feature = "update")]
pub mod prove;
#[cfg(feature = "update")]
pub mod updater;
