//! qx-update keeps the components of an appliance up to date, and never leaves it worse than it found it.
//!
//! A release goes into the alternate of two slots under `/data`. One rename of one link, `/data/current`, makes init
//! scripts find it: they look at `/data/bin/NAME` first, which leads through that link, and at the image's own
//! `/usr/bin/NAME` second. The release is *good* only when its services were seen to run its files and to be healthy;
//! otherwise the appliance goes back by itself.
//!
//! # The way of an update through the code
//!
//! [`cli`] parses and starts the worker; [`update`] owns the order of the steps:
//!
//! 1. **Begin.** Take the lock and load the record ([`store`]); let recovery end what was left open ([`recover`], which
//!    carries out what [`decision`] decides; [`update`] takes up a trial or a way back).
//! 2. **Choose.** Refresh trust ([`repository`] over the rules of [`trust`], bytes from [`fetch`]); pick the highest
//!    eligible release ([`select`], over a [`manifest`]).
//! 3. **Plan.** Whether the appliance itself can do it ([`preflight`]); what is fetched, what is reused, which services stop,
//!    what happens to the data ([`dataset`]), how much space all of it takes, the data's way back included; reserve it
//!    ([`plan`]). **Baseline**: the health checks are tried on the old set, before anything is touched ([`prove`]): what failed
//!    before does not condemn the new one by failing just so.
//! 4. **Record** `Staging`: from here on the operation in the record holds all that undoing it needs ([`state`]).
//! 5. **Stage.** Fetch, check and unpack each component into `slots/NAME.next` ([`stage`], [`fetch`], [`unpack`]);
//!    sync; verify what lies on the medium ([`tree`]); seal; exchange for the slot. Record `Staged`.
//! 6. **Rehearse** the migration on a clone of the data, while everything runs ([`protect`]); a release that fails here is
//!    rejected without downtime.
//! 7. **Stop.** Leave the caller's session and control group; record `Switching` with the services that ran; stop them
//!    ([`switch`], [`service`]); save the data ([`protect`], [`snapshot`]) and record that; run the migration
//!    ([`migrate`]). If anything fails here, the link has not moved.
//! 8. **Switch.** Rename the link. Record `Trial`. Start the services that ran.
//! 9. **Prove.** Each service's own process ([`observe`], over [`proc`]) runs the installed file and goes on doing so, nothing
//!    runs the old one, what answers belongs to the services, and the health checks pass for as long as the release asks
//!    ([`prove`], [`health`]).
//! 10. **Confirm**: record `Idle` on the new set, drop the snapshot. **Or go back**: record `Reverting`, stop, set the data
//!     aside and restore it, record that, link back, start, prove the old set, quarantine the release with its reason,
//!     record `Idle`.
//!
//! At boot the order is: `qx-update recover --stage link` before anything is started (files only); `qx-update recover
//! --stage data` before what uses the data is ([`datastage`]); the runlevel; `qx-update confirm` in the background (step 9
//! and 10 of an open trial). `docs/recovery.md` has the table of what is done in which case.
//!
//! # Where things are
//!
//! *Core*, values in and values out: [`json`], [`manifest`], [`config`], [`dataset`], [`slot`], [`state`], [`decision`], [`select`], [`trust`],
//! [`digest`], [`text`], [`error`]. *Ports*, which touch the world: [`host`] (paths, clock, boot), [`store`] (what is under
//! `/data`), [`durable`] (the only syncs and renames), [`fetch`], [`repository`], [`unpack`], [`tree`], [`process`],
//! [`proc`] (what the kernel tells of processes), [`service`], [`health`], [`snapshot`] (data sets), [`migrate`], [`log`], [`follower`], [`output`], [`surroundings`]. Above both: [`observe`], [`preflight`], [`plan`], [`stage`], [`protect`],
//! [`prove`], [`switch`], [`recover`], [`datastage`], [`status`], [`update`], and [`cli`] on top. [`publish`] is what `qx-publish` does: the other side, which makes the
//! releases.
//!
//! Files that others depend on (configuration, recipe, manifest, repository, record, `status --json`) are described in
//! `docs/formats.md`.

pub mod cli;
pub mod config;
pub mod dataset;
pub mod datastage;
pub mod decision;
pub mod digest;
pub mod durable;
pub mod error;
pub mod fetch;
pub mod follower;
pub mod health;
pub mod host;
pub mod json;
pub mod log;
pub mod manifest;
pub mod migrate;
pub mod observe;
pub mod output;
pub mod plan;
pub mod preflight;
pub mod proc;
pub mod process;
pub mod protect;
pub mod prove;
pub mod publish;
pub mod recover;
pub mod repository;
pub mod select;
pub mod service;
pub mod slot;
pub mod snapshot;
pub mod stage;
pub mod state;
pub mod status;
pub mod store;
pub mod surroundings;
pub mod switch;
pub mod text;
pub mod tree;
pub mod trust;
pub mod unpack;
pub mod update;
