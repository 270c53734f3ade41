//! qx-update keeps the components of an appliance up to date, and never leaves it worse than it found it.
//!
//! A release goes into the alternate of two slots under `/data`. One rename of one link, `/data/current`, activates it:
//! init scripts look at `/data/bin/NAME` first, which leads through that link, and at the image's own `/usr/bin/NAME`
//! second. A release is *good* only when its services were seen to run its files and to be healthy; otherwise the
//! appliance goes back by itself.
//!
//! # How an update runs through the code
//!
//! [`cli`] parses the command line and starts the worker; [`command`] owns the order of the steps:
//!
//! 1. **Begin.** Take the lock and load the record ([`store`]); let recovery end what was left open
//!    ([`recovery::link`], which carries out what [`recovery::decide`] decides); take up an open trial or way back.
//! 2. **Choose.** Refresh trust ([`repository`] over the rules of [`qx_release::trust`], bytes from [`fetch`]); pick the
//!    highest eligible release ([`acquire::select`]). Sources are asked by a process of its own, which is confined
//!    ([`fetch::Mirrors`] sends it on errands, [`acquire::errands`] runs them, [`system::sandbox`] is all it may do).
//! 3. **Plan.** Whether the appliance itself can do it ([`proof::preflight`]); what is fetched, what is reused, which
//!    services stop, what happens to the data ([`model::dataset`]), how much space all of it takes, the data's way back
//!    included ([`acquire::plan`]). **Baseline**: the health checks are tried on the old set, before anything is touched
//!    ([`proof::prove`]): a check that failed before does not condemn the new set by failing in the same way.
//! 4. **Record** `Staging`: from here on the operation in the record holds all that undoing it needs
//!    ([`model::record`]; which phase follows which is [`model::transition`]).
//! 5. **Stage.** Have each component fetched, checked and unpacked into `slots/NAME.next` ([`acquire::stage`],
//!    [`acquire::unpack`]), and meanwhile those before it synced and read back from the medium; sync; seal; exchange for the slot. Record
//!    `Staged`.
//! 6. **Try the next updater**, if the release brings one: it must read the record and the configuration, and the image's own must read
//!    what it writes ([`proof::updater`]). **Rehearse** the migration on a copy of the data, while everything runs ([`data::rehearse`]); a release that fails
//!    here is rejected without downtime.
//! 7. **Stop.** Leave the caller's session and control group; ask the applications that must not be interrupted
//!    ([`switch::inhibit`]); record `Switching` with the services that ran; stop them ([`switch`], [`system::service`]); copy the data, migrate the copy ([`data::migrate`]), check it, sync it. If
//!    anything fails up to here, neither the data nor the link has changed.
//! 8. **Switch.** Record that the data is exchanged; exchange the copy for the live data, by renames; rename the link.
//!    Record `Trial`. Start the services that ran.
//! 9. **Prove.** Each service's own process ([`proof::observe`], over [`system::proc`]) runs the installed file and goes
//!    on doing so, nothing runs the old one, what answers belongs to the services, and the health checks pass for as
//!    long as the release asks ([`proof::prove`], [`proof::health`]).
//! 10. **Confirm**: note that the old data is kept, record `Idle` on the new set. **Or go back**: record `Reverting`, stop,
//!     exchange the data back, record that, link back, start, prove the old set, quarantine the release with its
//!     reason, record `Idle`.
//!
//! At boot the order is: `qx-update recover --stage link` before anything is started (files only); `qx-update recover
//! --stage data` before what uses the data is ([`recovery::data`]); the runlevel; `qx-update confirm` in the background
//! (steps 9 and 10 of an open trial). `docs/recovery.md` has the table of what is done in which case.
//!
//! # The rooms
//!
//! From the ground up; a room uses those above it in this list, and no other (`tests/layers.rs` holds it to that):
//!
//! | room | what is in it |
//! |---|---|
//! | [`qx_release`] | what the maker of a release and the appliance agree on; a crate of its own |
//! | [`model`] | what is known, as values: configuration, record, slots, data sets |
//! | [`system`] | the machine: paths and clock, processes and what they may do, services, media, space, the log |
//! | [`store`] | what lies under `/data`: lock, record, link, slots, seals |
//! | [`fetch`] | bytes: web servers, directories, bundles, mirrors |
//! | [`repository`] | what is published, and whether it is trusted |
//! | [`data`] | data that moves with a release: copied, migrated, exchanged, kept |
//! | [`proof`] | what runs, and whether it is healthy |
//! | [`acquire`] | from a repository to a verified slot |
//! | [`switch`] | from one set to another, and back |
//! | [`recovery`] | what a boot does about the state it finds |
//! | [`adoption`] | from the plain directories of another updater to the first slot, and back |
//! | [`status`] | what a person is told |
//! | [`doctor`] | what is wrong, before an update finds out |
//! | [`command`] | the order of the steps |
//! | [`cli`] | arguments, worker and screen: the only printing |
//!
//! The other side, which makes the releases, is the crate `qx-publish`. Files that others depend on (configuration,
//! recipe, manifest, repository, record, `status --json`) are described in `docs/formats.md`.

#![warn(unreachable_pub)]

#[cfg(feature = "update")]
pub mod acquire;
#[cfg(feature = "update")]
pub mod adoption;
pub mod cli;
#[cfg(feature = "update")]
pub mod command;
#[cfg(feature = "update")]
pub mod data;
#[cfg(feature = "update")]
pub mod doctor;
#[cfg(feature = "update")]
pub mod fetch;
pub mod model;
pub mod proof;
pub mod recovery;
#[cfg(feature = "update")]
pub mod repository;
pub mod status;
pub mod store;
#[cfg(feature = "update")]
pub mod switch;
pub mod system;
