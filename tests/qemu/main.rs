//! Updates seen from outside, in the appliance of `qemu/`: a real kernel, an initramfs, a read-only root with OpenRC, real
//! services. `./tests/all qemu` runs them; each passes only on what it has seen.
//!
//! A test that fails says where it leaves the appliance's console and logs: `target/qemu-tests/NAME/`.

mod adopt;
mod base64;
mod boot;
mod broken;
mod built;
mod console;
#[path = "../counted.rs"]
mod counted;
mod crash;
mod cut;
mod data;
mod disk;
mod hooks;
mod kinds;
mod release;
mod soak;
mod update;
mod updater;
mod vdc;
mod vm;
