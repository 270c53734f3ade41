//! The machine underneath: paths and clock, processes, services, space, the log.

#[cfg(feature = "update")]
#[cfg_attr(
    not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )),
    path = "no_calls.rs"
)]
mod calls;
pub mod crash;
pub mod follower;
pub mod group;
pub mod host;
pub mod log;
#[cfg(feature = "update")]
pub mod medium;
pub mod proc;
pub mod process;
#[cfg(feature = "update")]
pub mod sandbox;
pub mod service;
pub mod space;
#[cfg(feature = "update")]
pub mod verity;
#[cfg(feature = "update")]
pub mod watchdog;
