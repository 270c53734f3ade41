//! The real programs, driven as people drive them, on directories instead of appliances and against servers on loopback.
//!
//! They wait most of the time: run many at once (`-- --test-threads 10`). Those in need of more have a ring of their own:
//! `tests/qemu`, `tests/interop`.

mod attack;
mod cli;
mod common;
mod counted;
mod dist;
mod fetch;
mod formats;
mod hostile;
mod initramfs;
mod layers;
mod publish;
mod readme;
mod unpack;
